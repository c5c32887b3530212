"""XGBoost on events that come in many blocks: its trees are those of all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlaas_ray.core.errors import DataError
from tests.training.test_frameworks import events, network, task_of

TREES = {"max_depth": 3, "trees_per_epoch": 10, "subsample": 0.5}
# uneven, and some of them empty
BLOCKS = [300, 0, 17, 1200, 1, 450, 32]


class Blocks:
    """Events in blocks.

    Args:
        kind: Of the task.
        sizes: Of blocks.
        worse: Passes after which the first block lacks an event.
    """

    def __init__(self, kind: str, sizes: Sequence[int], worse: int | None = None) -> None:
        self.sizes = sizes
        self.ends = np.cumsum([0, *sizes])
        self.batch = events(int(self.ends[-1]), 3, kind)
        self.passes = 0
        self.worse = worse

    def prepare(self) -> None: ...

    def blocks(self, epoch: int) -> int:
        return len(self.sizes)

    def tables(self, epoch: int, blocks: Sequence[int]) -> Iterator[pa.Table]:
        from mlaas_ray.streaming.blocks import table_of

        self.passes += 1
        for block in blocks:
            part = slice(self.ends[block], self.ends[block + 1])
            count = self.sizes[block]
            ids = [np.zeros(count, np.int32), np.zeros(count, np.int32), np.arange(count, dtype=np.int64)]
            table = table_of(self.batch.x[part], self.batch.y[part], self.batch.weight[part], *ids)
            bad = self.worse is not None and self.passes > self.worse and block == 0
            yield table.slice(1) if bad else table


def learnt(
    kind: str,
    limit: int,
    ahead: bool,
    epochs: Sequence[int] = (0,),
    worse: int | None = None,
    parameters: Any = TREES,
) -> Any:
    """Grow trees on blocks that come by a stream; return the network and the source."""
    from mlaas_ray.training.cursor import Cursor
    from mlaas_ray.training.group import Group
    from mlaas_ray.training.metrics import scores_of
    from mlaas_ray.training.settings import Weighting
    from mlaas_ray.training.steps import Epoch
    from mlaas_ray.training.stream import EventStream

    task = task_of(kind)
    source = Blocks(kind, BLOCKS, worse)
    stream = EventStream(source, 3, limit, targets=task.target_shape, seed=1, group=Group())
    trees, _ = network("xgboost", kind, parameters=parameters)
    for number in epochs:
        stream.start(Cursor.start(number))
        if ahead:
            stream.read_ahead()
        epoch = Epoch(
            number=number,
            task=task,
            stream=stream,
            group=Group(),
            batch_size=50,
            weighting=Weighting((2.0, 0.5) if kind == "binary" else (1.0,)),
            scores=scores_of(task),
            rate=lambda seen: 0.3,
        )
        try:
            trees.learn(epoch)
        finally:
            stream.close()
    return trees, source


def plain(kind: str, batch: Any, target: int, epochs: int) -> Any:
    """Grow the same trees with XGBoost alone, on one array."""
    import xgboost

    task = task_of(kind)
    y, weight = batch.y, batch.weight
    if kind == "binary":
        weight = weight * np.where(y > 0.5, np.float32(0.5), np.float32(2.0))
    if task.kind == "regression":
        own = y.reshape(len(y), -1)[:, target].astype(np.float64)
        y = (own - task.offset[target]) / task.scale[target]
    objective = {"binary": "binary:logistic", "multiclass": "multi:softprob"}.get(kind, "reg:squarederror")
    parameters = {
        "objective": objective,
        "eta": 0.3,
        "nthread": 1,
        "max_depth": 3,
        "subsample": 0.5,
        **({"num_class": 3} if kind == "multiclass" else {}),
    }
    data = xgboost.QuantileDMatrix(batch.x, y, weight=weight)
    booster = None
    for number in range(epochs):
        own = {**parameters, "seed": 7 + number}
        booster = xgboost.train(own, data, num_boost_round=10, xgb_model=booster)
    return booster, data


def compared(kind: str, limit: int, ahead: bool) -> list[bool]:
    trees, source = learnt(kind, limit, ahead, (0, 1))
    same = []
    for target, (booster, data) in enumerate(zip(trees._boosters, trees._data, strict=True)):
        alone, whole = plain(kind, source.batch, target, 2)
        bins, expected = data.get_quantile_cut(), whole.get_quantile_cut()
        same += [np.array_equal(a, b) for a, b in zip(bins, expected, strict=True)]
        same.append(booster.get_dump(with_stats=True) == alone.get_dump(with_stats=True))
        same.append(len(set(booster.get_dump())) > 10)
    return same


@pytest.mark.parametrize("ahead", [False, True], ids=["", "read ahead"])
@pytest.mark.parametrize("limit", [1 << 20, 1 << 10], ids=["kept", "read again"])
@pytest.mark.parametrize("kind", ["binary", "multiclass", "targets"])
def test_bins_and_trees_are_those_of_all_events_in_one_array(
    in_a_process: Callable[..., Any], kind: str, limit: int, ahead: bool
) -> None:
    assert all(in_a_process("xgboost", compared, kind, limit, ahead))


def drawn(count: int) -> Any:
    """What each of a forest's trees has seen, when each epoch is one tree."""
    import json

    forest, _ = learnt("regression", 1 << 20, False, range(count), parameters={**TREES, "trees_per_epoch": 1})
    trees = json.loads(forest._boosters[0].save_raw("json").decode())["learner"]["gradient_booster"]["model"]
    return [tree["sum_hessian"][0] for tree in trees["trees"]]


def test_each_epoch_draws_other_rows(in_a_process: Callable[..., Any]) -> None:
    weights = in_a_process("xgboost", drawn, 5)
    assert len(set(weights)) == 5


def refused(worse: int) -> str:
    with pytest.raises(DataError) as caught:
        learnt("binary", 1 << 10, False, worse=worse)
    return str(caught.value)


# there are four passes
@pytest.mark.parametrize("worse", [1, 2, 3])
def test_files_that_change_while_they_are_sorted_into_bins_are_an_error(
    in_a_process: Callable[..., Any], worse: int
) -> None:
    said = in_a_process("xgboost", refused, worse)
    assert "block 0 held 300 events before, and 299 now. Train anew: the files" in said
