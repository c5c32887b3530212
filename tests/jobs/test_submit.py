"""The training job on a real cluster: ``ray start --head`` and ``ray job submit``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from mlaas_ray.workflows.toy import write_sample
from tests.serving import free_port

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
}


@pytest.fixture
def cluster() -> Iterator[str]:
    """A head node of its own, in a short folder (Ray's sockets live there); gives the dashboard's address."""
    dashboard = free_port()
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        options = {
            "node-ip-address": "127.0.0.1",
            "num-cpus": 3,
            "object-store-memory": 300_000_000,
            "temp-dir": folder,
            "port": 0,
            "dashboard-port": dashboard,
            # its default port may be another Ray's of this machine
            "dashboard-agent-listen-port": free_port(),
        }
        head = subprocess.Popen(
            [
                BIN / "ray",
                "start",
                "--head",
                "--block",
                *(f"--{name}={value}" for name, value in options.items()),
            ],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url = f"http://127.0.0.1:{dashboard}"
            _wait(f"{url}/api/jobs/")
            yield url
        finally:
            family = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
            for process in family:
                process.terminate()
            for process in psutil.wait_procs(family, timeout=3)[1]:
                process.kill()
            head.wait(60)


def test_a_job_submitted_to_a_cluster_trains_and_publishes(cluster: str, tmp_path: Path) -> None:
    files = {
        name: write_sample(tmp_path / f"{name}.root", name, 1000, seed=3) for name in ("signal", "background")
    }
    job = {
        "name": "submitted",
        "datasets": {
            name: {"files": str(path), "label": int(name == "signal")} for name, path in files.items()
        },
        "inputs": {"exclude": ["run", "event"]},
        "train": {"epochs": 1, "workers": 2},
        "storage": str(tmp_path / "runs"),
        "publish": {"repository": str(tmp_path / "models")},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    done = _submit(cluster, tmp_path / "job.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    result = json.loads(line)
    assert (result["name"], result["version"]) == ("submitted", 1)
    assert 0 < result["metrics"]["validation"]["auc"] <= 1
    assert (tmp_path / "models/submitted/1/package.json").is_file()


def _submit(address: str, job: Path) -> subprocess.CompletedProcess[str]:
    """Submit, once the node's agent, which starts after its dashboard, takes jobs."""
    command = [
        BIN / "ray",
        "job",
        "submit",
        "--address",
        address,
        "--",
        sys.executable,
        ROOT / "jobs/train.py",
        job,
    ]
    deadline = time.monotonic() + 200
    while True:
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


def _wait(url: str) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
    raise AssertionError(f"{url} did not answer")
