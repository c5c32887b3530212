from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlaas_ray.training.group import Group
from mlaas_ray.training.shards import (
    TrainingEvents,
    ValidationEvents,
    WholeShards,
    block_size,
    one_ahead,
    tables,
)


def shards_of(dataset: Any, workers: int) -> list[Any]:
    shards = WholeShards().configure({"train": dataset}, workers, None, None)
    return [shard["train"] for shard in shards]


def rows_of(shards: list[Any]) -> list[list[pa.Table]]:
    """Read all shards at once, as workers do: a split begins for all or none."""
    with ThreadPoolExecutor(len(shards)) as pool:
        return list(pool.map(lambda shard: list(tables(shard)), shards))


def test_no_row_is_dropped_however_they_divide(ray_local: None) -> None:
    import ray.data

    pieces = [pa.table({"n": np.arange(a, b)}) for a, b in [(0, 1000), (1000, 1001), (1001, 1777)]]
    read = rows_of(shards_of(ray.data.from_arrow(pieces), 2))
    numbers = [n for shard in read for table in shard for n in table["n"].to_pylist()]
    assert sorted(numbers) == list(range(1777))


def test_one_block_of_a_reading_task_reaches_all_workers_evenly(ray_local: None) -> None:
    import ray.data

    def wide(batch: dict[str, Any]) -> dict[str, Any]:
        return {"n": batch["id"], "x": np.zeros((len(batch["id"]), 1000), np.float32)}

    dataset = ray.data.range(10_000, override_num_blocks=1).map_batches(wide, batch_size=None)
    read = rows_of(shards_of(dataset, 2))
    counts = [sum(table.num_rows for table in shard) for shard in read]
    assert sum(counts) == 10_000
    assert min(counts) > 4000


@pytest.mark.parametrize(
    ("total", "usual", "size"),
    [
        (None, 128 << 20, 128 << 20),
        (1000, 128 << 20, 1 << 20),
        (160 << 20, 128 << 20, 10 << 20),
        (1 << 40, 128 << 20, 128 << 20),
        (160 << 20, None, 10 << 20),
    ],
)
def test_blocks_are_made_smaller_never_larger(total: int | None, usual: int | None, size: int) -> None:
    assert block_size(total, 2, usual) == size


def reader(counts: list[int]) -> tuple[Any, list[int]]:
    """A shard to read, and the list in which each reading is noted."""
    readings: list[int] = []

    def read() -> Any:
        readings.append(1)
        for count in counts:
            values = np.arange(count, dtype=np.float32)
            x = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([values, values], axis=1))
            yield pa.table({"x": x, "y": values, "weight": values})

    return read, readings


def test_a_shard_that_fits_in_memory_is_read_once() -> None:
    read, readings = reader([50, 30])
    events = TrainingEvents(read, 2, 1 << 20, batch_size=8, group=Group(), seed=1)
    orders = []
    for epoch in range(3):
        events.start(epoch)
        events.pool.refill()
        orders.append([float(batch.y[0]) for batch in events.pool.take([1] * 80)])
    assert len(readings) == 1
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert orders[0] != orders[1]


def test_a_shard_that_does_not_fit_is_read_each_epoch() -> None:
    read, readings = reader([50, 30])
    events = TrainingEvents(read, 2, 1024, batch_size=8, group=Group(), seed=1)
    for epoch in range(3):
        events.start(epoch)
        events.pool.refill()
        while not events.pool.ended:
            list(events.pool.take([events.pool.ready]))
            events.pool.refill()
    assert len(readings) == 3


@pytest.mark.parametrize(("limit", "times"), [(1 << 20, 1), (100, 3)])
def test_validation_events_come_in_their_order_each_time(limit: int, times: int) -> None:
    read, readings = reader([50, 30])
    events = ValidationEvents(read, limit, group=Group())
    passes = [np.concatenate([block.y for block in events]).tolist() for _ in range(3)]
    assert passes[0] == passes[1] == passes[2] == [*range(50), *range(30)]
    assert len(readings) == times


def test_items_made_ahead_come_in_order_and_an_error_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("the fourth")

    given = one_ahead(items())
    assert [next(given) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(given)


def test_the_next_item_is_made_while_one_is_used() -> None:
    made = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in range(2):
            made.release()
            yield number

    given = one_ahead(items())
    next(given)
    assert made.acquire(timeout=10)
    assert made.acquire(timeout=10)
    given.close()
    assert not any(thread.name == "one-ahead" for thread in threading.enumerate())
