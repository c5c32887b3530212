"""One rank's stream, or several in turn: every event once, in an order that can be found again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlaas_ray.core.errors import DataError
from mlaas_ray.training.cursor import Cursor, joined
from mlaas_ray.training.events import EventSource
from mlaas_ray.training.group import Group
from mlaas_ray.training.stream import EventStream, OrderedEvents

ROW = 4 * 2 + 16


class Numbered:
    """Events numbered through, in blocks; each epoch has them in blocks of another order."""

    def __init__(self, sizes: Sequence[int], *, fails_at: int | None = None, in_order: bool = False) -> None:
        self.sizes = list(sizes)
        self.in_order = in_order
        self.starts = np.cumsum([0, *sizes])
        self.asked: list[tuple[int, list[int]]] = []
        self.fails_at = fails_at

    @property
    def events(self) -> int:
        return sum(self.sizes)

    def prepare(self) -> None: ...

    def blocks(self, epoch: int) -> int:
        return len(self.sizes)

    def tables(self, epoch: int, blocks: Sequence[int]) -> Iterator[pa.Table]:
        self.asked.append((epoch, list(blocks)))
        order = np.arange(len(self.sizes))
        if not self.in_order:
            order = np.random.default_rng(epoch).permutation(order)
        for index in blocks:
            if index == self.fails_at:
                raise DataError("a.root is cut short")
            block = int(order[index])
            numbers = np.arange(self.starts[block], self.starts[block + 1], dtype=np.float32)
            x = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((1, 2), np.float32))[:0]
            if len(numbers):
                x = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([numbers, -numbers], axis=1))
            yield pa.table({"x": x, "y": numbers, "weight": numbers})


class Ranks:
    """Some groups that say what all of them say, in turn: exchanges are answered when all have asked."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size)
        self.said: list[Any] = [None] * size


class OneOf(Group):
    def __init__(self, ranks: Ranks, rank: int) -> None:
        super().__init__(rank, ranks.size)
        self.ranks = ranks

    def gather_objects(self, value: Any) -> list[Any]:
        self.ranks.said[self.rank] = value
        self.ranks.barrier.wait(60)
        said = list(self.ranks.said)
        self.ranks.barrier.wait(60)
        return said


def stream(source: EventSource, rows: int, seed: int = 1, group: Group | None = None) -> EventStream:
    return EventStream(source, 2, rows * ROW, seed=seed, group=group or Group())


def take(events: EventStream, count: int, size: int = 16) -> list[int]:
    """Take some events, as a rank alone does."""
    taken: list[int] = []
    while count > 0:
        events.refill(size)
        now = min(size, events.ready, count)
        if now == 0:
            break
        (batch,) = events.take([now])
        assert (batch.x == np.stack([batch.y, -batch.y], axis=1)).all()
        assert (batch.weight == batch.y).all()
        taken += batch.y.astype(int).tolist()
        count -= now
    return taken


def rest(events: EventStream) -> list[int]:
    return take(events, 10**9)


# rows: everything in memory; two windows; many windows; windows smaller than a block
@pytest.mark.parametrize("rows", [10_000, 400, 100, 10])
@pytest.mark.parametrize("sizes", [[1], [300], [100, 1, 99, 100], [7] * 50, [0, 64, 0, 64, 0]])
def test_every_event_comes_once_in_every_epoch(sizes: list[int], rows: int) -> None:
    source = Numbered(sizes)
    events = stream(source, rows)
    cursor, orders = Cursor.start(0), []
    for _ in range(3):
        events.start(cursor)
        orders.append(rest(events))
        cursor = events.following()
    events.close()
    assert all(sorted(order) == list(range(source.events)) for order in orders)
    if source.events > 50:
        assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize(("rows", "times"), [(1000, 1), (200, 1), (100, 3)])
def test_what_fits_into_two_windows_is_read_once(rows: int, times: int) -> None:
    source = Numbered([50] * 4)
    events = stream(source, rows)
    cursor = Cursor.start(0)
    for _ in range(3):
        events.start(cursor)
        rest(events)
        cursor = events.following()
    assert [epoch for epoch, _ in source.asked] == list(range(times))
    events.close()


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    orders = []
    for seed in (1, 1, 2):
        events = stream(Numbered([100] * 5), 150, seed)
        events.start(Cursor.start(4))
        orders.append(rest(events))
        events.close()
    assert orders[0] == orders[1] != orders[2]


