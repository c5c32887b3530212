from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mlaas_ray.core.columns import Kind
from mlaas_ray.core.errors import BranchMissingError, DataError, JobError
from mlaas_ray.core.features import Feature, Statistics
from mlaas_ray.core.grid import GridSpec, View
from mlaas_ray.core.inputs import Inputs, ObjectSettings
from mlaas_ray.core.views import grid_branches, grid_spec

NANOAOD: dict[str, Kind] = {
    "MET_pt": "flat",
    "MET_phi": "flat",
    "nJet": "flat",
    **{f"{c}_{field}": "jagged" for c in ("Jet", "Muon") for field in ("pt", "eta", "phi")},
    "Jet_beta": "jagged",
    "SV_x": "jagged",
}


def inputs(views: Any, **rest: Any) -> Inputs:
    return Inputs.of({"representation": "grid", "views": views, **rest}, "the inputs")


def spec(asked: Inputs, low: float = -3.0, high: float = 7.0, kinds: dict[str, Kind] = NANOAOD) -> GridSpec:
    """Return the spec of files whose branches all go from ``low`` to ``high``."""
    seen = Statistics.of([low, high])
    features = [
        Feature(name=name, kind=kinds[name], length=1 if kinds[name] == "flat" else 4, statistics=seen)
        for name in grid_branches(asked, kinds)
    ]
    return grid_spec(asked, features, entries=2)


def channels(view: View) -> Sequence[tuple[str, str, str, str | None]]:
    return [(channel.name, channel.x, channel.y, channel.weight) for channel in view.channels]


def test_two_axes_are_a_view_of_every_collection_that_has_both() -> None:
    made = spec(inputs("eta-phi"))
    assert [view.name for view in made.views] == ["eta_phi"]
    assert channels(made.views[0]) == [
        ("Jet", "Jet_eta", "Jet_phi", None),
        ("Muon", "Muon_eta", "Muon_phi", None),
    ]
    assert made.entries == 2
    assert [feature.name for feature in made.features] == ["Jet_eta", "Jet_phi", "Muon_eta", "Muon_phi"]


def test_channels_weights_and_scalars_are_those_asked_for() -> None:
    view = {"x": "eta", "y": "phi", "weight": "pt", "x_bins": 5, "y_bins": 6}
    collections = [
        "Muon",
        {"collection": "Jet", "weight": "Jet_beta"},
        {"collection": "Jet", "weight": 1, "name": "n"},
    ]
    made = spec(inputs({**view, "channels": collections}, scalars=["MET_*"], normalise="standard"))
    assert channels(made.views[0]) == [
        ("Muon", "Muon_eta", "Muon_phi", "Muon_pt"),
        ("Jet", "Jet_eta", "Jet_phi", "Jet_beta"),
        ("n", "Jet_eta", "Jet_phi", None),
    ]
    assert made.views[0].shape == (3, 6, 5)
    assert made.scalars == ("MET_phi", "MET_pt")
    assert made.normalisation == "standard"
    assert made.width == 2 + 3 * 6 * 5


@pytest.mark.parametrize(
    ("collection", "x", "y"),
    [
        ("Jet", "Jet_eta", "Jet_phi"),
        ("jet", "jetEta", "jetPhi"),
        ("Jet", "Jet/Jet.Eta", "Jet/Jet.Phi"),
        ("Jets", "Jets/Jets.fCoordinates.fEta", "Jets/Jets.fCoordinates.fPhi"),
        ("AnalysisJetsAuxDyn", "AnalysisJetsAuxDyn.eta", "AnalysisJetsAuxDyn.phi"),
    ],
)
def test_collections_are_found_however_their_fields_are_called(collection: str, x: str, y: str) -> None:
    kinds: dict[str, Kind] = {x: "jagged", y: "jagged", "theta": "jagged", "Jet_pt": "jagged"}
    assert grid_branches(inputs("eta-phi"), kinds) == [x, y]
    named = inputs({"x": "eta", "y": "phi", "channels": [collection]})
    assert channels(spec(named, kinds=kinds).views[0]) == [(collection, x, y, None)]


def test_detector_hits_are_seen_from_three_sides() -> None:
    kinds: dict[str, Kind] = {f"Hits/Hits.position.{axis}": "jagged" for axis in "xyz"}
    kinds |= {f"Jet/Jet.momentum.{axis}": "jagged" for axis in "xyz"}
    made = spec(inputs(["x-y", "y-z", "z-x"]), kinds=kinds)
    assert [view.name for view in made.views] == ["x_y", "y_z", "z_x"]
    assert channels(made.views[2]) == [("Hits", "Hits/Hits.position.z", "Hits/Hits.position.x", None)]
    assert {(axis.low, axis.high) for view in made.views for axis in (view.x, view.y)} == {(-3.0, 7.0)}


