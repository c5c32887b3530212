from __future__ import annotations

import awkward as ak
import numpy as np
import pytest
import uproot

from mlaas_ray.core.errors import BranchMissingError, DataError, EmptyDataError, JobError
from mlaas_ray.core.features import Statistics
from mlaas_ray.core.inputs import Inputs, ObjectSettings
from mlaas_ray.streaming import Sample, first_pass

pytestmark = pytest.mark.usefixtures("ray_local")


def test_statistics_and_lengths_are_those_of_all_files_together(write_tree) -> None:
    paths = [write_tree(f"{seed}.root", events=500, seed=seed) for seed in range(3)]
    found = first_pass([Sample(paths)], Inputs(exclude=["event"]))
    arrays = uproot.concatenate([f"{path}:Events" for path in paths])
    assert found.entries == found.features.entries == 1500
    assert [feature.name for feature in found.features.features] == [
        "MET_pt",
        "nJet_id",
        "nJet_pt",
        "Jet_id",
        "Jet_pt",
    ]
    for feature in found.features.features:
        whole = Statistics.of(ak.to_numpy(ak.flatten(arrays[feature.name], axis=None)))
        assert feature.statistics is not None
        assert feature.statistics.count == whole.count
        assert (feature.statistics.min, feature.statistics.max) == (whole.min, whole.max)
        assert feature.statistics.mean == pytest.approx(whole.mean)
        assert feature.statistics.std == pytest.approx(whole.std)
        if feature.kind == "jagged":
            assert feature.length == feature.multiplicity == ak.max(ak.num(arrays[feature.name]))


def test_the_result_does_not_depend_on_how_many_work(write_tree) -> None:
    paths = [write_tree(f"{seed}.root", events=300, seed=seed) for seed in range(5)]
    digests = {first_pass([Sample(paths)]).features.digest for _ in range(3)}
    assert len(digests) == 1


def test_nan_and_infinity_are_counted_and_do_not_poison_the_range(write_tree) -> None:
    values = np.array([1.0, np.nan, 3.0, np.inf, -np.inf, 2.0], dtype=np.float32)
    found = first_pass([Sample(write_tree(events=6, clusters=2, extra={"x": values}))], Inputs(include=["x"]))
    seen = found.features.features[0].statistics
    assert seen is not None
    assert (seen.count, seen.nan, seen.infinite, seen.min, seen.max) == (3, 1, 2, 1.0, 3.0)


def test_lengths_are_chosen_by_collection_or_branch(write_tree) -> None:
    found = first_pass(
        [Sample(write_tree())],
        Inputs(
            include=["Jet_*"], objects={"Jet": ObjectSettings(length=2), "Jet_id": ObjectSettings(length=1)}
        ),
    )
    assert {feature.name: feature.length for feature in found.features.features} == {"Jet_id": 1, "Jet_pt": 2}
    with pytest.raises(JobError, match=r"there is no jagged branch 'Jets' or 'Jets_\*'.*'Jet'"):
        first_pass([Sample(write_tree())], Inputs(objects={"Jets": ObjectSettings(length=2)}))


def test_clusters_are_found(write_tree) -> None:
    found = first_pass([Sample(write_tree(events=1000, clusters=4))])
    assert found.files[0].boundaries == (0, 250, 500, 750, 1000)


def test_an_empty_tree_is_refused_by_name_but_not_beside_others(write_tree) -> None:
    empty, full = write_tree("empty.root", events=0, tree="nominal"), write_tree("full.root")
    with pytest.raises(
        EmptyDataError, match=r"'signal' has no events: .*empty.root, tree 'nominal' is empty"
    ):
        first_pass([Sample(full), Sample(empty, name="signal")])
    assert first_pass([Sample([empty, full])]).entries == 100


def test_a_branch_one_file_lacks_names_both_files(write_tree) -> None:
    one, other = write_tree("one.root", extra={"x": np.zeros(100)}), write_tree("other.root")
    with pytest.raises(BranchMissingError, match=r"'x' is in .*one.root, but not in .*other.root"):
        first_pass([Sample([one, other])])
    assert first_pass([Sample([one, other])], Inputs(exclude=["x"])).entries == 200


def test_a_branch_of_two_kinds_is_refused(write_tree) -> None:
    one = write_tree("one.root", extra={"x": np.zeros(100)})
    other = write_tree("other.root", extra={"x": ak.unflatten(np.zeros(100), np.ones(100, int))})
    with pytest.raises(DataError, match=r"'x' is flat in .* but jagged in"):
        first_pass([Sample([one, other])], Inputs(exclude=["nx"]))


def test_known_features_are_not_measured_again(write_tree) -> None:
    features = first_pass([Sample(write_tree("a.root"))], Inputs(include=["MET_pt"])).features
    found = first_pass([Sample(write_tree("b.root", seed=1))], features=features)
    assert found.features is features
    assert set(found.files[0].chosen) == {"MET_pt"}
    assert not found.complete


def test_known_features_are_compared_with_the_file(write_tree) -> None:
    with_x = write_tree("a.root", extra={"x": np.zeros(100)})
    features = first_pass([Sample(with_x)], Inputs(include=["x"])).features
    with pytest.raises(BranchMissingError, match=r"no branch 'x' in .*b.root"):
        first_pass([Sample(write_tree("b.root"))], features=features)
