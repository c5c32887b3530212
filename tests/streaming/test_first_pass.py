from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot

from mlaas_ray.core.errors import BranchMissingError, DataError, EmptyDataError, JobError
from mlaas_ray.core.features import Statistics
from mlaas_ray.core.inputs import Inputs, ObjectSettings
from mlaas_ray.streaming import ReadingSettings, Sample, first_pass, measure, survey, visit
from tests.streaming.conftest import damage

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


def test_the_result_does_not_depend_on_how_the_work_is_shared(write_tree, monkeypatch) -> None:
    paths = [write_tree(f"{seed}.root", events=300, seed=seed) for seed in range(6)]
    monkeypatch.setattr(survey, "BATCHES", 1)
    found = []
    for files in (1, 4, 32):
        monkeypatch.setattr(survey, "BATCH_FILES", files)
        found.append(first_pass([Sample(paths)]))
    assert len({one.features.digest for one in found}) == 1
    documents = [one.sketches[0].document() for one in found]
    assert documents[0] == documents[1] == documents[2]


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


@pytest.mark.parametrize("include", [["MET_pt"], ["Jet_pt"], ["MET_pt", "Jet_*"]])
def test_a_selection_that_no_event_passes_is_refused_with_the_cut_flow(
    write_tree, include: list[str]
) -> None:
    inputs = Inputs(include=include, select="MET_pt >= 0 and MET_pt < 0", normalise="none")
    flow = "signal: 100 events, 100 after MET_pt >= 0, 0 after MET_pt < 0"
    with pytest.raises(EmptyDataError, match=rf"(?s)no event passes the selection.*The cut flow:.*{flow}"):
        first_pass([Sample(write_tree(), name="signal")], inputs)


def test_a_selection_that_one_event_passes_is_none_of_that(write_tree) -> None:
    paths = [write_tree("a.root"), write_tree("b.root", extra={"event": np.arange(100, 200)})]
    assert first_pass([Sample(paths)], Inputs(include=["MET_pt"], select="event == 199")).entries == 200


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.csv", "MET_pt,n\n"),
        ("b.csv", ""),
        ("b.jsonl", ""),
        (
            "b.parquet",
            pa.table({"MET_pt": pa.array([], pa.null()), "n": pa.array([], pa.list_(pa.float32()))}),
        ),
    ],
)
@pytest.mark.parametrize("missing", ["fail", "fill", "drop"])
def test_a_file_without_entries_among_others_asks_for_nothing(
    tmp_path: Path, name: str, content: str | pa.Table, missing: str
) -> None:
    full, empty = (tmp_path / name).with_stem("a"), tmp_path / name
    values = {"MET_pt": [1.5, 2.5], "n": [3, 4]}
    if isinstance(content, pa.Table):
        pq.write_table(pa.table(values), full)
        pq.write_table(content, empty)
    else:
        csv = "MET_pt,n\n1.5,3\n2.5,4\n"
        lines = '{"MET_pt": 1.5, "n": 3}\n{"MET_pt": 2.5, "n": 4}\n'
        full.write_text(csv if full.suffix == ".csv" else lines)
        empty.write_text(content)
    inputs = Inputs(include=["MET_pt", "s"], define={"s": "MET_pt + n"}, select="n > 0")
    found = first_pass([Sample([empty, full])], inputs, reading=ReadingSettings(missing=missing))
    assert [file.entries for file in found.files] == [0, 2]
    assert found.features.columns == ("MET_pt", "s")
    assert not found.missing
    with pytest.raises(EmptyDataError, match=rf"dataset 'dataset' has no events: .*{name} is empty"):
        first_pass([Sample(empty)], inputs)


def test_which_tree_was_taken_of_several_is_told_once(tmp_path) -> None:
    for name in ("a.root", "b.root"):
        with uproot.recreate(tmp_path / name) as file:
            for tree in ("Runs", "Events"):
                file.mktree(tree, {"x": np.float32}).extend({"x": np.ones(2, np.float32)})
    for _ in range(2):  # the second time from memory
        [choice] = first_pass([Sample(tmp_path)]).choices
        assert choice == f"tree 'Events' is taken of {tmp_path}/a.root and 1 more files, and not Runs"
    assert first_pass([Sample(tmp_path, tree="Events")]).choices == []


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


