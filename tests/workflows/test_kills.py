"""Trainings that are killed in mid-epoch and at random moments, and gone on with: as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlaas_ray.core.package import ModelPackage

EPOCHS = 12
COMMAND = [sys.executable, "-m", "mlaas_ray.cli.main", "train"]
pytestmark = pytest.mark.soak


def changes(workers: int) -> dict[str, Any]:
    """A job of some seconds, with a checkpoint many times an epoch."""
    return {
        "epochs": EPOCHS,
        "batch_size": 16,
        "workers": workers,
        "cpus_per_worker": 0.5,
        "max_failures": 3,
        "checkpoint": {"every_steps": 50},
    }


@pytest.fixture
def undisturbed(write_job: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give the history of a run of so many workers that nobody kills; it is made once."""

    def history(workers: int, framework: str = "torch") -> list[tuple[float, float]]:
        if (workers, framework) not in _HISTORIES:
            storage = str(tmp_path_factory.mktemp("runs"))
            job = write_job(train=changes(workers), framework=framework, storage=storage)
            done = subprocess.run([*COMMAND, str(job), "--json"], check=True, capture_output=True, text=True)
            _HISTORIES[workers, framework] = losses(Path(json.loads(done.stdout)["package"]))
        return _HISTORIES[workers, framework]

    return history


_HISTORIES: dict[tuple[int, str], list[tuple[float, float]]] = {}


def losses(package: Path) -> list[tuple[float, float]]:
    return [(one["loss"], one["validation_loss"]) for one in ModelPackage(package).metrics["history"]]


def started(job: Path, epochs: int = 1) -> tuple[subprocess.Popen[str], Path]:
    """Start a training and wait until it has finished some epochs; return it and its run."""
    process = subprocess.Popen([*COMMAND, str(job), "--json"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    run = None
    for line in process.stderr:
        if found := re.match(r"run: (.*)", line):
            run = Path(found[1])
        epochs -= line.startswith("epoch")
        if epochs == 0:
            break
    assert run is not None
    return process, run


def family(process: subprocess.Popen[str], name: str = "") -> list[psutil.Process]:
    """Return the processes that a command started, of some name."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if name in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=30)


@pytest.mark.parametrize("number", range(10))
def test_a_training_killed_at_a_random_moment_ends_as_if_it_had_not_been(
    number: int, write_job: Callable[..., Path], undisturbed: Any
) -> None:
    workers = 1 if number < 7 else 2
    what = ("worker", "driver", "cluster")[number % 3]
    expected = undisturbed(workers)
    process, run = started(write_job(train=changes(workers)))
    time.sleep(random.Random(number).uniform(0, 3))
    ended = process.poll() is not None
    if what == "worker":
        kill(family(process, "RayTrainWorker")[:1])
        process.communicate(timeout=1200)
        assert process.returncode == 0
    else:
        everything = family(process)
        os.kill(process.pid, signal.SIGKILL)
        kill(everything if what == "cluster" else [])
        process.communicate(timeout=300)
        psutil.wait_procs(everything, timeout=300)
        done = subprocess.run([*COMMAND, "--resume", str(run), "--json"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert not ended, "the training was over before it could be killed"
    package = ModelPackage(run / "package")
    history = package.metrics["history"]
    per_epoch = package.metrics["training"]["events"]
    assert [one["epoch"] for one in history] == list(range(1, EPOCHS + 1))
    assert package.metrics["events"] == EPOCHS * per_epoch
    assert losses(run / "package") == expected


def checkpoint(run: Path) -> tuple[int, int]:
    """Return epoch (from 1) and step of a run's last checkpoint; none has (0, 0)."""
    found = [(0, 0)]
    for file in (run / "training").glob("checkpoint_*/state.json"):
        try:
            state = json.loads(file.read_text())
        except (OSError, ValueError):  # being written, or deleted
            continue
        found.append((state["cursor"]["epoch"] + 1, state["steps"]))
    return max(found)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("step", [50, 100, 150, 200])
@pytest.mark.parametrize(("framework", "workers"), [("torch", 1), ("torch", 2), ("keras", 1)])
def test_a_driver_killed_in_the_middle_of_a_late_epoch(
    framework: str, workers: int, step: int, write_job: Callable[..., Path], undisturbed: Any
) -> None:
    expected = undisturbed(workers, framework)
    process, run = started(write_job(train=changes(workers), framework=framework), epochs=5)
    while checkpoint(run) < (7, step):
        assert process.poll() is None, "the training was over before it could be killed"
        time.sleep(0.02)
    everything = family(process)
    os.kill(process.pid, signal.SIGKILL)
    kill(everything)  # else the workers go on until Ray sees that the driver is gone
    process.communicate(timeout=300)
    assert (7, step) <= checkpoint(run) < (8, 0)
    done = subprocess.run([*COMMAND, "--resume", str(run), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert losses(run / "package") == expected


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_driver_killed_while_ray_data_reads_costs_no_event(
    before: int, after: int, write_job: Callable[..., Path]
) -> None:
    # less memory than the events need, so that every epoch is a pass over the files
    settings = changes(before) | {"epochs": 4, "shuffle_bytes": 100_000, "early_stopping": False}
    process, run = started(write_job(train=settings, reading={"mode": "cluster"}))
    while checkpoint(run) < (2, 100):
        assert process.poll() is None, "the training was over before it could be killed"
        time.sleep(0.02)
    everything = family(process)
    os.kill(process.pid, signal.SIGKILL)
    kill(everything)
    process.communicate(timeout=300)
    assert (2, 100) <= checkpoint(run) < (3, 0)
    command = [*COMMAND, "--resume", str(run), "--set", f"train.workers={after}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = ModelPackage(run / "package").metrics
    events = metrics["training"]["events"]
    assert events + metrics["validation"]["events"] == 6_000
    assert metrics["events"] == 4 * events
    assert [one["epoch"] for one in metrics["history"]] == [1, 2, 3, 4]
    totals = closed(run, events)
    assert totals["train", 1]["read"] > 0
    # epochs after that, and the first one, which the finished network is asked about
    for epoch in (0, 2, 3):
        assert totals["train", epoch]["read"] == events


def closed(run: Path, events: int) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the sums of a run's record by reading and epoch, all of which must close."""
    record = json.loads((run / "record.json").read_text())
    totals = {(one["reading"], one["epoch"]): one["total"] for one in record["readings"]}
    for (name, _), total in totals.items():
        assert total["read"] + total["cut"] + total["elsewhere"] + total["earlier"] == total["planned"]
        assert total["not_reached"] == 0
        if not total["earlier"]:
            assert total["read"] == (events if name == "train" else 6_000 - events)
    return totals