def steps(events: EventStream, count: int) -> list[Any]:
    """Take some batches as an epoch does; return what may be taken before each, and what was."""
    given: list[Any] = []
    for _ in range(count):
        events.refill(64)
        if not events.ready:
            break
        offer = events.ready, events.ended
        (batch,) = events.take([min(16, events.ready)])
        given.append((*offer, batch.y.tolist()))
    return given


# uneven: a buffer that had to grow for a large block must not change which blocks come together after it
@pytest.mark.parametrize("sizes", [[70] * 14, [30, 20, 310, 20, 30, 40, 200, 50, 0, 60, 30, 20, 90, 80]])
@pytest.mark.parametrize("rows", [10_000, 400, 200, 30])
@pytest.mark.parametrize("seen", [0, 1, 10, 29, 45, 61, 62])
def test_another_process_goes_on_as_if_nothing_had_been(rows: int, seen: int, sizes: list[int]) -> None:
    through, broken = (stream(Numbered(sizes), rows) for _ in range(2))
    for one in (through, broken):
        one.start(Cursor.start(0))
        rest(one)
        one.start(one.following())
    before = steps(broken, seen)
    cursor = Cursor.of(broken.cursor().document())
    broken.close()
    again = stream(Numbered(sizes), rows)
    again.start(cursor)
    # what may be taken too, since that is what rounds of steps are planned by
    assert before + steps(again, 100) == steps(through, 100)
    # and so it does in the epoch after that
    assert again.following() == through.following()
    again.start(again.following())
    through.start(through.following())
    assert steps(again, 100) == steps(through, 100)
    for one in (through, again):
        one.close()


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), (3, 2), (2, 2), (2, 5)])
@pytest.mark.parametrize("rows", [10_000, 150, 60])
def test_another_number_of_workers_sees_the_rest(before: int, after: int, rows: int) -> None:
    source = Numbered([40] * 20)
    streams = [stream(source, rows, group=Group(rank, before)) for rank in range(before)]
    seen: list[int] = []
    for rank, one in enumerate(streams):
        one.start(Cursor.start(0))
        seen += take(one, 90 + 40 * rank)
    positions = [one._position for one in streams]
    cursor = joined(0, 0, (), positions)
    for one in streams:
        one.close()
    for rank in range(after):
        one = stream(source, rows, group=Group(rank, after))
        one.start(cursor)
        seen += rest(one)
        one.close()
    assert sorted(seen) == list(range(source.events))


def test_ranks_keep_their_events_only_when_all_can() -> None:
    source = Numbered([100, 400] * 3, in_order=True)  # rank 0 could keep its own
    ranks = Ranks(2)
    told: list[Cursor] = [None, None]  # type: ignore[list-item]

    def run(rank: int) -> None:
        one = stream(source, 600, group=OneOf(ranks, rank))
        one.start(Cursor.start(0))
        rest(one)
        told[rank] = one.following()
        one.close()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [Cursor.start(1), Cursor.start(1)]


def test_blocks_of_one_class_each_come_out_mixed() -> None:
    events = stream(Numbered([1000, 1000]), 4100)
    events.start(Cursor.start(0))
    order = np.array(rest(events))
    # binomial: deviation 0.05 in each of 20 batches
    assert max(abs((part < 1000).mean() - 0.5) for part in np.split(order, 20)) < 0.25


def test_a_stream_gives_no_more_than_is_ready() -> None:
    events = stream(Numbered([10]), 100)
    events.start(Cursor.start(0))
    events.refill(10)
    with pytest.raises(ValueError, match="11 events wanted, 10 there"):
        list(events.take([11]))
    events.close()


def test_what_reading_raises_comes_after_the_windows_before_it() -> None:
    events = stream(Numbered([50, 50, 50], fails_at=2), 100)
    events.start(Cursor.start(0))
    assert len(take(events, 32)) == 32
    with pytest.raises(DataError, match=r"a\.root is cut short"):
        rest(events)
    events.close()