def test_quantiles_are_those_of_all_files(write_tree) -> None:
    paths = [write_tree(f"{seed}.root", events=2000, seed=seed) for seed in range(2)]
    found = first_pass([Sample(paths)], Inputs(include=["MET_pt"], normalise="robust"))
    seen = found.features.features[0].statistics
    values = uproot.concatenate([f"{path}:Events" for path in paths], ["MET_pt"], library="np")["MET_pt"]
    assert seen is not None
    assert found.complete
    for share, value in seen.quantiles.items():
        assert value == pytest.approx(np.quantile(values, share), rel=0.02)


def test_expressions_shape_what_is_measured(write_tree) -> None:
    inputs = Inputs(
        include=["HT", "Jet_*"],
        define={"HT": "sum(Jet_pt)"},
        select="MET_pt > 20",
        objects={"Jet": ObjectSettings(where="Jet_pt > 30", sort_by="Jet_pt")},
    )
    path = write_tree(events=1000)
    found = first_pass([Sample(path)], inputs)
    arrays = uproot.open(f"{path}:Events").arrays()
    kept = arrays[arrays.MET_pt > 20]
    good = kept.Jet_pt[kept.Jet_pt > 30]
    ht, _, pt = (found.features.by_name[name] for name in ("HT", "Jet_id", "Jet_pt"))
    assert ht.statistics is not None
    assert (ht.kind, ht.statistics.count) == ("flat", len(kept))
    assert ht.statistics.max == pytest.approx(ak.max(ak.sum(kept.Jet_pt, axis=1)), rel=1e-6)
    assert pt.statistics is not None
    assert (pt.length, pt.statistics.count) == (ak.max(ak.num(good)), ak.sum(ak.num(good)))
    assert found.features.select == "MET_pt > 20"
    assert set(found.files[0].branches) >= {"Jet_pt", "Jet_id", "MET_pt"}


def test_branches_that_some_files_lack_are_filled_or_dropped(write_tree) -> None:
    one = write_tree("one.root", extra={"x": np.ones(100)})
    other = write_tree("other.root", seed=1)
    filled = first_pass([Sample([one, other])], reading=ReadingSettings(missing="fill"))
    x = filled.features.by_name["x"].statistics
    assert x is not None
    assert (x.count, x.missing, x.nan) == (100, 100, 0)
    assert filled.missing == {"x": (str(other),)}
    dropped = first_pass([Sample([one, other])], reading=ReadingSettings(missing="drop"))
    assert "x" not in dropped.features.by_name
    assert dropped.missing == {"x": (str(other),)}


def test_definitions_of_a_branch_that_is_filled_are_measured_in_every_file(write_tree) -> None:
    one = write_tree("one.root", extra={"x": np.ones(100)})
    other = write_tree("other.root", seed=1)
    inputs = Inputs(include=["y"], define={"y": "x + MET_pt"})
    found = first_pass([Sample([one, other])], inputs, reading=ReadingSettings(missing="fill"))
    y = found.features.features[0].statistics
    assert y is not None
    assert (y.count, y.nan) == (100, 100)
    with pytest.raises(BranchMissingError, match=r"other.root"):
        first_pass([Sample([one, other])], inputs)


def test_bad_files_are_skipped_up_to_a_share(write_tree, tmp_path) -> None:
    good = [write_tree(f"{seed}.root", events=2000, clusters=1, seed=seed) for seed in range(4)]
    bad = tmp_path / "bad.root"
    bad.write_bytes(good[0].read_bytes()[:500])
    files = [good[0], bad, *good[1:]]
    with pytest.raises(DataError, match=r"bad.root"):
        first_pass([Sample(files)])
    skip = {"policy": "skip", "max_fraction": 0.2}
    found = first_pass([Sample(files)], reading=ReadingSettings(bad_files=skip))
    assert [file.path for file in found.files] == [str(path) for path in good]
    assert [one.source.path for one in found.skipped] == [str(bad)]
    assert "cut short" in found.skipped[0].reason
    damage(good[2], "MET_pt")  # which shows only when it is measured
    skip = {"policy": "skip", "max_fraction": 0.5}
    found = first_pass([Sample(files)], reading=ReadingSettings(bad_files=skip))
    assert [one.source.path for one in found.skipped] == [str(bad), str(good[2])]
    assert found.features.entries == found.entries == 6000
    with pytest.raises(DataError, match=r"2 of 5 files cannot be read.*max_fraction is 0.1"):
        first_pass([Sample(files)], reading=ReadingSettings(bad_files="skip"))


