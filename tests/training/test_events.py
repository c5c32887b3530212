from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from mlaas_ray.training.cursor import Cursor
from mlaas_ray.training.events import StoredEvents
from mlaas_ray.training.group import Group
from mlaas_ray.training.stream import EventStream, OrderedEvents
from tests.training.conftest import WIDTH

pytestmark = pytest.mark.usefixtures("ray_local")


def identifiers(tables: list[pa.Table]) -> list[int]:
    return [entry for table in tables for entry in table["entry"].to_pylist()]


def everything(source: StoredEvents, epoch: int = 0) -> list[pa.Table]:
    return list(source.tables(epoch, range(source.blocks(epoch))))


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_event_comes_once_in_blocks_enough_for_all_workers(
    toy_pair: Callable[..., Any], toy_events: Callable[..., pa.Table], blocks: int, workers: int
) -> None:
    source = StoredEvents(toy_pair(blocks)[0], workers)
    tables = everything(source)
    assert identifiers(tables) == list(range(3000))
    # so that each worker has its part of a dataset that lies in one block with one class first
    assert len(tables) >= 8 * workers
    assert max(table.num_rows for table in tables) <= -(-3000 // (8 * workers))
    expected = toy_events(3000, 1)
    joined = pa.concat_tables(tables)
    x, y = (table["x"].combine_chunks().to_numpy_ndarray() for table in (joined, expected))
    np.testing.assert_array_equal(x, y)
    for name in ("y", "weight", "dataset", "file"):
        assert joined[name].to_pylist() == expected[name].to_pylist()


def test_blocks_are_the_same_in_every_epoch_and_come_as_asked_for(toy_pair: Callable[..., Any]) -> None:
    source = StoredEvents(toy_pair()[0], 2)
    first = [identifiers([table]) for table in everything(source)]
    assert [identifiers([table]) for table in everything(source, 7)] == first
    some = [identifiers([table]) for table in source.tables(1, [5, 0, 5])]
    assert some == [first[5], first[0], first[5]]


def test_fewer_events_than_blocks_that_are_wanted() -> None:
    events = pa.table({"entry": pa.array(range(3), pa.int64())})
    source = StoredEvents(ray.data.from_arrow([events.slice(0, 0), events, events.slice(0, 0)]), 4)
    assert [identifiers([table]) for table in everything(source)] == [[0], [1], [2]]


def test_a_dataset_without_events_has_no_blocks() -> None:
    source = StoredEvents(ray.data.from_arrow(pa.table({"entry": pa.array([], pa.int64())})), 2)
    assert source.blocks(0) == 0
    assert everything(source) == []


def test_a_dataset_is_run_once_whoever_reads(toy_pair: Callable[..., Any]) -> None:
    source = StoredEvents(toy_pair()[0].map_batches(numbered, batch_format="pyarrow"), 2)
    before = [table["drawn"].to_pylist() for table in everything(source)]
    assert [table["drawn"].to_pylist() for table in everything(source)] == before

    def elsewhere(given: StoredEvents) -> Any:
        return [table["drawn"].to_pylist() for table in everything(given)]

    pickled = pickle.dumps(source)
    assert len(pickled) < 3000 * 4 * WIDTH / 2
    assert ray.get(ray.remote(num_cpus=0)(elsewhere).remote(source)) == before


def numbered(table: pa.Table) -> pa.Table:
    """Give each event a number that another run of the dataset would not draw."""
    import secrets

    drawn = [secrets.randbits(60) for _ in range(table.num_rows)]
    return pa.table({"entry": table["entry"], "drawn": drawn})


def test_streams_and_validation_read_it(toy_pair: Callable[..., Any], toy_events: Callable[..., Any]) -> None:
    train, validation = (StoredEvents(one, 2) for one in toy_pair())
    stream = EventStream(train, WIDTH, 1 << 22, seed=1, group=Group())
    stream.start(Cursor.start(0))
    values = [value for batch in stream.everything() for value in batch.x[:, 2].tolist()]
    expected = toy_events(3000, 1)["x"].combine_chunks().to_numpy_ndarray()[:, 2]
    np.testing.assert_array_equal(np.sort(values), np.sort(expected))
    stream.close()
    judged = [len(batch) for batch in OrderedEvents(validation, 1 << 22, group=Group())]
    assert sum(judged) == 601