def test_blocks_that_changed_meanwhile_are_refused() -> None:
    events = stream(Numbered([50, 50]), 1000)
    events.start(Cursor.start(0))
    take(events, 30)
    cursor = events.cursor()
    events.close()
    again = stream(Numbered([50, 49]), 1000)
    again.start(cursor)
    with pytest.raises(DataError, match=r"2 blocks held 100 events before, and 99 now\. Train anew"):
        again.refill(1)
    again.close()


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    events = stream(Numbered([50] * 10), 100)
    events.start(Cursor.start(0))
    take(events, 30)
    events.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(("rows", "times"), [(1000, 1), (70, 4), (10, 4)])
def test_all_events_come_in_the_same_batches_in_every_pass(rows: int, times: int, ahead: bool) -> None:
    before = threading.active_count()
    source = Numbered([50, 0, 30, 20, 10])
    events = stream(source, rows)
    events.start(Cursor.start(2))
    if ahead:
        events.read_ahead()
    everything = events.everything()
    source.asked.clear()
    passes = [[(batch.x.tolist(), batch.y.tolist()) for batch in everything] for _ in range(4)]
    assert passes[0] == passes[1] == passes[2] == passes[3]
    assert sorted(len(y) for _, y in passes[0]) == [10, 20, 30, 50]
    assert sorted(number for _, y in passes[0] for number in y) == list(range(110))
    # those of the first epoch, whichever is the present one; read once if they fit
    assert source.asked == [(0, [0, 1, 2, 3, 4])] * times
    assert threading.active_count() == before


class Changing(Numbered):
    """Blocks that are not what they were when they are read again."""

    def __init__(self, change: Callable[[pa.Table], pa.Table]) -> None:
        super().__init__([40, 30])
        self.change = change

    def tables(self, epoch: int, blocks: Sequence[int]) -> Iterator[pa.Table]:
        again = bool(self.asked)
        for table in super().tables(epoch, blocks):
            yield self.change(table) if again else table


def heavier(table: pa.Table) -> pa.Table:
    weight = table["weight"].to_numpy().copy()
    weight[3] += 1
    return table.set_column(2, "weight", pa.array(weight))


CHANGES = {
    "an event less": (lambda table: table.slice(1), "40 events before, and 39 now"),
    "another order": (lambda table: table.take(np.arange(len(table))[::-1]), "and others now"),
    "other labels": (lambda table: table.set_column(1, "y", table["y"].combine_chunks()[::-1]), "others now"),
    "another weight": (heavier, "and others now"),
    "nothing left": (lambda table: table.slice(0, 0), "40 events before, and 0 now"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_a_pass_that_is_not_like_the_first_is_an_error(change: Any, said: str) -> None:
    everything = stream(Changing(change), 10).everything()
    list(everything)
    with pytest.raises(DataError, match=rf"^block 0 held .*{said}\. Train anew: the files"):
        list(everything)


def test_a_table_that_is_cut_otherwise_is_the_same_batch() -> None:
    cut = Changing(lambda table: pa.concat_tables([table.slice(0, 7), table.slice(7)]))
    everything = stream(cut, 10).everything()
    passes = [[batch.y.tolist() for batch in everything] for _ in range(2)]
    assert passes[0] == passes[1]


def test_a_batch_lasts_until_the_next_although_its_memory_is_wanted() -> None:
    source = Numbered([50] * 20)
    events = stream(source, 100)
    events.start(Cursor.start(0))
    seen: list[int] = []
    while True:
        events.refill(50)
        if not events.ready:
            break
        for batch in events.take([25] * (events.ready // 25)):
            time.sleep(0.002)  # the loader would overwrite it now
            seen += batch.x[:, 0].astype(int).tolist()
            assert batch.x[:, 0].tolist() == batch.y.tolist()
    events.close()
    assert sorted(seen) == list(range(1000))


@pytest.mark.parametrize(("limit", "times"), [(1 << 20, 1), (100, 3)])
def test_validation_events_come_in_their_order_each_time(limit: int, times: int) -> None:
    source = Numbered([50, 30])
    events = OrderedEvents(source, limit, group=Group())
    passes = [np.concatenate([batch.y for batch in events]).tolist() for _ in range(3)]
    assert passes[0] == passes[1] == passes[2]
    assert sorted(passes[0]) == list(range(80))
    assert len(source.asked) == times


def test_two_ranks_share_the_validation_events() -> None:
    source = Numbered([50, 30, 20, 7])
    passes = [np.concatenate([b.y for b in OrderedEvents(source, 0, group=Group(r, 2))]) for r in range(2)]
    assert sorted(np.concatenate(passes)) == list(range(107))
