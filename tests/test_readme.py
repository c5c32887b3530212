"""The README's way, followed word by word: the quickstart, then every block in its order."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serving import free_port

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# These set up and test the checkout this test runs in.
MAKE = ("make quickstart", "make test")
MARK = "STARTED_BY_TEST"


@dataclass
class Folder:
    path: Path
    environment: dict[str, str]
    port: int

    def run(self, line: str, timeout: float = 300) -> str:
        """Run one line of a shell block, or fail with all it printed."""
        done = subprocess.run(
            ["bash", "-ec", line],
            cwd=self.path,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """An empty folder with the commands of this environment, and a free port in place of 8083."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLAAS_"))
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        # inherited by whatever is started, so that it is known again
        MARK: uuid.uuid4().hex,
    }
    port = free_port()
    environment["MLAAS_URL"] = f"http://127.0.0.1:{port}"
    # Ray's sockets lie below it, and their names must be short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as temporary:
        # what a cluster leaves that was killed: Ray would join it, and wait without end
        (Path(temporary) / "ray").mkdir()
        (Path(temporary) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        environment["RAY_TMPDIR"] = temporary
        yield Folder(tmp_path_factory.mktemp("newcomer"), environment, port)


@pytest.fixture(scope="module")
def quickstarted(folder: Folder) -> dict[str, object]:
    output = folder.run(f"mlaas quickstart --json --events 2000 --port {folder.port}")
    assert not _left_running(folder), "the quickstart left processes running"
    return json.loads(output.splitlines()[-1])


def test_the_quickstart_goes_the_whole_way(quickstarted: dict[str, object], folder: Folder) -> None:
    assert quickstarted["auc"] > 0.6
    assert quickstarted["train_events_per_s"] > 0
    assert (quickstarted["model"], quickstarted["version"]) == ("quickstart", 1)
    assert quickstarted["prediction_keys"] == pytest.approx(quickstarted["prediction_event"], abs=1e-5)
    assert 0 < quickstarted["prediction_event"] < 1
    assert quickstarted["seconds"] > 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{folder.port}/health")


def test_every_command_and_block_works_in_order(quickstarted: dict[str, object], folder: Folder) -> None:
    blocks = BLOCK.findall(README.read_text().replace(":8083", f":{folder.port}"))
    assert {language for language, _ in blocks} == {"bash", "python", "yaml"}
    outputs = []
    with _background() as started:
        for language, text in blocks:
            if language == "yaml":
                name = re.match(r"# (\S+)\n", text)
                assert name, "a yaml block begins with its file's name"
                (folder.path / name[1]).write_text(text)
            elif language == "python":
                (folder.path / "block.py").write_text(text)
                outputs.append(folder.run("python block.py"))
            else:
                for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
                    if line in MAKE:
                        continue
                    if line.endswith("&"):
                        started.append(_serve(f"{line[:-1]} --port {folder.port}", folder))
                    else:
                        outputs.append(folder.run(line))
    printed = "\n".join(outputs)
    assert "(1024, 17)" in printed
    assert "higgs" in printed
    # curl's answer and the Python client's, to the same event
    answers = [float(number) for number in re.findall(r"^\[(0\.\d+(?:e-\d+)?)\]$", printed, re.MULTILINE)]
    assert len(answers) == 2
    assert answers[0] == pytest.approx(answers[1], abs=1e-6)


@contextmanager
def _background() -> Iterator[list[subprocess.Popen[bytes]]]:
    """End with Ctrl-C what is put into the list."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for process in started:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _serve(line: str, folder: Folder) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        line.split(),
        cwd=folder.path,
        env=folder.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{folder.port}/health").status_code == 200:
                return process
        except httpx.HTTPError:
            time.sleep(0.2)
    process.kill()
    raise AssertionError(f"{line} did not answer (exit status {process.poll()})")


def _left_running(folder: Folder) -> list[str]:
    """Name the processes that were started from the folder and are still there after a moment to end."""
    deadline = time.monotonic() + 60
    while left := [
        " ".join(process.cmdline())[:120] for process in psutil.process_iter() if _is_ours(process, folder)
    ]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return left


def _is_ours(process: psutil.Process, folder: Folder) -> bool:
    try:
        return process.environ().get(MARK) == folder.environment[MARK]
    except psutil.Error:
        return False
