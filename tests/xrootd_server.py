"""A real XRootD server on loopback, as a fixture: ``xrootd_server(folder)`` -> ``root://127.0.0.1:PORT/``."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 60.0
_READY = re.compile(r":(\d+) initialization completed")


@contextlib.contextmanager
def running_xrootd(export: Path, port: int | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve a folder, read-only, while the block lasts.

    Args:
        export: The folder; its files must be readable by others when the tests run as root, for the server
            then runs as ``nobody``.
        port: That of a server which has ended, to be there again; None for one that is free.

    Yields:
        ``root://127.0.0.1:PORT/``: add an absolute path, ``url + "/sub/a.root"``, where ``/`` is the folder;
        and the server's process.
    """
    with contextlib.ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xrootd-")))
        # The server may not be allowed to walk down to the folder (pytest's are closed to other users), so it
        # gets the folder itself, open.
        folder = os.open(export, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, folder)
        identity: dict[str, Any] = {}
        if os.geteuid() == 0:  # as whom it refuses to run
            user = pwd.getpwnam("nobody")
            identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(state, user.pw_uid, user.pw_gid)
            open_to_all(export)
        config = state / "xrootd.cfg"
        config.write_text(
            f"xrd.port {port or 'any'}\nxrd.network nodnr\nall.role server\nall.export / r/o\n"
            f"oss.localroot /proc/self/fd/{folder}\nall.adminpath {state}\nall.pidpath {state}\n"
        )
        log = state / "log"
        for _ in range(3):  # it was seen to crash while it starts
            server = subprocess.Popen(
                ["xrootd", "-c", str(config), "-l", str(log)],
                cwd=state,
                env={"PATH": os.environ["PATH"]},
                pass_fds=[folder],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                **identity,
            )
            stack.callback(_stop, server)
            found = _port(server, log)
            if found is not None:
                break
        else:
            pytest.fail("xrootd crashed three times while it started")
        yield f"root://127.0.0.1:{found}/", server


@pytest.fixture(scope="session")
def xrootd_server() -> Iterator[Callable[[Path], str]]:
    """Start servers: call with a folder, get the base of its URLs. All are stopped after the last test."""
    if shutil.which("xrootd") is None:
        pytest.skip("no xrootd on this machine (Debian: apt install xrootd-server)")
    with contextlib.ExitStack() as servers:
        yield lambda export: servers.enter_context(running_xrootd(export))[0]


def open_to_all(folder: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o005 != 0o005:
        folder.chmod(mode | 0o055)


def _port(server: subprocess.Popen[bytes], log: Path) -> int | None:
    """Wait until the server says in its log which port it took; None when it crashed."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        ready = _READY.search(log.read_text()) if log.exists() else None
        if ready:
            return int(ready[1])
        time.sleep(0.05)
    if server.poll() == -signal.SIGSEGV:
        return None
    said = log.read_text() if log.exists() else "nothing"
    pytest.fail(f"xrootd did not start (exit status {server.poll()}); it said: {said[-2000:]}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
