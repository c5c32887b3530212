from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlaas_ray.core.columns import Jagged
from mlaas_ray.core.errors import EventError
from mlaas_ray.core.features import Feature, FeatureSpec, ObjectRule
from mlaas_ray.core.flatten import flatten, flatten_events
from mlaas_ray.core.prepare import needed_branches, prepare
from mlaas_ray.core.sent import numbers

NAN = np.nan

SPEC = FeatureSpec.of(
    [
        Feature(name="HT", kind="flat"),
        Feature(name="MET_pt", kind="flat"),
        Feature(name="cov", kind="fixed", length=2),
        Feature(name="Jet_pt", kind="jagged", length=2),
        Feature(name="Jet_mass", kind="jagged", length=2),
    ],
    define={"HT": "sum(Jet_pt[Jet_pt > minimum(cut, 100)])"},
    objects={"Jet": ObjectRule(where="abs(Jet_eta) < 2.4", sort_by="Jet_pt")},
    branches={"Jet_eta": "jagged", "cut": "flat"},
    select="nMuon > 0",
)
EVENT: dict[str, Any] = {
    "MET_pt": 31.5,
    "cov": [1, 2],
    "cut": 25,
    "Jet_pt": [30.0, 20.0, 50.0, 70.0],
    "Jet_eta": [0.5, 1.0, -2.0, 4.0],
    "Jet_mass": [3, 2, 5, 7],
}
#      HT  MET_pt cov   Jet_mass Jet_pt
ROW = [150, 31.5, 1, 2, 5, 3, 50, 30]


def test_an_event_is_prepared_as_in_training_and_not_selected() -> None:
    np.testing.assert_array_equal(flatten_events([EVENT, EVENT | {"nMuon": 0}], SPEC), [ROW, ROW])
    assert flatten_events([], SPEC).shape == (0, 8)
    arrays = {
        name: np.array(value) if isinstance(value, list) else np.float32(value)
        for name, value in EVENT.items()
    }
    np.testing.assert_array_equal(flatten_events([arrays], SPEC), [ROW])


def test_what_is_left_out_is_missing() -> None:
    sent: list[dict[str, Any]] = [
        EVENT | {"MET_pt": None, "cov": None, "Jet_mass": None},
        {name: value for name, value in EVENT.items() if not name.startswith("Jet_")},
        {name: value for name, value in EVENT.items() if name != "Jet_eta"},
        EVENT | {"Jet_pt": [30.0, None, 50.0, 70.0]},
        {},
    ]
    np.testing.assert_array_equal(
        flatten_events(sent, SPEC),
        [
            [150, NAN, NAN, NAN, NAN, NAN, 50, 30],
            [0, 31.5, 1, 2, NAN, NAN, NAN, NAN],
            [150, 31.5, 1, 2, NAN, NAN, NAN, NAN],  # no jet is known to be central
            [150, 31.5, 1, 2, 5, 3, 50, 30],
            [0, NAN, NAN, NAN, NAN, NAN, NAN, NAN],
        ],
    )


def test_a_cut_falls_on_the_same_side_as_in_training_whose_files_hold_float32() -> None:
    spec = FeatureSpec.of(
        [Feature(name="cut", kind="flat")], define={"cut": "x > 0.1"}, branches={"x": "flat"}
    )
    trained = prepare({"x": np.array([0.1], np.float32)}, spec)[0]
    np.testing.assert_array_equal(flatten_events([{"x": 0.1}], spec), flatten(trained, spec))
    np.testing.assert_array_equal(
        flatten_events([{"x": float(np.float32(0.1))}], spec), flatten(trained, spec)
    )


