"""An epoch of steps, on this process alone: every event once, weights, checkpoints, losses that are none."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.task import Task
from mlaas_ray.training.batches import Batch, Floats
from mlaas_ray.training.cursor import Cursor
from mlaas_ray.training.framework import Network
from mlaas_ray.training.group import Group
from mlaas_ray.training.metrics import scores_of
from mlaas_ray.training.settings import TrainSettings, Weighting
from mlaas_ray.training.steps import Epoch
from mlaas_ray.training.stream import EventStream
from tests.training.test_stream import ROW, Numbered


class Watched(Network):
    """Learns nothing, and remembers what it was given."""

    def __init__(self, answer: float = 0.5) -> None:
        self.answer = answer
        self.sizes: list[int] = []
        self.totals: list[int] = []
        self.weights: list[float] = []
        self.rates: list[float] = []
        self.staged = 0

    def stage(self, batch: Batch) -> Batch:
        self.staged += 1
        return batch

    def step(self, batch: Batch, events: int) -> Floats:
        assert self.staged >= len(self.sizes) + 1
        self.sizes.append(len(batch))
        self.totals.append(events)
        self.weights += batch.weight.tolist()
        return np.full((len(batch), 1), self.answer, np.float32)

    def collect(self, steps: list[Any]) -> Floats:
        return np.concatenate(steps)

    def set_rate(self, learning_rate: float) -> None:
        self.rates.append(learning_rate)

    def predict(self, x: Floats) -> Floats:
        return np.full((len(x), 1), self.answer, np.float32)

    def save(self, folder: Path) -> None: ...

    def restore(self, folder: Path) -> None: ...

    def export(self, folder: Path) -> list[str]:
        return []


def epoch_of(events: int, **changes: Any) -> Epoch:
    stream = EventStream(Numbered([100] * (events // 100)), 2, 500 * ROW, seed=1, group=Group())
    stream.start(Cursor.start(0))
    task = Task(kind="regression", names=("n",), offset=(0.0,), scale=(1000.0,))
    return Epoch(
        **{
            "number": 0,
            "task": task,
            "stream": stream,
            "group": Group(),
            "batch_size": 30,
            "weighting": Weighting((1.0,)),
            "scores": scores_of(task),
            "rate": lambda seen: 1.0 / (1 + seen),
            **changes,
        }
    )


def test_every_event_is_in_one_step_and_only_the_last_is_short() -> None:
    network, epoch = Watched(), epoch_of(5000)
    network.learn(epoch)
    assert network.sizes == network.totals == [30] * 166 + [20]
    assert sorted(network.weights) == list(range(5000))
    assert (epoch.steps, epoch.events, epoch.scores.events) == (167, 5000, 5000)
    epoch.stream.close()


def test_the_step_size_follows_the_events() -> None:
    network, epoch = Watched(), epoch_of(5000)
    network.learn(epoch)
    possible = [1.0 / (1 + seen) for seen in range(0, 5000, 30)]
    assert network.rates == sorted(set(network.rates) & set(possible), reverse=True)
    assert network.rates[0] == 1.0
    # anew at least every 64 steps
    numbers = [possible.index(rate) for rate in network.rates] + [len(possible)]
    assert max(b - a for a, b in itertools.pairwise(numbers)) <= 64
    epoch.stream.close()


def test_checkpoints_come_at_multiples_of_steps() -> None:
    due: list[int] = []
    epoch = epoch_of(5000, every_steps=50)
    epoch.on_round = lambda wanted: due.append(epoch.steps) if wanted else None
    Watched().learn(epoch)
    assert due == [50, 100, 150]
    epoch.stream.close()


def test_weights_count_as_the_job_wants() -> None:
    y = np.array([0, 1, 1, 0], np.float32)
    weight = np.array([1, 2, -4, -8], np.float32)
    assert Weighting().of(y, weight).tolist() == [1, 2, -4, -8]
    assert Weighting((0.5,), "absolute").of(y, weight).tolist() == [0.5, 1, 2, 4]
    assert Weighting((10.0, 0.5), "zero").of(y, weight).tolist() == [10, 1, 0, 0]


def test_a_loss_that_is_no_number_is_told_with_its_step() -> None:
    with pytest.raises(ModelError, match="in step 1"):
        Watched(float("nan")).learn(epoch_of(1000))


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("cosine", [1.0, 0.854, 0.5, 0.146]),
        ("linear", [1.0, 0.75, 0.5, 0.25]),
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ({"kind": "step", "every": 2, "factor": 0.5}, [1.0, 1.0, 0.5, 0.5]),
        ({"kind": "constant", "warmup": 2}, [0.0, 0.5, 1.0, 1.0]),
    ],
)
def test_schedules(schedule: Any, rates: list[float]) -> None:
    settings = TrainSettings.of({"schedule": schedule}, "test")
    assert [settings.rates.rate(epoch, 4) for epoch in range(4)] == pytest.approx(rates, abs=1e-3)
