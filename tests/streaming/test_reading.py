from __future__ import annotations

from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa
import pytest
import uproot

from mlaas_ray.core.errors import DataError, FileUnreadableError, JobError
from mlaas_ray.core.inputs import Inputs
from mlaas_ray.streaming import (
    FirstPass,
    ReadingSettings,
    Sample,
    first_pass,
    new_record,
    planned_events,
    read_events,
)
from tests.streaming.conftest import damage

pytestmark = pytest.mark.usefixtures("ray_local")

SKIP = ReadingSettings.of({"bad_files": {"policy": "skip", "max_fraction": 0.5}}, "test")


def table_of(dataset: Any) -> pa.Table:
    """Return a dataset's blocks in the order in which they were planned, also where they are shuffled."""
    dataset.context.execution_options.preserve_order = True
    return pa.concat_tables(list(dataset.iter_batches(batch_size=None, batch_format="pyarrow")))


def read(found: FirstPass, **options: Any) -> pa.Table:
    return table_of(read_events(found, **options))


def same(one: pa.Table, other: pa.Table) -> bool:
    """Tell whether tables are equal, where no value is equal to no value."""
    x, y = (table["x"].combine_chunks().to_numpy_ndarray() for table in (one, other))
    return np.array_equal(x, y, equal_nan=True) and one.drop_columns("x").equals(other.drop_columns("x"))


