from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from mlaas_ray.training.batches import Batch, ShufflePool, blocks, share_out


def event_blocks(sizes: list[int], width: int = 3) -> list[Batch]:
    """Blocks whose events are numbered through in column 0, in y and in weight."""
    numbers = np.split(np.arange(sum(sizes), dtype=np.float32), np.cumsum(sizes)[:-1])
    return [Batch(np.repeat(n[:, None], width, axis=1), n.copy(), n.copy()) for n in numbers]


def epoch(pool: ShufflePool, batch_size: int) -> Iterator[Batch]:
    """What one rank alone does."""
    while True:
        pool.refill()
        plan = share_out([pool.ready], batch_size, last=pool.ended, most=4)
        if len(plan) == 0 and pool.ended:
            return
        yield from pool.take(plan[:, 0].tolist())


def start(pool: ShufflePool, sizes: list[int], seed: int = 1) -> None:
    pool.start(iter(event_blocks(sizes)), np.random.default_rng(seed))


def numbers(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([batch.y for batch in batches])


@pytest.mark.parametrize("capacity", [40, 64, 1000])
@pytest.mark.parametrize("sizes", [[1], [300], [100, 1, 99, 100], [7] * 50, [64, 64]])
def test_every_event_comes_once_and_only_the_last_batch_is_short(sizes: list[int], capacity: int) -> None:
    pool = ShufflePool(3, capacity * 28)
    assert pool.capacity == capacity
    start(pool, sizes)
    batches = list(epoch(pool, 16))
    assert sorted(numbers(batches)) == list(range(sum(sizes)))
    assert [len(batch) for batch in batches[:-1]] == [16] * ((sum(sizes) - 1) // 16)
    for batch in batches:
        assert (batch.x == batch.y[:, None]).all()
        assert (batch.weight == batch.y).all()


def test_the_order_depends_on_the_seed_alone() -> None:
    orders = []
    for seed in (1, 1, 2):
        pool = ShufflePool(3, 64 * 28)
        start(pool, [100, 100], seed)
        orders.append(numbers(list(epoch(pool, 16))).tolist())
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_a_pool_that_holds_everything_begins_again_from_memory() -> None:
    pool = ShufflePool(3, 1000 * 28)
    start(pool, [100, 50])
    first = numbers(list(epoch(pool, 16)))
    assert pool.whole
    pool.restart(np.random.default_rng(2))
    second = numbers(list(epoch(pool, 16)))
    assert sorted(second) == sorted(first) == list(range(150))
    assert second.tolist() != first.tolist()
    pool.restart(np.random.default_rng(1))
    assert numbers(list(epoch(pool, 16))).tolist() == first.tolist()


def test_a_pool_smaller_than_its_source_cannot_begin_again() -> None:
    pool = ShufflePool(3, 64 * 28)
    start(pool, [100])
    list(epoch(pool, 16))
    assert not pool.whole
    with pytest.raises(RuntimeError, match="does not hold all"):
        pool.restart(np.random.default_rng(1))


def test_blocks_of_one_class_each_come_out_mixed() -> None:
    pool = ShufflePool(3, 2000 * 28)
    start(pool, [1000, 1000])
    shares = [float((batch.y < 1000).mean()) for batch in epoch(pool, 100)]
    # binomial: deviation 0.05 in each of 20 batches
    assert max(abs(share - 0.5) for share in shares) < 0.25


def test_a_pool_gives_no_more_than_it_has() -> None:
    pool = ShufflePool(3, 64 * 28)
    start(pool, [10])
    pool.refill()
    with pytest.raises(ValueError, match="11 events wanted, 10 there"):
        list(pool.take([11]))


def test_arrow_blocks_become_arrays_without_copies_even_when_sliced() -> None:
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    table = pa.table(
        {
            "x": pa.FixedShapeTensorArray.from_numpy_ndarray(x),
            "y": np.arange(10, dtype=np.float32),
            "weight": np.ones(10, dtype=np.float32),
        }
    )
    parts = list(blocks([table.slice(2, 3), table.slice(0, 0), pa.concat_tables([table, table])]))
    assert [len(part) for part in parts] == [3, 10, 10]
    assert parts[0].x.tolist() == x[2:5].tolist()
    assert parts[0].y.tolist() == [2, 3, 4]
    assert np.shares_memory(parts[0].x, x)


@pytest.mark.parametrize(
    "ready", [[100], [100, 100], [7, 93], [0, 50], [1, 0, 1000], [3, 3, 3, 3, 3], [10_000, 1, 999, 17]]
)
@pytest.mark.parametrize("batch_size", [1, 7, 32, 256])
def test_all_ranks_end_together_and_give_all_they_have(ready: list[int], batch_size: int) -> None:
    plan = share_out(ready, batch_size, last=True, most=100_000)
    assert plan.sum(axis=0).tolist() == ready
    assert (plan >= 0).all()
    assert (plan.sum(axis=1)[:-1] == batch_size).all()
    assert 0 < plan[-1].sum() <= batch_size
    # each rank gives in proportion, to an event or two
    fair = np.outer(plan.sum(axis=1), np.array(ready) / sum(ready))
    assert np.abs(plan - fair).max() <= 2


def test_only_full_steps_are_planned_while_more_comes() -> None:
    plan = share_out([50, 60], 32, last=False, most=10)
    assert plan.sum(axis=1).tolist() == [32, 32, 32]
    assert share_out([10, 10], 32, last=False, most=10).shape == (0, 2)
    assert len(share_out([1000], 32, last=False, most=10)) == 10
