from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from mlaas_ray.workflows import connected
from mlaas_ray.workflows.cluster import durable


def test_output_goes_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert durable("runs") == tmp_path / "runs"
    assert durable("/data/runs") == Path("/data/runs")


def test_output_of_a_submitted_job_does_not_go_with_rays_copy_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert durable("runs") == tmp_path / "home" / "mlaas" / "runs"
    monkeypatch.setenv("MLAAS_HOME", str(tmp_path / "shared"))
    assert durable("runs") == tmp_path / "shared" / "runs"


@pytest.mark.usefixtures("ray_local")
def test_a_ray_that_runs_already_is_used_and_left_running() -> None:
    with connected("127.0.0.1:1"):
        assert ray.is_initialized()
    assert ray.is_initialized()


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path, samples: dict[str, Path]) -> None:
    command = [
        sys.executable,
        "-m",
        "mlaas_ray.cli.main",
        "inspect",
        str(samples["signal"]),
        "--address",
        "127.0.0.1:1",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "error: no Ray at 127.0.0.1:1: " in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_of_ones_own_ray_have_the_time_outs_of_xrootd_or_those_the_user_set() -> None:
    program = """
import os, ray
from mlaas_ray.workflows import connected
before = dict(os.environ)
names = ("XRD_REQUESTTIMEOUT", "XRD_CONNECTIONRETRY")
with connected("local"):
    print(*ray.get(ray.remote(lambda: [os.environ.get(name) for name in names]).remote()))
print({name for name in os.environ if name.startswith("XRD_")} - set(before))
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("XRD_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean | {"XRD_CONNECTIONRETRY": "7"},
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    assert done.stdout.splitlines() == ["60 7", "set()"]
