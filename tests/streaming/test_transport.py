from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mlaas_ray.core.errors import FileMissingError, FileUnreadableError
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.transport import Absence, listen, open_bytes
from tests.s3 import running_s3
from tests.webserver import WebServer, running_webserver

CONTENT = np.random.default_rng(1).bytes(12_000_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "a.bin").write_bytes(CONTENT)
    (folder / "empty.bin").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[str]:
    import fsspec

    with running_s3("bytes") as address:
        fsspec.filesystem("s3").pipe({f"bytes/{file.name}": file.read_bytes() for file in folder.iterdir()})
        yield address


@pytest.fixture
def web(folder: Path) -> Iterator[WebServer]:
    with running_webserver(folder) as server:
        yield server


@pytest.fixture(params=["local", pytest.param("xrootd", marks=pytest.mark.xrootd), "http", "s3"])
def place(request: pytest.FixtureRequest, folder: Path) -> str:
    """Where the folder is found, over each transport."""
    if request.param == "local":
        return str(folder)
    if request.param == "xrootd":
        return request.getfixturevalue("one_xrootd")
    return request.getfixturevalue("bucket") if request.param == "s3" else request.getfixturevalue("web").url


@pytest.fixture(scope="module")
def one_xrootd(folder: Path, xrootd_server: Callable[[Path], str]) -> str:
    return xrootd_server(folder)


def scattered(count: int) -> list[tuple[int, int]]:
    random = np.random.default_rng(count)
    starts = random.integers(0, len(CONTENT), count)
    return [(int(at), int(min(len(CONTENT), at + random.exponential(2000)))) for at in starts]


# Every transport keeps the same promises.


def test_ranges_come_in_the_order_asked_for_with_their_own_bytes(place: str) -> None:
    opened = open_bytes(Source(f"{place}/a.bin"))
    few = [(5_000_000, 5_000_100), (0, 10), (7, 7), (5, 2_999_999), (0, len(CONTENT))]
    many = scattered(60 if place.startswith(("http", "s3")) else 2500)  # more than one vectored read takes
    for ranges in (few, many, [], [(3, 3)]):
        got = opened.read(ranges)
        assert [bytes(part) for part in got] == [CONTENT[start:stop] for start, stop in ranges]
    assert opened.size == len(CONTENT)
    assert opened.bytes_read == sum(stop - start for start, stop in few + many)
    assert opened.requests >= 2
    assert opened.retries == opened.failovers == 0


def test_a_file_that_is_missing_is_named_and_not_asked_for_again(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FileMissingError, match=f"no such file: {place}/none.bin"):
        open_bytes(Source(f"{place}/none.bin"), attempts=3)
    assert "attempt" not in caplog.text


def test_a_range_beyond_the_end_is_refused(place: str) -> None:
    opened = open_bytes(Source(f"{place}/a.bin"))
    with pytest.raises(FileUnreadableError, match=r"a.bin: it has 12,000,000 bytes, and bytes 11,999,999 to"):
        opened.read([(0, 10), (11_999_999, 12_000_001)])


def test_an_empty_file_has_no_bytes(place: str) -> None:
    opened = open_bytes(Source(f"{place}/empty.bin"))
    assert opened.size == 0
    assert [bytes(part) for part in opened.read([(0, 0)])] == [b""]


def test_a_size_other_than_the_catalogues_is_refused(place: str) -> None:
    assert open_bytes(Source(f"{place}/a.bin", size=len(CONTENT))).size == len(CONTENT)
    with pytest.raises(FileUnreadableError, match=r"it has 12,000,000 bytes instead of 12,000,001"):
        open_bytes(Source(f"{place}/a.bin", size=12_000_001))


def test_bytes_outlive_the_open_file_which_can_be_read_again(place: str) -> None:
    opened = open_bytes(Source(f"{place}/a.bin"))
    [before] = opened.read([(100, 200)])
    opened.close()
    [after] = opened.read([(200, 300)])
    assert bytes(before) + bytes(after) == CONTENT[100:300]


