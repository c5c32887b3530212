"""Nodes of a cluster that die in the middle of an epoch that Ray Data reads: a reader's, the trainer's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot
import yaml

pytestmark = pytest.mark.soak

EPOCHS = 3
EVENTS = 80_000
# Of an event, beside its number; an epoch is 300 MB, more than Ray Data keeps in stores of 80 MB.
VALUES = 1200

# Writes down which events it learns from, and takes its time. What is tried beforehand is no actor.
MODEL = """
import os, time
import ray
from torch import nn

class Layers(nn.Sequential):
    def forward(self, x):
        if self.training and ray.get_runtime_context().get_actor_id():
            with open(f"{folder}/{{os.getpid()}}.numbers", "ab") as file:
                file.write(x[:, 0].numpy().astype("<i4").tobytes())
            time.sleep(0.03)
        return super().forward(x[:, 1:])

def model(n):
    return Layers(nn.Linear(n - 1, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())
"""

# A cluster of its own wants a process of its own.
SCRIPT = """
import contextlib, json, signal, sys, time
import psutil, ray
from ray.cluster_utils import Cluster
from mlaas_ray.workflows import Hooks, Job, train

victim, job, told = sys.argv[1:]  # a node that reads, one whose store has blocks, or one that trains
store = {"object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **store})
# the worker wants two CPUs, so that it has a node for itself
trainers = [cluster.add_node(num_cpus=2, **store) for _ in range(2 if victim == "trainer" else 1)]
readers = [cluster.add_node(num_cpus=1, **store) for _ in range(1 if victim == "trainer" else 2)]
nodes = trainers if victim == "trainer" else readers
ray.init(address=cluster.address, log_to_driver=False)
deaths, runs = [], []


def processes(node):
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


def named(process, name):
    try:
        return name in " ".join(process.cmdline())
    except psutil.Error:
        return False


def kill(name, told):
    for node in nodes:
        found = processes(node)
        if any(named(process, name) for process in found):
            for process in found:  # the raylet first, which starts no other then
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(found, timeout=30)
            deaths.append([time.strftime("%X"), told])
            return


def on_epoch(report):
    deadline = time.monotonic() + 60
    while victim == "reader" and report.epoch == 1 and not deaths and time.monotonic() < deadline:
        kill("ReadRoot", str(report))  # the next epoch's first events are read now
        time.sleep(0.02)


def on_step(report):
    if report.epoch == 2 and not deaths and victim != "reader":
        kill("RayTrainWorker" if victim == "trainer" else "IDLE", str(report))


hooks = Hooks(on_step=on_step, on_epoch=on_epoch, on_run=runs.append)
package = train(Job.load(job), progress=False, hooks=hooks)
with open(told, "w") as file:  # Ray prints of deaths on standard output
    json.dump({"deaths": deaths, "run": str(runs[0]), "metrics": package.metrics}, file)
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job on two files of events that have numbers."""
    random = np.random.default_rng(1)
    for name, numbers in zip(("signal", "background"), np.array_split(np.arange(EVENTS), 2), strict=True):
        with uproot.recreate(tmp_path / f"{name}.root", compression=None) as file:
            tree = file.mktree("Events", {"number": np.float32, "value": np.dtype((np.float32, (VALUES,)))})
            for part in np.array_split(numbers, 20):
                values = random.normal(name == "signal", 1, (len(part), VALUES)).astype(np.float32)
                tree.extend({"number": part.astype(np.float32), "value": values})
    model = tmp_path / "counts.py"
    model.write_text(MODEL.format(folder=tmp_path))
    content: dict[str, Any] = {
        "name": "nodes",
        "datasets": {
            "signal": {"files": str(tmp_path / "signal.root"), "label": 1},
            "background": {"files": str(tmp_path / "background.root"), "label": 0},
        },
        "inputs": {"include": ["number", "value"], "normalise": "none"},
        "model": {"name": str(model)},
        "reading": {"mode": "cluster"},
        "train": {
            "epochs": EPOCHS,
            "batch_size": 256,
            "cpus_per_worker": 2,
            "early_stopping": False,
            "shuffle_bytes": 20_000_000,
            "checkpoint": {"every_steps": 50},
        },
        "storage": str(tmp_path / "runs"),
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(("victim", "failures"), [("reader", 0), ("store", 0), ("trainer", 2)])
def test_every_event_once_an_epoch_although_a_node_dies(
    victim: str, failures: int, job: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load(job.read_text())
    content["train"]["max_failures"] = failures
    job.write_text(yaml.safe_dump(content))
    script, told = tmp_path / "script.py", tmp_path / "told.json"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), victim, str(job), str(told)],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    came = json.loads(told.read_text())
    assert len(came["deaths"]) == 1
    events = came["metrics"]["training"]["events"]
    assert came["metrics"]["events"] == EPOCHS * events
    assert events + came["metrics"]["validation"]["events"] == EVENTS
    logs = sorted(tmp_path.glob("*.numbers"), key=lambda path: path.stat().st_mtime)
    seen = [np.fromfile(path, "<i4") for path in logs]
    assert len(seen) == (2 if victim == "trainer" else 1)
    # whoever goes on begins at the last checkpoint: what came after it is seen again, and counts no more
    counted = np.concatenate([seen[0][: EPOCHS * events - len(seen[-1])] if seen[1:] else seen[0], *seen[1:]])
    assert len(counted) == EPOCHS * events
    for epoch in np.split(counted, EPOCHS):
        assert len(np.unique(epoch)) == events
    record = json.loads((Path(came["run"]) / "record.json").read_text())
    assert {one["epoch"] for one in record["readings"] if one["reading"] == "train"} == set(range(EPOCHS))
    for reading in record["readings"]:
        total = reading["total"]
        assert total["read"] == (events if reading["reading"] == "train" else EVENTS - events)
        assert total["read"] + total["cut"] + total["elsewhere"] == total["planned"]