def test_branches_themselves_can_be_axes() -> None:
    kinds: dict[str, Kind] = {"reco_calo_wire": "jagged", "reco_calo_tick": "jagged", "dQ": "jagged"}
    made = spec(inputs({"x": "reco_calo_wire", "y": "reco_calo_tick", "weight": "dQ"}), kinds=kinds)
    assert channels(made.views[0]) == [("reco_calo", "reco_calo_wire", "reco_calo_tick", "dQ")]
    other = {"collection": "reco", "x": "reco_calo_wire", "y": "reco_calo_tick"}
    made = spec(inputs({"name": "tpc", "x": "wire", "y": "tick", "channels": [other]}), kinds=kinds)
    assert made.views[0].name == "tpc"
    assert channels(made.views[0]) == [("reco", "reco_calo_wire", "reco_calo_tick", None)]


@pytest.mark.parametrize(
    ("view", "seen", "x", "y"),
    [
        ({}, (-3.0, 4.0), (-3.0, 4.0, False), (-np.pi, np.pi, True)),
        ({}, (-999.0, 4.0), (-5.0, 4.0, False), (-np.pi, np.pi, True)),
        ({}, (2.0, 2.0), (1.5, 2.5, False), (-np.pi, np.pi, True)),
        ({"x_range": [-2.5, 2.5]}, (-9, 9), (-2.5, 2.5, False), (-np.pi, np.pi, True)),
        ({"y_range": [0, 6.2832]}, (-3, 3), (-3.0, 3.0, False), (0.0, 6.2832, True)),
        ({"y_range": [0, 1]}, (-3, 3), (-3.0, 3.0, False), (0.0, 1.0, False)),
        ({"periodic": "eta"}, (-3, 3), (-3.0, 3.0, True), (-np.pi, np.pi, False)),
    ],
)
def test_ranges_are_those_given_or_seen(
    view: dict[str, Any], seen: tuple[float, float], x: tuple[float, ...], y: tuple[float, ...]
) -> None:
    made = spec(inputs({"x": "eta", "y": "phi", **view}), *seen).views[0]
    assert (made.x.low, made.x.high, made.x.periodic) == x
    assert (made.y.low, made.y.high, made.y.periodic) == y


def test_the_objects_length_is_the_channels() -> None:
    asked = inputs("eta-phi", objects={"Jet": ObjectSettings(length=3)})
    assert [channel.length for channel in spec(asked).views[0].channels] == [3, None]


@pytest.mark.parametrize(
    ("views", "problem"),
    [
        ([], "needs views"),
        ("eta", "two axes"),
        ({"x": "eta", "y": "phi", "bins": 4}, "unknown key 'views.0.bins'"),
        ({"x": "eta", "y": "phi", "x_range": [2, 1]}, "from a smaller to a larger"),
        ({"x": "eta", "y": "phi", "periodic": "psi"}, "periodic names 'psi'"),
        ({"x": "eta", "y": "phi", "channels": []}, "channels is empty"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(views: Any, problem: str) -> None:
    with pytest.raises(JobError, match=problem):
        inputs(views)


def test_views_of_a_vector_are_refused() -> None:
    with pytest.raises(JobError, match="for representation: grid"):
        Inputs.of({"views": "eta-phi"}, "the inputs")


def test_what_the_files_lack_is_named_with_its_view() -> None:
    with pytest.raises(
        BranchMissingError, match=r"view 'eta_phi', channel 'Jets': no branch 'Jets_eta'.*'Jet_eta'"
    ):
        grid_branches(inputs({"x": "eta", "y": "phi", "channels": ["Jets"]}), NANOAOD)
    with pytest.raises(BranchMissingError, match="view 'x_y': no collection has both 'x' and 'y'"):
        grid_branches(inputs("x-y"), NANOAOD)
    with pytest.raises(BranchMissingError, match=r"scalars: no flat branch 'Jet_pt'"):
        grid_branches(inputs("eta-phi", scalars="Jet_pt"), NANOAOD)
    with pytest.raises(DataError, match=r"channel 'Jet': .*Jet_phi is jagged, MET_pt is flat"):
        grid_branches(inputs({"x": "eta", "y": "phi", "weight": "MET_pt", "channels": ["Jet"]}), NANOAOD)


def test_a_range_nobody_knows_and_a_name_given_twice_are_refused() -> None:
    asked = inputs("eta-phi")
    unseen = [Feature(name=name, kind="jagged") for name in grid_branches(asked, NANOAOD)]
    with pytest.raises(JobError, match=r"no value of 'Jet_eta' was seen.*x_range"):
        grid_spec(asked, unseen)
    with pytest.raises(JobError, match="two views or channels are called 'eta_phi/Jet'"):
        spec(inputs({"x": "eta", "y": "phi", "channels": ["Jet", "Jet"]}))
