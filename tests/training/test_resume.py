"""A run that dies and goes on from its last checkpoint ends as one that did not, to the last bit.

The worker's loop runs here as in Ray Train's worker, but in a process of the tests, and what stands for
Ray Train only keeps the last checkpoint: so that it can die in many places in seconds. Whole trainings are
killed in tests/workflows/test_kills.py.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest

from mlaas_ray.training.group import Group
from tests.training.conftest import WIDTH, toy_table, toy_values
from tests.training.test_frameworks import EXAMPLE

# The first is more than a small window; altogether 33 steps of 64, of which the last is short.
SIZES = (700, 300, 0, 500, 200, 400)
EPOCHS, EVERY = 4, 7
REPORTS = EPOCHS * (33 // EVERY + 1)
# Memory for all events; for two windows of them; for less than half, so that every epoch is read.
MEMORY = {"kept": 1 << 20, "two windows": 80_000, "read again": 40_000}


class Blocks:
    """Events in blocks of uneven sizes, made anew whenever they are read."""

    def __init__(self, seed: int, sizes: Sequence[int]) -> None:
        self.seed, self.sizes = seed, sizes

    def prepare(self) -> None: ...

    def blocks(self, epoch: int) -> int:
        return len(self.sizes)

    def tables(self, epoch: int, blocks: Sequence[int]) -> Iterator[pa.Table]:
        for block in blocks:
            size = self.sizes[block]
            yield toy_table(max(2, size), self.seed + block).slice(0, size)


class DiedError(Exception):
    """What ends a run."""


class Storage:
    """Stands for Ray Train: keeps the last checkpoint, and lets all ranks die together at some reports."""

    def __init__(self, folder: Path, deaths: Collection[int], ranks: int) -> None:
        self.folder = folder
        self.deaths = deaths
        self.reports = 0
        self.last: Any = None
        self.barrier = threading.Barrier(ranks, self._count)

    def _count(self) -> None:
        self.reports += 1

    def get_checkpoint(self) -> Any:
        return self.last

    def report(self, metrics: Any, checkpoint: Any = None) -> None:
        from ray.train import Checkpoint

        if checkpoint is not None:
            place = self.folder / str(self.reports)
            shutil.copytree(checkpoint.path, place)
            self.last = Checkpoint.from_directory(place)
        self.barrier.wait(60)
        if self.reports in self.deaths:
            raise DiedError


class Threads(Group):
    """One of some ranks that are threads of one process."""

    def __init__(self, rank: int, size: int, said: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, size)
        self._said, self._barrier = said, barrier

    def gather_objects(self, value: Any) -> list[Any]:
        self._said[self.rank] = value
        self._barrier.wait(60)
        said = list(self._said)
        self._barrier.wait(60)
        return said

    def gather(self, values: list[int]) -> Any:
        return np.array(self.gather_objects(values), np.int64).reshape(self.size, len(values))

    def from_first_object(self, value: Any) -> Any:
        return self.gather_objects(value)[0]

    def sum(self, values: Any) -> Any:
        return np.sum(self.gather_objects(values), axis=0, dtype=np.float32)

    def leave(self) -> None: ...


def outcome(framework: str, deaths: Collection[int], ranks: int, settings: dict[str, Any]) -> Any:
    """Train, and go on after each death; return what the epochs came to, and answers at the end."""
    from mlaas_ray.core import Feature, FeatureSpec, Statistics
    from mlaas_ray.core.task import Task
    from mlaas_ray.training import TrainSettings, find_framework, load_framework, loop
    from mlaas_ray.training.frameworks import find_model
    from mlaas_ray.training.settings import Weighting

    x, _ = toy_values(4000, 0)
    columns = [Feature(name=f"v{i}", kind="flat", statistics=Statistics.of(x[:, i])) for i in range(WIDTH)]
    source = find_framework(framework)
    chosen = load_framework(source)
    run = loop.Run(
        framework=source,
        model=find_model(None, chosen),
        options={"hidden": (64, 64), "dropout": 0.2} if framework in ("torch", "keras") else {},
        features=FeatureSpec.of(columns),
        task=Task(),
        settings=TrainSettings(
            **{
                "batch_size": 64,
                "epochs": EPOCHS,
                "cpus_per_worker": 1,
                "checkpoint": {"every_steps": EVERY},
                "early_stopping": {"patience": EPOCHS},
                **settings,
            }
        ).filled(chosen.defaults),
        weighting=Weighting((1.0, 0.7)),
        seed=5,
        train=Blocks(100, SIZES),
        validation=Blocks(200, (300, 301)),
        expected=sum(SIZES),
    )
    group, found = threading.local(), []

    def work(rank: int, said: list[Any], barrier: threading.Barrier) -> None:
        group.own = Threads(rank, ranks, said, barrier) if ranks > 1 else Group()
        try:
            with contextlib.suppress(DiedError):
                loop.train_worker({"run": run})
        except BaseException:
            barrier.abort()  # the others need not wait
            raise

    def finish(worker: Any) -> None:
        if worker.group.rank == 0:
            told = ("loss", "validation_loss", "scores", "learning_rate")
            history = [{name: entry[name] for name in told} for entry in worker.progress.history]
            found.append((history, worker.progress.best, worker.network.predict(x[:100]).tolist()))

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.multiple(loop, Group=mock.Mock(joined=lambda _: group.own)),
        mock.patch.object(loop._Worker, "_finish", finish),
    ):  # the export takes seconds, and comes after all
        storage = Storage(Path(folder), deaths, ranks)
        with mock.patch.multiple("ray.train", report=storage.report, get_checkpoint=storage.get_checkpoint):
            while not found:
                said, barrier = [None] * ranks, threading.Barrier(ranks)
                threads = [
                    threading.Thread(target=work, args=(rank, said, barrier)) for rank in range(1, ranks)
                ]
                for thread in threads:
                    thread.start()
                work(0, said, barrier)
                for thread in threads:
                    thread.join()
        return storage.reports, found[0]


def outcomes(framework: str, ranks: int, settings: dict[str, Any], deaths: Any) -> Any:
    """Return what a run came to that did not die, and what each came to that died so."""
    undisturbed = outcome(framework, (), ranks, settings)
    return undisturbed, [outcome(framework, each, ranks, settings) for each in deaths]


def check(found: Any, reports: int) -> None:
    undisturbed, disturbed = found
    assert undisturbed[0] == reports
    assert len(undisturbed[1][0]) == EPOCHS
    for each in disturbed:
        assert each == undisturbed


ALL = range(1, REPORTS)
# in the first epoch, in later ones, and at an epoch's end; several times; after every checkpoint
DEATHS = [(2,), (6,), (8,), (14,), (10,), (3, 9, 13), ALL]


@pytest.mark.parametrize("memory", MEMORY.values(), ids=MEMORY)
def test_a_network_of_torch(in_a_process: Callable[..., Any], memory: int) -> None:
    check(in_a_process("torch", outcomes, "torch", 1, {"shuffle_bytes": memory}, DEATHS), REPORTS)


@pytest.mark.parametrize("memory", MEMORY.values(), ids=MEMORY)
def test_a_network_of_keras(in_a_process: Callable[..., Any], memory: int) -> None:
    check(in_a_process("keras", outcomes, "keras", 1, {"shuffle_bytes": memory}, [(8,), (3, 14)]), REPORTS)


@pytest.mark.parametrize("memory", [1 << 20, 1024], ids=["kept", "read again"])
def test_a_forest(in_a_process: Callable[..., Any], memory: int) -> None:
    drawn = {"trees_per_epoch": 5, "subsample": 0.5, "colsample_bytree": 0.6}
    settings = {"shuffle_bytes": memory, "parameters": drawn}
    check(in_a_process("xgboost", outcomes, "xgboost", 1, settings, [(1,), (2,), (1, 2, 3)]), EPOCHS)


@pytest.mark.parametrize("memory", MEMORY.values(), ids=MEMORY)
@pytest.mark.parametrize("ranks", [2, 3])
def test_some_workers(in_a_process: Callable[..., Any], ranks: int, memory: int) -> None:
    settings = {"shuffle_bytes": memory // ranks}
    check(in_a_process(EXAMPLE, outcomes, EXAMPLE, ranks, settings, DEATHS), REPORTS)


def test_a_schedule_that_looks_at_the_losses(in_a_process: Callable[..., Any]) -> None:
    settings = {"schedule": {"kind": "plateau", "every": 1, "factor": 0.5}, "learning_rate": 0.1}
    check(in_a_process("torch", outcomes, "torch", 1, settings, [(14,), ALL]), REPORTS)