def test_kinds_that_nobody_noted_are_those_of_what_is_sent() -> None:
    spec = SPEC.model_copy(update={"branches": {}})
    np.testing.assert_array_equal(flatten_events([EVENT], spec), [ROW])
    with pytest.raises(EventError, match="computes with 'Jet_eta', which was not sent"):
        flatten_events([{"cut": 3}], spec)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"HT": 3}, "'HT' is computed by the model. Send what it is made of: Jet_pt, cut"),
        ({"Jet_Eta": [1]}, "knows no branch 'Jet_Eta'. Did you mean 'Jet_eta'"),
        ({"cov": [1, 2, 3]}, "'cov' has 2 values an event, but 3 were sent"),
        ({"cov": 1}, "'cov' is fixed, but 1 is no list"),
        ({"cut": [1]}, "'cut' has one value an event"),
        ({"Jet_eta": 1}, "'Jet_eta' is jagged, but 1 is no list"),
        ({"Jet_eta": [1, 2, 3, "4"]}, "'Jet_eta': '4' is not a number"),
        ({"Jet_eta": [[1]]}, "'Jet_eta' has one value an event, but a list was sent"),
        ({"Jet_eta": [1]}, "inputs.objects.Jet.where: "),
        ({"Jet_mass": [1]}, "has other numbers of objects than 'Jet_mass'"),
    ],
    ids=str,
)
def test_an_event_that_does_not_fit_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(EventError) as caught:
        flatten_events([EVENT | change], SPEC)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2**62], "int64"),
        ([1, 2**70], "float64"),
        ([1, None], "float64"),
        ([1, 2.5], "float32"),
        ([True, False], "bool"),
        ([True, None], "float32"),
        ([], "float32"),
        ([1e300, -(10**400), None], "float32"),
    ],
    ids=str,
)
def test_whole_numbers_and_conditions_stay_such(values: list[Any], dtype: str) -> None:
    found = numbers(values, "x")
    assert found.dtype == dtype
    with np.errstate(over="ignore"):
        expected = [NAN if v is None else -np.inf if v == -(10**400) else v for v in values]
        np.testing.assert_array_equal(found, np.array(expected, dtype))


@pytest.mark.parametrize(
    ("expression", "without", "unsent"),
    [
        ("sum(Jet_pt[Jet_tight])", 0, 0),
        ("sum(Jet_pt[Jet_tight & (Jet_pt > 30)])", 0, 0),
        ("count(Jet_pt[~Jet_tight])", 0, 2),
        ("count(Jet_pt[Jet_tight | (Jet_pt > 30)])", 0, 1),
        ("max(Jet_pt[Muon_jet])", NAN, NAN),
        ("Jet_pt[:, best]", NAN, NAN),
        ("1 * (trigger | other)", 0, 1),
        ("1 * ((flags & 4) == 4)", 0, 0),
    ],
    ids=str,
)
def test_what_has_no_value_is_a_condition_or_position_that_is_missing(
    expression: str, without: float, unsent: float
) -> None:
    """Alone, and beside an event that has all."""
    kinds: Any = {"Jet_pt": "jagged", "Jet_tight": "jagged", "Muon_jet": "jagged"}
    kinds |= dict.fromkeys(("best", "trigger", "other", "flags"), "flat")
    spec = FeatureSpec.of([Feature(name="x", kind="flat")], define={"x": expression}, branches=kinds)
    no_objects = {
        name: [] if kind == "jagged" else False if name in ("trigger", "other") else 0
        for name, kind in kinds.items()
    }
    some = {"Jet_pt": [20.0, 40.0], "Muon_jet": [None], "other": True}
    whole = {"Jet_pt": [50.0, 60.0], "Jet_tight": [True, False], "Muon_jet": [1, 0], "best": 1}
    whole |= {"trigger": True, "other": False, "flags": 5}
    events = [{name: event.get(name) for name in spec.raw} for event in (no_objects, some, whole)]
    alone = [flatten_events([event], spec)[0] for event in events]
    np.testing.assert_array_equal(alone[:2], [[without], [unsent]])
    assert np.isfinite(alone[2]).all()
    np.testing.assert_array_equal(flatten_events(events, spec), alone)


FLOATS = st.floats(-100, 100, width=32)


@settings(max_examples=50)
@given(
    sent=st.lists(
        st.tuples(FLOATS, FLOATS, st.lists(st.tuples(FLOATS, FLOATS, FLOATS), max_size=5)),
        min_size=1,
        max_size=6,
    )
)
def test_any_events_sent_give_the_rows_of_training(sent: list[Any]) -> None:
    events = [
        {
            "MET_pt": met,
            "cut": cut,
            "cov": [met, cut],
            **{name: [jet[k] for jet in jets] for k, name in enumerate(("Jet_pt", "Jet_eta", "Jet_mass"))},
        }
        for met, cut, jets in sent
    ]
    offsets = np.concatenate([[0], np.cumsum([len(jets) for _, _, jets in sent])]).astype(np.int64)
    columns: dict[str, Any] = {
        name: Jagged(offsets, np.array([x for event in events for x in event[name]], ">f4"))
        if name.startswith("Jet_")
        else np.array([event[name] for event in events], ">f4")
        for name in needed_branches(SPEC, select=False)
    }
    prepared, keep = prepare(columns, SPEC, select=False)
    assert keep is None
    np.testing.assert_array_equal(flatten_events(events, SPEC), flatten(prepared, SPEC))
