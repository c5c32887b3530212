"""A service that is ended while it starts: whenever it is, and however, nothing of it is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mlaas_ray.repository import Repository
from tests.serving import EXAMINED, free_port

MARK = "STARTED_BY_TEST"
MOMENTS = 20
SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGKILL, signal.SIGINT)


class Start:
    """A service that is being started, whose processes are known by a variable that they inherit."""

    def __init__(self, repository: Path, temporary: Path) -> None:
        self.mark, self.port = uuid.uuid4().hex, free_port()
        self.temporary = temporary
        own = {MARK: self.mark, "MLAAS_CACHE": str(EXAMINED), "TMPDIR": str(temporary)}
        command = [sys.executable, "-m", "mlaas_ray.cli.main", "serve", "--json", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--repository", str(repository)],
            env=os.environ | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def ended(self) -> None:
        """Wait for its end, and check that nothing is left."""
        self.process.wait(120)
        assert self.process.stdout is not None
        self.process.stdout.close()
        until(lambda: not self.processes())
        assert self.port not in {one.laddr.port for one in psutil.net_connections("tcp") if one.laddr}
        until(lambda: not list(self.temporary.glob("mlaas-service-*")))

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.soak
def test_whenever_a_start_is_ended_nothing_is_left(onnx_package, tmp_path):
    repository = Repository(tmp_path / "models")
    repository.publish(onnx_package)
    # Ray's and HAProxy's sockets lie below it, and their names must be short
    temporary = Path(f"/tmp/s{os.getpid()}")
    temporary.mkdir()
    try:
        begun = time.monotonic()
        whole = Start(repository.root, temporary)
        assert whole.process.stdout is not None
        assert whole.process.stdout.readline()
        took = time.monotonic() - begun
        whole.process.send_signal(signal.SIGHUP)
        whole.ended()
        for moment in range(MOMENTS):
            start = Start(repository.root, temporary)
            time.sleep(took * (moment + 1) / MOMENTS)
            start.process.send_signal(SIGNALS[moment % len(SIGNALS)])
            start.ended()
    finally:
        shutil.rmtree(temporary)  # with the logs of Ray