def test_only_so_many_events_are_planned_and_measured(write_tree) -> None:
    paths = [write_tree(f"{seed}.root", events=100, seed=seed) for seed in range(5)]
    found = first_pass([Sample(paths)], reading=ReadingSettings(max_events=230))
    assert (found.entries, found.features.entries, len(found.files)) == (230, 230, 3)
    values = uproot.concatenate([f"{path}:Events" for path in paths], ["MET_pt"], library="np")["MET_pt"]
    seen = found.features.by_name["MET_pt"].statistics
    assert seen is not None
    assert seen.max == values[:230].max()


def test_a_sample_measures_some_clusters_of_every_file(write_tree) -> None:
    paths = [write_tree(f"{seed}.root", events=1000, clusters=20, seed=seed) for seed in range(2)]
    found = first_pass([Sample(paths)], reading=ReadingSettings(sample=0.3))
    assert found.entries == 2000
    assert 100 <= found.features.entries <= 1200
    assert (found.sampled, found.complete) == (0.3, False)


def test_without_scaling_multiplicities_alone_are_learnt(write_tree) -> None:
    found = first_pass([Sample(write_tree(events=500))], Inputs(include=["*_pt"], normalise="none"))
    jets = found.features.by_name["Jet_pt"]
    assert (jets.length, jets.multiplicity, jets.statistics) == (3, 3, None)
    assert not found.complete


def test_the_key_is_what_all_files_can_be_identified_by(write_tree) -> None:
    numbers = {"run": np.ones(100, np.int32), "luminosityBlock": np.ones(100, np.uint32)}
    one = write_tree("one.root", extra=numbers)
    other = write_tree("other.root", seed=1)
    only = Inputs(include=["MET_pt"])
    found = first_pass([Sample(one)], only)
    assert found.key == ("run", "luminosityBlock", "event")
    assert set(found.key) < set(found.files[0].branches)
    assert first_pass([Sample([one, other])], only).key == ()
    assert first_pass([Sample([one, other])], only, key=["event"]).key == ("event",)
    with pytest.raises(BranchMissingError, match=r"'evnt', which is to identify.*'event'"):
        first_pass([Sample(one)], only, key=["evnt"])
    with pytest.raises(DataError, match=r"'MET_pt' in .* identifies no event"):
        first_pass([Sample(one)], only, key=["MET_pt"])


def test_large_files_are_measured_by_several_tasks_alike(write_tree, monkeypatch) -> None:
    """What a visit leaves over, others measure: the pieces are the same, and so is the result."""
    samples = [Sample(write_tree(events=1000, clusters=10)).found()]
    request = visit.Request(Inputs(), ReadingSettings())
    monkeypatch.setattr(measure, "PIECE_BYTES", 4000)
    job = visit.Job(samples[0].sources[0], None, 0)
    (whole,) = visit.visit([job], request)
    monkeypatch.setattr(visit, "VISIT_BYTES", 5000)
    (first,) = visit.visit([job], request)
    assert first.rest
    for one in first.rest:
        (more,) = visit.visit([visit.Job(job.source, None, 0, ranges=(one,))], request)
        first = first.extended(more)
    assert first.sketches.document() == whole.sketches.document()
    assert first.events == whole.events == 1000
    (plain,) = survey.survey(samples, request, None, [None], False)
    assert plain.events == 1000


def test_a_selection_may_name_no_branch(write_tree) -> None:
    samples = [Sample(write_tree())]
    assert first_pass(samples, Inputs(select="1 > 0")).features.select == "1 > 0"
    with pytest.raises(EmptyDataError, match="no event passes the selection"):
        first_pass(samples, Inputs(select="1 < 0"))