def events_of(table: pa.Table) -> set[tuple[int, int]]:
    pairs = list(zip(table["file"].to_pylist(), table["entry"].to_pylist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


@pytest.fixture
def two(write_tree) -> list[Sample]:
    """Two samples of several clusters."""
    return [
        Sample(write_tree("s.root", events=3_000, clusters=6), label=1.0, name="s"),
        Sample(write_tree("b.root", events=2_000, clusters=4, seed=1), label=0.0, name="b"),
    ]


@pytest.mark.parametrize("shuffle", [False, True])
def test_all_ways_give_the_same_events_in_the_same_order(two: list[Sample], shuffle: bool) -> None:
    found = first_pass(two, Inputs(include=["MET_pt", "Jet_*"], select="MET_pt > 10"))
    options: dict[str, Any] = {"shuffle": shuffle, "seed": 3, "part": (0.0, 0.7)}
    dataset = read_events(found, **options)
    here = planned_events(found, **options)
    ways = {
        "one thread": here,
        "threads": planned_events(found, reading=ReadingSettings(threads=3), **options),
    }
    epochs = []
    for epoch in range(2):
        blocks = list(range(here.blocks(epoch)))
        assert len(blocks) == 8
        read = {name: list(events.tables(epoch, blocks)) for name, events in ways.items()}
        assert all(len(tables) == 8 for tables in read.values())
        joined = {name: pa.concat_tables(tables) for name, tables in read.items()}
        assert same(joined["one thread"], joined["threads"])
        assert same(joined["one thread"], table_of(dataset))
        some = list(here.tables(epoch, [5, 2]))
        assert same(some[0], read["one thread"][5])
        assert same(some[1], read["one thread"][2])
        epochs.append(joined["one thread"])
    assert events_of(epochs[0]) == events_of(epochs[1])
    assert same(*epochs) is not shuffle


def test_every_block_mixes_the_samples_and_shuffles_their_events(two: list[Sample]) -> None:
    found = first_pass(two, Inputs(include=["MET_pt"]))
    dataset = read_events(found, shuffle=True, seed=1)
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        assert 0.4 < batch["y"].mean() < 0.8
        np.testing.assert_array_equal(batch["y"], 1.0 - batch["dataset"])
        changes = (np.diff(batch["y"]) != 0).mean()
        assert changes > 0.3


def test_stated_shares_are_kept(two: list[Sample]) -> None:
    table = read(first_pass(two, Inputs(include=["MET_pt"])), shares={"s": 1, "b": 1}, shuffle=True)
    assert np.bincount(table["dataset"]).tolist() == [2_000, 2_000]


def test_definitions_selection_and_object_rules_reach_the_rows(write_tree) -> None:
    path = write_tree(events=500)
    inputs = Inputs.of(
        {
            "include": ["HT", "Jet_pt"],
            "define": {"HT": "sum(Jet_pt, axis=1)"},
            "select": "MET_pt > 20",
            "objects": {"Jet": {"length": 2, "where": "Jet_id > 2", "sort_by": "Jet_pt"}},
        },
        "test",
    )
    table = read(first_pass([Sample(path)], inputs))
    x = table["x"].combine_chunks().to_numpy_ndarray()
    with uproot.open(path) as file:
        arrays = file["Events"].arrays()
    kept = arrays[arrays.MET_pt > 20]
    np.testing.assert_allclose(x[:, 0], ak.to_numpy(ak.sum(kept.Jet_pt, axis=1)), rtol=1e-6)
    jets = ak.sort(kept.Jet_pt[kept.Jet_id > 2], ascending=False)
    padded = ak.to_numpy(ak.fill_none(ak.pad_none(jets, 2, clip=True), np.nan))
    np.testing.assert_array_equal(x[:, 1:], padded.astype(np.float32))
    np.testing.assert_array_equal(table["entry"], np.flatnonzero(ak.to_numpy(arrays.MET_pt) > 20))


def test_events_of_a_skim_stay_on_their_side_of_the_split(write_tree, tmp_path: Path) -> None:
    events = 2_000
    extra = {"run": np.ones(events, np.int32), "luminosityBlock": np.arange(events, dtype=np.uint32) // 100}
    path = write_tree(events=events, extra=extra)
    with uproot.open(path) as file:
        arrays = file["Events"].arrays(["run", "luminosityBlock", "event", "MET_pt"], library="np")
    chosen = arrays["MET_pt"] > 30
    skim = tmp_path / "skim.root"
    with uproot.recreate(skim) as file:
        file.mktree("Events", {name: array.dtype for name, array in arrays.items()})
        file["Events"].extend({name: array[chosen] for name, array in arrays.items()})

    def sides(files: Path) -> set[int]:
        found = first_pass([Sample(files)], Inputs(include=["event"]))
        assert found.key == ("run", "luminosityBlock", "event")
        table = read(found, part=(0.0, 0.5))
        return set(table["x"].combine_chunks().to_numpy_ndarray()[:, 0].astype(int).tolist())

    assert sides(skim) == sides(path) & set(arrays["event"][chosen].tolist())


def test_a_branch_that_a_file_lacks_is_filled(write_tree) -> None:
    full = write_tree("full.root", extra={"x": np.ones(100, np.float32)})
    bare = write_tree("bare.root", seed=1)
    reading = ReadingSettings(missing="fill")
    found = first_pass([Sample([full, bare])], Inputs(include=["MET_pt", "x"]), reading=reading)
    x = read(found, reading=reading)["x"].combine_chunks().to_numpy_ndarray()
    assert (x[:100, 1] == 1).all()
    assert np.isnan(x[100:, 1]).all()
    assert not np.isnan(x[:, 0]).any()


@pytest.fixture
def menus(write_tree) -> Sample:
    """Two files with a trigger bit each: events 0, 2 and 4 have it; one file has jets with whole numbers."""
    fired = np.array([True, False, True, False, True, False])
    counts = np.array([1, 2, 0, 1, 1, 0])
    jets = ak.unflatten(np.array([1, 2, 3, 6, 7], np.int32), counts)
    one = write_tree(
        "1.root", events=6, extra={"HLT_A": fired, "id": np.arange(6, dtype=np.uint8), "J_id": jets}
    )
    other = write_tree("2.root", events=6, extra={"HLT_B": ~fired, "HLT_on": np.ones(6, bool)}, seed=1)
    return Sample([one, other])


def read_menus(menus: Sample, fill: dict[str, Any], **inputs: Any) -> tuple[list[list[float]], Any]:
    """Return the rows, with NaN as -1, and the total of the record."""
    reading = ReadingSettings(missing="fill", fill=fill)
    found = first_pass([menus], Inputs(**inputs), reading=reading)
    record = new_record(found)
    x = read(found, reading=reading, record=record)["x"].combine_chunks().to_numpy_ndarray()
    return np.nan_to_num(x, nan=-1).tolist(), record.document()["total"]


@pytest.mark.parametrize(
    ("select", "entries"),
    [
        ("HLT_A | HLT_B", [0, 2, 4, 7, 9, 11]),
        ("~HLT_A & ~HLT_B", [1, 3, 5, 6, 8, 10]),
        ("HLT_A & ~is_missing(HLT_A)", [0, 2, 4]),
        ("is_missing(HLT_A) or id & 2", [2, 3, 6, 7, 8, 9, 10, 11]),
        ("is_missing(J_id) | (num(J_id) > 1)", [1, 6, 7, 8, 9, 10, 11]),
        ("(id & 1) == 0", [0, 2, 4]),
    ],
)
def test_bits_that_some_files_lack_are_false_and_can_be_asked_for(
    menus: Sample, select: str, entries: list[int]
) -> None:
    rows, total = read_menus(menus, {}, include=["event"], select=select)
    events = [entry % 6 for entry in entries]
    assert [row[0] for row in rows] == events
    assert total["cut"] == 12 - len(entries)
    assert set(total["filled"]) <= {"HLT_A", "HLT_B", "id", "J_id"}


def test_what_is_filled_in_is_measured_read_and_recorded(menus: Sample) -> None:
    include = ["HLT_*", "bits", "id", "jets"]
    define = {"bits": "id & 2", "jets": "sum(J_id & 2)"}
    rows, total = read_menus(menus, {"HLT_B": True}, include=include, define=define)
    # HLT_A, HLT_B, HLT_on, bits, id, jets
    assert rows[:3] == [[1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 1, 4], [1, 1, 0, 2, 2, 0]]
    assert rows[6:8] == [[0, 0, 1, -1, -1, 0], [0, 1, 1, -1, -1, 0]]
    assert total["filled"] == {"HLT_A": 6, "HLT_B": 6, "HLT_on": 6, "J_id": 6, "id": 6}
    given, _ = read_menus(menus, {"id": 3, "HLT_on": True}, include=include, define=define)
    assert given[6] == [0, 0, 1, 2, 3, 0]
    assert given[0] == [1, 0, 1, 0, 0, 0]
    with pytest.raises(JobError, match=r"reading.fill: 'id' is uint8_t, which is never 0.5"):
        read_menus(menus, {"i*": 0.5}, include=include, define=define)


def test_a_missing_branch_of_a_collection_has_as_many_objects_as_the_others(write_tree) -> None:
    reading = ReadingSettings(missing="fill")
    counts = np.arange(100) % 3
    tags = ak.unflatten(np.ones(counts.sum(), np.float32), counts)
    mus = {"Mu_pt": ak.unflatten(np.full(counts.sum(), 2.0, np.float32), counts)}
    full = write_tree("full.root", extra={**mus, "Mu_tag": tags})
    bare = write_tree("bare.root", seed=1, extra=mus)
    define = {"both": "sum(Mu_pt + where(isnan(Mu_tag), 0, Mu_tag), axis=1)"}
    inputs = Inputs.of({"include": ["both"], "define": define}, "test")
    found = first_pass([Sample([full, bare])], inputs, reading=reading)
    x = read(found, reading=reading)["x"].combine_chunks().to_numpy_ndarray()[:, 0]
    np.testing.assert_array_equal(x, np.concatenate([3.0 * counts, 2.0 * counts]))


def test_a_file_that_was_replaced_is_refused(write_tree) -> None:
    path = write_tree(events=100)
    found = first_pass([Sample(path)], Inputs(include=["MET_pt"]))
    write_tree(events=100, seed=9)
    with pytest.raises(FileUnreadableError, match=r"bytes instead of|not the file that the first pass saw"):
        read(found)


def test_what_cannot_be_read_is_skipped_and_recorded(write_tree) -> None:
    good, bad = write_tree("good.root", events=400), write_tree("bad.root", events=400, seed=1)
    found = first_pass([Sample([good, bad])], Inputs(include=["MET_pt"]))
    damage(bad, "MET_pt")
    record = new_record(found, SKIP)
    table = read(found, reading=SKIP, record=record)
    document = record.document()
    fates = {Path(row["path"]).name: row for row in document["readings"][0]["files"]}
    assert fates["good.root"]["read"] == 400
    assert fates["bad.root"]["skipped"] == 400 - fates["bad.root"]["read"] > 0
    assert "branch 'MET_pt'" in fates["bad.root"]["reasons"][0]
    assert len(events_of(table)) == document["total"]["read"]
    assert document["total"]["not_reached"] == 0
    with pytest.raises(DataError, match=r"(?s)bad\.root.*branch 'MET_pt'"):
        read(found)


def test_a_value_outside_what_the_first_pass_saw_is_not_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "a.root"
    with uproot.recreate(path, compression=None) as file:
        file.mktree("Events", {"x": np.float32})
        file["Events"].extend({"x": np.arange(1_000, dtype=np.float32)})
    found = first_pass([Sample(path)])
    content = path.read_bytes()
    value = np.array([500.0], ">f4").tobytes()
    assert content.count(value) == 1
    path.write_bytes(content.replace(value, np.array([1e30], ">f4").tobytes()))
    with pytest.raises(FileUnreadableError, match=r"(?s)'x'.*1 values outside the range"):
        read(found)


@pytest.mark.parametrize("sample", [1.0, 0.3])
@pytest.mark.parametrize("select", [None, "MET_pt > -1"])
def test_the_first_pass_and_the_reading_see_the_same_values_of_every_type(
    write_tree, select: str | None, sample: float
) -> None:
    random = np.random.default_rng(5)
    whole = random.integers(2**62, 2**63, 100)
    whole[70] = 2**63 - 2**38 - 1  # the largest: float32 rounds it down, and up by way of float64
    whole[71:] = np.minimum(whole[71:], 2**62)
    whole[:70] = np.minimum(whole[:70], 2**62)
    extra = {
        "flag": random.integers(0, 256, 100).astype(np.uint8).view(np.bool_),
        "whole": whole,
        "negative": -whole,
        "unsigned": whole.astype(np.uint64) + np.uint64(2**62),
        "char": random.integers(-128, 128, 100).astype(np.int8),
        "byte": random.integers(0, 256, 100).astype(np.uint8),
        "short": random.integers(0, 2**16, 100).astype(np.uint16),
        "double": random.normal(size=100) * 1e38,
    }
    path = write_tree(extra=extra, clusters=10)
    reading = ReadingSettings(sample=sample)
    found = first_pass([Sample(path)], Inputs(include=list(extra), select=select), reading=reading)
    x = read(found, reading=reading)["x"].combine_chunks().to_numpy_ndarray()
    with uproot.open(path) as file:
        arrays = file["Events"].arrays(list(extra), library="np")
    arrays["flag"] = arrays["flag"].view(np.uint8) != 0
    for feature in found.features.features:
        expected = arrays[feature.name].astype(np.float32)
        np.testing.assert_array_equal(x[:, found.features.starts[feature.name]], expected, feature.name)


def test_the_record_of_an_undisturbed_reading(two: list[Sample]) -> None:
    found = first_pass(two, Inputs(include=["MET_pt"], select="MET_pt > 10"))
    record = new_record(found)
    read(found, part=(0.0, 0.5), record=record)
    total = record.document()["total"]
    assert total["planned"] == 5_000 == total["read"] + total["cut"] + total["elsewhere"]
    assert min(total["read"], total["cut"], total["elsewhere"]) > 500
    assert total["bytes"] > 5_000
    assert total["seconds"] > 0
