from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import ray

from mlaas_ray.core.errors import DataError
from mlaas_ray.core.inputs import Inputs
from mlaas_ray.streaming import (
    FirstPass,
    PlannedEvents,
    ReadingSettings,
    Sample,
    first_pass,
    new_record,
    planned_events,
)
from tests.streaming.conftest import damage

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture
def unequal(write_tree) -> FirstPass:
    """Two datasets: one of thousands of events, and one of seven, far fewer than a block has."""
    large = [write_tree(f"large{n}.root", events=2_000, clusters=4, seed=n) for n in range(2)]
    small = write_tree("small.root", events=7, clusters=1, seed=9)
    samples = [Sample(large, label=0.0, name="large"), Sample(small, label=1.0, name="small")]
    return first_pass(samples, Inputs(include=["MET_pt", "Jet_pt"]))


def numbers(tables: Sequence[pa.Table]) -> list[list[tuple[int, int]]]:
    """Return file and entry of the events of each block, in order."""
    return [list(zip(table["file"].to_pylist(), table["entry"].to_pylist(), strict=True)) for table in tables]


def everything(events: PlannedEvents, epoch: int = 0) -> list[pa.Table]:
    return list(events.tables(epoch, range(events.blocks(epoch))))


def test_every_event_comes_once_also_of_a_dataset_far_smaller_than_a_block(unequal: FirstPass) -> None:
    events = planned_events(unequal, shuffle=True, seed=2)
    for epoch in range(2):
        blocks = numbers(everything(events, epoch))
        assert len(blocks) > 7
        expected = [(file, entry) for file in range(2) for entry in range(2_000)]
        expected += [(2, entry) for entry in range(7)]
        assert sorted(event for block in blocks for event in block) == expected
        # the few are spread over the epoch, as far as they go
        assert max(sum(file == 2 for file, _ in block) for block in blocks) == 1


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_nothing(unequal: FirstPass, threads: int) -> None:
    ways = [
        planned_events(unequal, shuffle=True, reading=ReadingSettings(threads=count))
        for count in (1, threads)
    ]
    one, other = (pa.concat_tables(everything(events)) for events in ways)
    assert one.drop_columns("x").equals(other.drop_columns("x"))
    x, y = (table["x"].combine_chunks().to_numpy_ndarray() for table in (one, other))
    np.testing.assert_array_equal(x, y)


def test_blocks_come_in_the_order_asked_for_whoever_reads_the_others(unequal: FirstPass) -> None:
    events = planned_events(unequal, shuffle=True)
    blocks = numbers(everything(events))
    ranks = [numbers(list(events.tables(0, range(rank, len(blocks), 2)))) for rank in range(2)]
    assert ranks == [blocks[0::2], blocks[1::2]]
    assert numbers(list(events.tables(0, [5, 0, 5]))) == [blocks[5], blocks[0], blocks[5]]
    assert list(events.tables(0, [])) == []


def test_an_epoch_has_an_order_of_its_own_only_when_shuffled(unequal: FirstPass) -> None:
    for shuffle in (False, True):
        events = planned_events(unequal, shuffle=shuffle)
        first, second = (numbers(everything(events, epoch)) for epoch in range(2))
        assert (first == second) is not shuffle
        assert numbers(everything(events, 0)) == first
    other = planned_events(unequal, shuffle=True, seed=1)
    assert numbers(everything(other)) != first


def test_two_parts_of_a_split_are_all_events(unequal: FirstPass) -> None:
    parts = [planned_events(unequal, part=part, seed=5) for part in ((0.0, 0.8), (0.8, 1.0))]
    learn, judge = ([event for block in numbers(everything(events)) for event in block] for events in parts)
    assert len(learn) + len(judge) == len({*learn, *judge}) == 4_007
    # binomial: deviation 25
    assert abs(len(learn) - 0.8 * 4_007) < 130


def test_it_travels_without_events_and_reads_the_same_elsewhere(unequal: FirstPass) -> None:
    events = planned_events(unequal, shuffle=True)
    before = numbers(everything(events, 3))
    pickled = pickle.dumps(events)
    # 4,007 events are at least 16 bytes each, before any value
    assert len(pickled) < 16 * 4_007 / 2
    assert numbers(everything(pickle.loads(pickled), 3)) == before
    count = ray.remote(num_cpus=0)(lambda source: source.blocks(0))
    assert ray.get(count.remote(events)) == len(before)


def test_the_record_is_told_what_every_epoch_reads(unequal: FirstPass) -> None:
    record = new_record(unequal)
    events = planned_events(unequal, name="train", record=record, part=(0.0, 0.5))
    read = sum(table.num_rows for table in everything(events))
    events.note(0)  # twice is as good as once
    (told,) = record.document()["readings"]
    assert (told["reading"], told["epoch"]) == ("train", 0)
    assert [row["planned"] for row in told["files"]] == [2_000, 2_000, 7]
    assert told["total"]["read"] == read
    assert told["total"]["read"] + told["total"]["elsewhere"] == 4_007


def test_what_cannot_be_read_is_raised_as_it_was(write_tree) -> None:
    path = write_tree(events=4_000, clusters=8)
    found = first_pass([Sample(path)], Inputs(include=["MET_pt"], normalise="none"))
    damage(path, "MET_pt")
    tables = planned_events(found, reading=ReadingSettings(threads=1)).tables(0, [7, 0])
    assert next(tables).num_rows == 500
    with pytest.raises(DataError, match=r"a\.root.*MET_pt"):
        next(tables)
