"""Ray Data reads ROOT files for the ranks of a training: every event once an epoch, whoever goes on."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import ray.train
import uproot

from mlaas_ray.core.inputs import Inputs
from mlaas_ray.streaming import (
    ClusterEvents,
    FirstPass,
    Record,
    Sample,
    cluster_events,
    first_pass,
    new_record,
)
from mlaas_ray.training.events import Shards
from mlaas_ray.training.group import Group
from mlaas_ray.training.seen import ShardCursor
from mlaas_ray.training.shards import ShardEvents, ShardStream
from tests.training.test_stream import OneOf, Ranks

pytestmark = pytest.mark.usefixtures("ray_local")

EVENTS = 6_000


class Rank(OneOf):
    """A rank that also tells its numbers."""

    def gather(self, values: list[int]) -> Any:
        return np.array(self.gather_objects(values))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> FirstPass:
    """Two files of 3,000 events; what identifies an event is in ``x``."""
    folder = tmp_path_factory.mktemp("trees")
    for file, numbers in enumerate(np.array_split(np.arange(EVENTS, dtype=np.float32), 2)):
        with uproot.recreate(folder / f"{file}.root") as root:
            root.mktree("Events", {"MET_pt": np.float32, "number": np.float32})
            for part in np.array_split(numbers, 10):
                root["Events"].extend({"MET_pt": part % 100, "number": part})
    return first_pass([Sample(folder)], Inputs(include=["MET_pt", "number"], normalise="none"))


class Training:
    """Some ranks, in threads, that share what one reading gives."""

    def __init__(
        self, events: ClusterEvents, size: int, monkeypatch: pytest.MonkeyPatch, limit: int = 40_000
    ) -> None:
        shards = events.dataset.streaming_split(size, equal=False)
        named = {f"train-{rank}": shard for rank, shard in enumerate(shards)}
        # the real iterators, which Ray Train gives its workers by name
        monkeypatch.setattr(ray.train, "get_dataset_shard", named.__getitem__)
        ranks = Ranks(size)
        self.groups: list[Group] = [Rank(ranks, rank) for rank in range(size)]
        if size == 1:
            self.groups = [Group()]
        self.shards = [Shards(f"train-{rank}", events.begin) for rank in range(size)]
        self.streams = [
            ShardStream(shard, 2, limit, seed=1, group=group)
            for shard, group in zip(self.shards, self.groups, strict=True)
        ]
        self.pool = ThreadPoolExecutor(size)

    def all(self, function: Any, *arguments: Any) -> list[Any]:
        return list(self.pool.map(lambda stream: function(stream, *arguments), self.streams))

    def start(self, cursors: list[ShardCursor]) -> None:
        def begin(stream: ShardStream, cursor: ShardCursor) -> None:
            stream.start(cursor)
            stream.read_ahead()

        list(self.pool.map(begin, self.streams, cursors))

    def take(self, most: int) -> list[int]:
        return [number for own in self.all(taken, most) for number in own]

    def close(self) -> None:
        self.all(ShardStream.close)
        self.pool.shutdown()


def taken(stream: ShardStream, most: int) -> list[int]:
    """Take some events of a rank, or all that it gets."""
    numbers: list[int] = []
    while len(numbers) < most:
        stream.refill(min(64, most - len(numbers)))
        count = min(64, most - len(numbers), stream.ready)
        if count == 0:
            break
        (batch,) = stream.take([count])
        numbers += batch.x[:, 1].astype(int).tolist()
    return numbers


def events_of(found: FirstPass, record: Record | None = None) -> ClusterEvents:
    return cluster_events(found, shuffle=True, seed=3, name="train", record=record)


@pytest.mark.parametrize("limit", [40_000, 1 << 20])
def test_every_event_comes_once_in_every_epoch(
    found: FirstPass, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = new_record(found)
    training = Training(events_of(found, record), 2, monkeypatch, limit)
    cursors, orders = [ShardCursor.start(0)] * 2, []
    for _ in range(3):
        training.start(cursors)
        orders.append(training.take(EVENTS + 1))
        cursors = training.all(ShardStream.following)
    training.close()
    assert all(sorted(order) == list(range(EVENTS)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    # what fits into memory is read once
    assert len(record.document()["readings"]) == (1 if limit > 40_000 else 3)
    for reading in record.document()["readings"]:
        assert (reading["total"]["read"], reading["total"]["planned"]) == (EVENTS, EVENTS)


def test_others_go_on_in_the_middle_of_an_epoch(found: FirstPass, monkeypatch: pytest.MonkeyPatch) -> None:
    record = new_record(found)
    seen: list[int] = []
    cursor = ShardCursor.start(2)
    # Ray Data cuts blocks, puts them together, and leaves them as they are
    for size, most, target in ((2, 500, 3_000), (1, 700, 1 << 20), (2, EVENTS, None)):
        events = events_of(found, record)
        if target is not None:
            events.dataset.context.target_max_block_size = target
        training = Training(events, size, monkeypatch)
        training.start([ShardCursor(**json.loads(json.dumps(cursor.document())))] * size)
        seen += training.take(most)
        cursor = training.all(ShardStream.cursor)[0]
        training.close()
    assert Counter(seen) == Counter(range(EVENTS))
    (reading,) = record.document()["readings"]
    assert reading["epoch"] == 2
    assert reading["total"]["read"] == EVENTS
    # nothing is left to read, and another command's record says so
    record = new_record(found)
    training = Training(events_of(found, record), 1, monkeypatch)
    training.start([cursor])
    assert training.take(EVENTS) == []
    training.close()
    (reading,) = record.document()["readings"]
    assert (reading["total"]["earlier"], reading["total"]["not_reached"]) == (EVENTS, 0)


def test_validation_events_are_the_same_in_every_pass(
    found: FirstPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(events_of(found), 2, monkeypatch)
    judged = [
        ShardEvents(shards, 0, group=group)
        for shards, group in zip(training.shards, training.groups, strict=True)
    ]

    def numbers(events: ShardEvents) -> list[int]:
        return [number for batch in events for number in batch.x[:, 1].astype(int).tolist()]

    for _ in range(2):
        ranks = list(training.pool.map(numbers, judged))
        assert sorted(number for own in ranks for number in own) == list(range(EVENTS))
    training.close()
