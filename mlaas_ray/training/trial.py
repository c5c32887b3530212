"""Trial: a network learns from a few made-up events and is exported, before any event is read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlaas_ray.core import FeatureSpec
from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.task import Task
from mlaas_ray.training.batches import Batch
from mlaas_ray.training.cursor import Cursor
from mlaas_ray.training.exporting import export
from mlaas_ray.training.framework import Framework, Network, Setup
from mlaas_ray.training.group import Group
from mlaas_ray.training.metrics import scores_of
from mlaas_ray.training.refusal import refusal
from mlaas_ray.training.settings import Weighting
from mlaas_ray.training.source import Source
from mlaas_ray.training.steps import Epoch
from mlaas_ray.training.stream import EventStream

# Events made up, or fewer of very many columns.
_EVENTS, _VALUES = 256, 1 << 21
# So small a step that the network stays what it is.
_RATE = 1e-6


def build(framework: Framework, setup: Setup) -> Network:
    """Make the network, on one process alone."""
    framework.prepare(threads=1, seed=0, precision="float32")
    return framework.network(replace(setup, group=Group()))


def attempt(framework: Framework, setup: Setup, source: Source) -> None:
    """Build a network, let it learn for two steps, export it, and compare the files with it.

    Args:
        framework: That of the job.
        setup: What the network is made from.
        source: The user's code, which is named if anything goes wrong.

    Raises:
        ModelError: When any of it fails.
    """
    setup = replace(setup, settings=setup.settings.model_copy(update={"gpus_per_worker": 0.0}))
    try:
        network = build(framework, setup)
        if not network.trial:
            return
        events = _events(setup.features, setup.task)
        _learn(network, events, setup, source)
        with tempfile.TemporaryDirectory() as folder:
            export(framework, network, Path(folder), events.x, source)
    except Exception as error:
        raise refusal(source, error, "the network cannot be trained:") from None


def _events(features: FeatureSpec, task: Task) -> Batch:
    """Make up events whose first value tells the class or target, with a fifth of the values missing."""
    random = np.random.default_rng(0)
    count = min(_EVENTS, max(16, _VALUES // features.width))
    values = random.normal(size=(count, features.width)).astype(np.float32)
    if task.classes:
        order = np.argsort(np.argsort(values[:, 0]))
        y = (order * task.classes // count).astype(np.float32)
    else:
        y = np.outer(values[:, 0], task.scale or (1.0,)) + np.array(task.offset or (0.0,))
        y = y.reshape(count, *task.target_shape).astype(np.float32)
    offset, scale = features.affine()
    x = np.where(random.random(values.shape) < 0.2, np.nan, values / scale + offset).astype(np.float32)
    return Batch(x, y, np.ones(count, np.float32))


def _learn(network: Network, events: Batch, setup: Setup, source: Source) -> None:
    task, group = setup.task, Group()
    limit = 8 * events.x.nbytes
    stream = EventStream(_Given(events), setup.width, limit, targets=task.target_shape, seed=0, group=group)
    stream.start(Cursor.start(0))
    epoch = Epoch(
        number=0,
        task=task,
        stream=stream,
        group=group,
        batch_size=len(events) // 2 + 1,
        weighting=Weighting(),
        scores=scores_of(task),
        rate=lambda seen: _RATE,
        on_loss=lambda step: ModelError(
            f"{source.name}: the network's loss is not a number",
            "Look for logarithms, roots and divisions of 0",
        ),
    )
    try:
        network.learn(epoch)
    finally:
        stream.close()


class _Given:
    """Events in memory, as a source of one block."""

    def __init__(self, events: Batch) -> None:
        self._events = events

    def prepare(self) -> None:
        """Load nothing."""

    def blocks(self, epoch: int) -> int:
        """Return that there is one."""
        return 1

    def tables(self, epoch: int, blocks: Sequence[int]) -> Iterator[Any]:
        """Give the events once for each block."""
        count = len(self._events)
        y = self._events.y
        for _ in blocks:
            yield pa.table(
                {
                    "x": pa.FixedShapeTensorArray.from_numpy_ndarray(self._events.x),
                    "y": y if y.ndim == 1 else pa.FixedShapeTensorArray.from_numpy_ndarray(y),
                    "weight": self._events.weight,
                    "dataset": np.zeros(count, np.int32),
                    "file": np.zeros(count, np.int32),
                    "entry": np.arange(count),
                }
            )