def test_several_threads_read_one_file(place: str) -> None:
    opened = open_bytes(Source(f"{place}/a.bin"))
    wrong: list[int] = []

    def read(index: int) -> None:
        ranges = [(index * 1000 + step, index * 1000 + step + 50_000) for step in range(0, 400_000, 100_000)]
        if [bytes(part) for part in opened.read(ranges)] != [CONTENT[start:stop] for start, stop in ranges]:
            wrong.append(index)

    threads = [threading.Thread(target=read, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert opened.bytes_read == 8 * 4 * 50_000


# What goes wrong on the way.


def test_a_server_that_fails_is_asked_again_with_a_pause_each_time(
    web: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_bytes(Source(f"{web.url}/a.bin"))
    web.failures = 1
    begun = time.monotonic()
    assert bytes(opened.read([(10, 20)])[0]) == CONTENT[10:20]
    assert time.monotonic() - begun >= 1.0
    assert (opened.retries, opened.failovers) == (1, 0)
    assert "HTTP status 503" in caplog.text
    assert "attempt 2 of 4" in caplog.text


def test_attempts_are_counted(web: WebServer) -> None:
    web.failures = 10
    with pytest.raises(FileUnreadableError, match=r"a.bin: the server failed \(HTTP status 503"):
        open_bytes(Source(f"{web.url}/a.bin"), attempts=1)
    assert len(web.requests) == 2


def test_a_server_that_has_answered_is_waited_for(web: WebServer) -> None:
    told: list[Absence] = []
    listen(told.append)
    opened = open_bytes(Source(f"{web.url}/a.bin", patience=60), attempts=0)
    web.failures = 2
    assert bytes(opened.read([(10, 20)])[0]) == CONTENT[10:20]
    assert (opened.retries, opened.failovers) == (2, 0)
    server = web.url.removeprefix("http://")
    assert [(one.server, one.patience, one.over) for one in told] == [
        (server, 60, over) for over in (False, False, True)
    ]
    assert told[0].seconds < told[1].seconds <= told[2].seconds
    assert "HTTP status 503" in told[0].fault


def test_a_server_that_stays_away_is_given_up_when_patience_ends(web: WebServer) -> None:
    opened = open_bytes(Source(f"{web.url}/a.bin", patience=0.5), attempts=0)
    web.failures = 100
    with pytest.raises(FileUnreadableError, match=r"HTTP status 503 .*, for \d+ s\."):
        opened.read([(10, 20)])


def test_a_server_that_has_never_answered_is_not_waited_for() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.bin"
        begun = time.monotonic()
        with pytest.raises(FileUnreadableError, match="does not answer"):
            open_bytes(Source(url, patience=3600), attempts=0)
    assert time.monotonic() - begun < 600


def test_a_place_that_lacks_the_file_is_not_waited_for(web: WebServer) -> None:
    opened = open_bytes(Source(f"{web.url}/none.bin", (f"{web.url}/a.bin",), patience=3600), attempts=0)
    web.failures = 1
    assert bytes(opened.read([(10, 20)])[0]) == CONTENT[10:20]
    assert opened.retries == 1


def test_the_next_place_is_tried_and_all_are_named_when_none_gives_the_file(web: WebServer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        dead = f"http://127.0.0.1:{free.getsockname()[1]}"
        opened = open_bytes(Source(f"{dead}/a.bin", (f"{web.url}/none.bin", f"{web.url}/a.bin")), attempts=0)
        assert bytes(opened.read([(10, 20)])[0]) == CONTENT[10:20]
        assert (opened.retries, opened.failovers) == (0, 2)
        places = Source(f"{dead}/a.bin", (f"{web.url}/none.bin",))
        with pytest.raises(FileUnreadableError) as failed:
            open_bytes(places, attempts=0)
    assert f"{dead}/a.bin: the server does not answer" in failed.value.message
    assert f"{web.url}/none.bin: no such file" in failed.value.message


def test_a_copy_of_another_size_gives_way_to_the_next(web: WebServer) -> None:
    places = Source(f"{web.url}/empty.bin", (f"{web.url}/a.bin",), size=len(CONTENT))
    assert bytes(open_bytes(places).read([(0, 4)])[0]) == CONTENT[:4]


def test_a_server_without_ranges_is_told_before_its_files_are_downloaded(web: WebServer) -> None:
    web.whole = True
    with pytest.raises(FileUnreadableError, match="does not serve parts of files: copy it"):
        open_bytes(Source(f"{web.url}/a.bin"))


@pytest.mark.xrootd
def test_a_folder_is_no_file(folder: Path, one_xrootd: str) -> None:
    (folder / "sub").mkdir()
    for place in (str(folder), one_xrootd):
        with pytest.raises(FileUnreadableError, match="it is a folder"):
            open_bytes(Source(f"{place}/sub"))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["root", "http"])
def test_a_server_that_never_answers_is_given_up_in_time(scheme: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begun = time.monotonic()
        with pytest.raises(FileUnreadableError, match="does not answer"):
            open_bytes(Source(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}//a.bin"))
    # a server is given up after 10 to 30 s; without a limit it would be never
    assert time.monotonic() - begun < 120


def test_s3_without_its_library_gives_the_install_line() -> None:
    program = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from mlaas_ray.streaming.transport import open_bytes\n"
        "from mlaas_ray.streaming.source import Source\n"
        "try: open_bytes(Source('s3://bucket/a.root'))\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert "pip install 'mlaas-ray[s3]'" in done.stdout, done.stderr
