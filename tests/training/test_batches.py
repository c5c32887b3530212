from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from mlaas_ray.training.batches import batches, share_out


def test_arrow_blocks_become_arrays_without_copies_even_when_sliced() -> None:
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    table = pa.table(
        {
            "x": pa.FixedShapeTensorArray.from_numpy_ndarray(x),
            "y": np.arange(10, dtype=np.float32),
            "weight": np.ones(10, dtype=np.float32),
        }
    )
    tables = [table.slice(2, 3), table.slice(0, 0), pa.concat_tables([table, table])]
    parts = [part for one in tables for part in batches(one)]
    assert [len(part) for part in parts] == [3, 10, 10]
    assert parts[0].x.tolist() == x[2:5].tolist()
    assert parts[0].y.tolist() == [2, 3, 4]
    assert np.shares_memory(parts[0].x, x)


@pytest.mark.parametrize(
    "ready", [[100], [100, 100], [7, 93], [0, 50], [1, 0, 1000], [3, 3, 3, 3, 3], [10_000, 1, 999, 17]]
)
@pytest.mark.parametrize("batch_size", [1, 7, 32, 256])
def test_all_ranks_end_together_and_give_all_they_have(ready: list[int], batch_size: int) -> None:
    plan = share_out(ready, batch_size, ended=[True] * len(ready), most=100_000)
    assert plan.sum(axis=0).tolist() == ready
    assert (plan >= 0).all()
    assert (plan.sum(axis=1)[:-1] == batch_size).all()
    assert 0 < plan[-1].sum() <= batch_size
    # each rank gives in proportion, to an event or two
    fair = np.outer(plan.sum(axis=1), np.array(ready) / sum(ready))
    assert np.abs(plan - fair).max() <= 2


def test_only_full_steps_are_planned_while_more_comes() -> None:
    plan = share_out([50, 60], 32, ended=[False, True], most=10)
    assert plan.sum(axis=1).tolist() == [32, 32, 32]
    assert share_out([10, 10], 32, ended=[False, True], most=10).shape == (0, 2)
    assert len(share_out([1000], 32, ended=[False], most=10)) == 10


def test_while_all_have_more_each_gives_the_same() -> None:
    plan = share_out([1000, 50, 300], 32, ended=[False, False, False], most=10)
    assert plan.tolist() == [[11, 11, 10]] * 4
