"""Connections that ask for nothing: thousands of them shut nobody out, and none is kept for ever."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from mlaas_ray.inference.environment import FROM_ONE_ADDRESS, HEAD_S
from tests.serving import WIDTH

pytestmark = pytest.mark.soak

HALF = b"POST /json HTTP/1.1\r\nHost: mlaas\r\nContent-"
HELD = 10_000


@pytest.fixture(autouse=True)
def many_files() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most < HELD + 2000:
        pytest.skip(f"a process may open {most} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def held(place: tuple[str, int], count: int, address: str, content: bytes) -> Iterator[list[socket.socket]]:
    """Hold so many connections from an address of this machine, each with the same beginning of a request."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            with contextlib.suppress(ConnectionError):  # closed already: it was one too many
                found.append(stack.enter_context(socket.create_connection(place, 60, (address, 0))))
                found[-1].sendall(content)
        yield found


def still_open(connections: list[socket.socket], within_s: float) -> int:
    """Wait until all have been closed by the other side, or so long; return how many are open."""
    with selectors.DefaultSelector() as selector:
        for one in connections:
            one.setblocking(False)
            selector.register(one, selectors.EVENT_READ)
        end = time.monotonic() + within_s
        while selector.get_map() and time.monotonic() < end:
            for key, _ in selector.select(0.5):
                try:
                    more = bool(key.fileobj.recv(1000))  # type: ignore[union-attr]
                except OSError:
                    more = False
                if not more:
                    selector.unregister(key.fileobj)
        return len(selector.get_map())


def asked(served, times: int = 50) -> None:
    row = {"model": "toy", "values": [1.0] * WIDTH}
    for _ in range(times):
        # each on a connection of its own
        assert httpx.post(f"{served.url}/json", json=row, timeout=30, trust_env=False).status_code == 200


def test_half_sent_heads_shut_nobody_out_and_are_closed(served):
    url = urlsplit(served.url)
    with held((url.hostname, url.port), FROM_ONE_ADDRESS + 500, "127.0.0.2", HALF) as connections:
        asked(served)
        # those beyond what one address may have are closed at once
        assert 0 < still_open(connections, 3) <= FROM_ONE_ADDRESS
        assert still_open(connections, 3 * HEAD_S) == 0
    asked(served)


def test_ten_thousand_connections_are_held_while_others_are_answered(served):
    url = urlsplit(served.url)
    with contextlib.ExitStack() as stack:
        connections = []
        for number in range(4):
            each = held((url.hostname, url.port), HELD // 4, f"127.0.0.{number + 2}", b"")
            connections += stack.enter_context(each)
        asked(served)
        assert still_open(connections, 3 * HEAD_S) == 0
    asked(served)
