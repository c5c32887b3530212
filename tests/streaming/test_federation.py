"""Reading from a federation whose servers die, stop and come back: every byte arrives once, and in time."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import uproot

from mlaas_ray.core.errors import FileUnreadableError
from mlaas_ray.streaming.ahead import ahead
from mlaas_ray.streaming.checksum import checksum, verify
from mlaas_ray.streaming.events import open_events
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.transport import ByteSource, open_bytes
from mlaas_ray.streaming.uproot_source import uproot_source
from tests.xrootd_federation import Federation, Node

pytestmark = pytest.mark.xrootd

CONTENT = np.random.default_rng(2).bytes(20_000_000)
STEP = 200_000
ENTRIES = np.arange(100_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    (folder / "a.bin").write_bytes(CONTENT)
    with uproot.recreate(folder / "events.root") as file:
        tree = file.mktree("Events", {"entry": ENTRIES.dtype})
        for part in np.array_split(ENTRIES, 50):
            tree.extend({"entry": part})
    return folder


@pytest.fixture(scope="module")
def servers(folder: Path, xrootd_federation: Callable[[Path], Federation]) -> Federation:
    return xrootd_federation(folder)


@pytest.fixture
def federation(servers: Federation) -> Iterator[Federation]:
    """The module's federation, which has all its servers again after each test."""
    yield servers
    for node in (servers.redirector, *servers.servers):
        node.signal(signal.SIGCONT)
    servers.start()


def serving(federation: Federation, opened: ByteSource) -> Node:
    """The data server that an open file comes from."""
    return federation.serving(opened.server)  # type: ignore[attr-defined]  # of files of servers


def read_all(opened: ByteSource, halfway: Callable[[], None]) -> float:
    """Read the whole file in steps, do something halfway, and check every byte; return the longest step."""
    longest, steps = 0.0, range(0, len(CONTENT), STEP)
    for number, start in enumerate(steps):
        if number == len(steps) // 2:
            halfway()
        begun = time.monotonic()
        [data] = opened.read([(start, start + STEP)])
        longest = max(longest, time.monotonic() - begun)
        assert data == CONTENT[start : start + STEP]
    assert opened.bytes_read == len(CONTENT)
    return longest


def test_a_server_that_is_killed_in_the_middle_is_replaced_by_the_other(federation: Federation) -> None:
    opened = open_bytes(Source(f"{federation.url}/a.bin"))
    first = serving(federation, opened)
    read_all(opened, first.kill)
    assert serving(federation, opened) is not first
    assert opened.failovers == 1


def test_every_entry_arrives_once_when_one_server_after_the_other_is_killed_under_what_reads_ahead(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    events = open_events(Source(f"{federation.url}/events.root"))
    pieces = itertools.pairwise(events.boundaries(["entry"]))
    got = []
    for number, (piece, fetched) in enumerate(
        ahead(pieces, lambda piece: events.fetch(["entry"], *piece), size=lambda piece: 1)
    ):
        if number in (10, 25):  # so that the one it is read from is among them
            federation.start()
            federation.servers[number // 15].kill()
        got.append(events.decode(fetched)["entry"])
        assert len(got[-1]) == piece[1] - piece[0]
    assert len(got) == 50
    np.testing.assert_array_equal(np.concatenate(got), ENTRIES)
    assert "no longer" in caplog.text


def test_a_server_that_comes_back_is_found_again(federation: Federation) -> None:
    server = federation.servers[0]
    opened = open_bytes(Source(f"root://{server.address}//a.bin"))  # nobody else has it
    back = threading.Timer(3, federation.start)

    def halfway() -> None:
        server.kill()
        back.start()

    read_all(opened, halfway)
    back.join()


def test_a_file_that_was_open_survives_a_restart_of_its_server(federation: Federation) -> None:
    server = federation.servers[0]
    opened = open_bytes(Source(f"root://{server.address}//a.bin"))
    assert opened.read([(0, 10)])[0] == CONTENT[:10]
    server.kill()
    federation.start()
    assert opened.read([(10, 20)])[0] == CONTENT[10:20]


def test_a_redirector_that_is_gone_gives_way_to_the_next(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    dead, url = "root://127.0.0.1:1//a.bin", f"{federation.url}/a.bin"
    opened = open_bytes(Source(dead, (url,)), attempts=0)
    assert opened.read([(0, 10)])[0] == CONTENT[:10]
    assert (opened.retries, opened.failovers) == (0, 1)
    assert f"{dead}: the server does not answer" in caplog.text
    assert f"next is {url}" in caplog.text
    begun = time.monotonic()
    again = open_bytes(Source("root://127.0.0.1:1//events.root", (f"{federation.url}/events.root",)))
    assert time.monotonic() - begun < 9  # who waits again for the dead server waits 10 s
    assert uproot.open({again.path: None}, handler=uproot_source(again))["Events"].num_entries == 100_000


@pytest.mark.soak
def test_a_server_that_stops_in_the_middle_is_replaced_by_the_other(federation: Federation) -> None:
    opened = open_bytes(Source(f"{federation.url}/a.bin"))
    first = serving(federation, opened)
    assert read_all(opened, lambda: first.signal(signal.SIGSTOP)) < 120
    assert serving(federation, opened) is not first


@pytest.mark.soak
def test_the_only_server_is_given_up_in_time_when_it_stops(federation: Federation) -> None:
    server = federation.servers[0]
    opened = open_bytes(Source(f"root://{server.address}//a.bin"))
    begun = time.monotonic()
    with pytest.raises(FileUnreadableError, match="does not answer"):
        read_all(opened, lambda: server.signal(signal.SIGSTOP))
    assert time.monotonic() - begun < 120


def test_the_server_tells_the_checksum(federation: Federation, folder: Path) -> None:
    remote, local = Source(f"{federation.url}/a.bin"), Source(str(folder / "a.bin"))
    found = checksum(remote)
    assert found is not None
    assert found == checksum(local) == checksum(remote, thorough=True)
    assert verify(Source(remote.path, adler32=found.upper()))
    with pytest.raises(FileUnreadableError, match=f"checksum .* is {found}, and the catalogue has 0000abcd"):
        verify(Source(remote.path, adler32="abcd"))


def test_a_server_that_cannot_tell_the_checksum_is_read_only_when_asked(
    xrootd_server: Callable[[Path], str], folder: Path
) -> None:
    source = Source(f"{xrootd_server(folder)}/a.bin", adler32="abcd")
    assert checksum(source) is None
    assert not verify(source)
    with pytest.raises(FileUnreadableError, match="the catalogue has 0000abcd"):
        verify(source, thorough=True)
