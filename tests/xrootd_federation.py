"""A real XRootD federation on loopback: a redirector, and data servers to be killed, stopped and started."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.xrootd_server import open_to_all

START_SECONDS = 120.0


class Node:
    """One node of the federation: xrootd, which speaks with clients, and cmsd, which speaks with other nodes.

    Args:
        name: Of the node.
        state: Folder in which it gets its own, for its configuration, logs and sockets.
        config: Its configuration but for what every node has.
        port: Of its xrootd.
        folder: Descriptor of the folder it serves.
        cms: Port of its cmsd, for the redirector.
    """

    def __init__(
        self, name: str, state: Path, config: str, port: int, folder: int, cms: int | None = None
    ) -> None:
        self.name, self.port = name, port
        self.is_redirector = cms is not None
        self._state, self._folder = state / name, folder
        self._state.mkdir()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._identity: dict[str, Any] = {}
        if os.geteuid() == 0:  # as whom they refuse to run
            user = pwd.getpwnam("nobody")
            self._identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self._state, user.pw_uid, user.pw_gid)
        self.config = self._state / "node.cfg"
        self.config.write_text(
            f"{config}all.export / r/o\noss.localroot /proc/self/fd/{folder}\nxrd.network nodnr\n"
            f"xrd.port {port}\nif exec cmsd\nxrd.port {cms or 'any'}\nfi\n"
            f"all.adminpath {self._state}\nall.pidpath {self._state}\n"
            # in seconds; the defaults are made for starting a whole site
            "xrootd.chksum max 2 adler32\n"
            "cms.delay startup 1 servers 1 lookup 1 full 1 suspend 1 service 1 discard 20 drop 5\n"
            "cms.ping 1 log 10 usage 1\n"
        )

    @property
    def running(self) -> bool:
        """Whether its processes were started, and not killed since."""
        return bool(self._processes)

    @property
    def address(self) -> str:
        """``host:port`` of its xrootd."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What its cmsd said."""
        path = self._state / self.name / "cmsd.log"  # because of -n
        return path.read_text() if path.exists() else ""

    def start(self) -> None:
        """Start both processes."""
        socket_of_cmsd = self._state / self.name / ".olb" / "olbd.admin"
        socket_of_cmsd.unlink(missing_ok=True)
        self._processes = [self._run("cmsd")]
        # an xrootd that does not find its cmsd looks again after ten seconds only
        wait_for(lambda: self.is_redirector or socket_of_cmsd.exists(), f"cmsd of {self.name}")
        self._processes.append(self._run("xrootd"))

    def _run(self, program: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [program, "-c", str(self.config), "-n", self.name, "-l", str(self._state / f"{program}.log")],
            cwd=self._state,
            env={"PATH": os.environ["PATH"]},
            pass_fds=[self._folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._identity,
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to both processes."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def kill(self) -> None:
        """End both processes at once."""
        self.signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()
        self._processes = []


class Federation:
    """A redirector and data servers that serve the same folder."""

    def __init__(self, redirector: Node, servers: list[Node]) -> None:
        self.redirector, self.servers = redirector, servers

    @property
    def url(self) -> str:
        """``root://127.0.0.1:PORT/`` of the redirector; add an absolute path."""
        return f"root://{self.redirector.address}/"

    def serving(self, address: str) -> Node:
        """Return the data server that has this address."""
        [found] = [server for server in self.servers if server.port == int(address.rpartition(":")[2])]
        return found

    def start(self) -> None:
        """Start what does not run, and wait until the redirector knows all data servers."""
        if not self.redirector.running:
            self.redirector.start()
            wait_for(lambda: "initialization completed" in self.redirector.log, "the redirector")
        known = len(self.redirector.log)
        started = [server for server in self.servers if not server.running]
        for server in started:
            server.start()
        for server in started:
            entry = f":{server.port} logged in"
            wait_for(lambda entry=entry: entry in self.redirector.log[known:], server.name)  # type: ignore[misc]
        wait_for(lambda: _located(self.redirector.address) == len(self.servers), "all servers")


@contextlib.contextmanager
def running_federation(export: Path, servers: int = 2) -> Iterator[Federation]:
    """Serve a folder from several data servers behind one redirector while the block lasts.

    Args:
        export: The folder; its files must be readable by others when the tests run as root.
        servers: How many.
    """
    with contextlib.ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="federation-")))
        folder = os.open(export, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, folder)
        cms, *ports = _free_ports(2 + servers)
        config = f"all.manager localhost:{cms}\n"
        redirector = Node("redirector", state, f"{config}all.role manager\n", ports[0], folder, cms)
        data = [
            Node(f"server{index}", state, f"{config}all.role server\n", port, folder)
            for index, port in enumerate(ports[1:])
        ]
        if os.geteuid() == 0:
            open_to_all(export)
            state.chmod(0o711)
        federation = Federation(redirector, data)
        for node in (redirector, *data):
            stack.callback(node.kill)
        federation.start()
        yield federation


@pytest.fixture(scope="session")
def xrootd_federation() -> Iterator[Callable[[Path], Federation]]:
    """Start federations: call with a folder. All are stopped after the last test."""
    if shutil.which("cmsd") is None:
        pytest.skip("no xrootd on this machine (Debian: apt install xrootd-server)")
    with contextlib.ExitStack() as federations:
        yield lambda export: federations.enter_context(running_federation(export))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so, or fail."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come in {START_SECONDS} s")
        time.sleep(0.02)


def _free_ports(count: int) -> list[int]:
    """Find ports that nobody has; servers must know each other's, and keep theirs when they start again."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def _located(address: str) -> int:
    """Ask a redirector how many data servers it knows."""
    from mlaas_ray.streaming.xrootd import load_xrootd

    client = load_xrootd()
    flags = client.flags.OpenFlags.REFRESH
    status, locations = client.FileSystem(f"root://{address}/").deeplocate("*", flags, timeout=5)
    return len(list(locations)) if status.ok else 0
