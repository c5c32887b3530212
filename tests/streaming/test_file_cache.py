from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlaas_ray.core.errors import FileMissingError
from mlaas_ray.streaming import file_cache
from mlaas_ray.streaming.file_cache import cached
from mlaas_ray.streaming.settings import Cache
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.transport import open_bytes
from tests.webserver import WebServer, running_webserver

SIZE = 300_000


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """A server of ``/0`` to ``/3``, of ``SIZE`` bytes each."""
    folder = tmp_path_factory.mktemp("web")
    for number in range(4):
        (folder / str(number)).write_bytes(bytes([number]) * SIZE)
    with running_webserver(folder) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(folder=str(tmp_path / "cache"))


def remote(web: WebServer, number: int = 1, **known: object) -> Source:
    return Source(f"{web.url}/{number}", size=SIZE, **known)  # type: ignore[arg-type]


def content(source: Source) -> bytes:
    return bytes(open_bytes(source).read([(0, SIZE)])[0])


def copies(cache: Cache) -> list[str]:
    return sorted(path.name for path in Path(cache.folder).glob("*") if path.name != ".lock")


def test_a_remote_file_is_downloaded_once_and_then_read_here(web: WebServer, cache: Cache) -> None:
    source = remote(web, adler32=f"{zlib.adler32(bytes([1]) * SIZE):08x}")
    first = cached(source, cache)
    asked = len(web.requests)
    assert first.path == source.path
    assert first.local is not None
    assert cached(source, cache) == first
    assert content(first) == bytes([1]) * SIZE
    assert len(web.requests) == asked


def test_a_local_file_and_one_of_unknown_size(web: WebServer, cache: Cache, tmp_path: Path) -> None:
    local = Source(str(tmp_path / "a.root"))
    assert cached(local, cache) == local
    assert content(cached(Source(f"{web.url}/2"), cache)) == bytes([2]) * SIZE


def test_a_file_of_another_size_is_another_file(web: WebServer, cache: Cache) -> None:
    (web.folder / "new").write_bytes(b"a" * 10)
    cached(Source(f"{web.url}/new"), cache)
    (web.folder / "new").write_bytes(b"b" * 20)
    assert bytes(open_bytes(cached(Source(f"{web.url}/new"), cache)).read([(0, 20)])[0]) == b"b" * 20


def test_processes_share_one_download(web: WebServer, cache: Cache) -> None:
    before = len(web.requests)
    program = (
        "import sys; from mlaas_ray.streaming.file_cache import *\n"
        "print(cached(Source(sys.argv[1], size=int(sys.argv[2])), Cache(folder=sys.argv[3])).local)"
    )
    command = [sys.executable, "-c", program, f"{web.url}/3", str(SIZE), cache.folder]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate(timeout=240)[0] for process in running}
    assert len(said) == 1
    assert said != {"None\n"}
    assert len(copies(cache)) == 1
    ranges = [asked for path, asked in web.requests[before:] if path == "/3" and asked != "bytes=0-0"]
    assert ranges == [f"bytes=0-{SIZE - 1}"]


def test_the_copy_used_least_recently_makes_room(
    web: WebServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_cache, "HELD", 1)
    small = Cache(folder=cache.folder, max_bytes=2 * SIZE)
    zero, one = (cached(remote(web, number), small) for number in (0, 1))
    cached(remote(web, 0), small)
    two = cached(remote(web, 2), small)
    assert [os.path.exists(str(source.local)) for source in (zero, one, two)] == [True, False, True]
    # what was deleted is read where it lies, by whoever still believes in the copy
    assert content(one) == bytes([1]) * SIZE


def test_no_copy_in_use_is_deleted(web: WebServer, cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    small = Cache(folder=cache.folder, max_bytes=2 * SIZE)
    used = [cached(remote(web, number), small) for number in (0, 1)]
    assert cached(remote(web, 2), small) == remote(web, 2)
    assert "full of files in use" in caplog.text
    assert [content(source) for source in used] == [bytes([0]) * SIZE, bytes([1]) * SIZE]


def test_what_is_larger_than_the_cache_is_read_where_it_lies(web: WebServer, cache: Cache) -> None:
    assert cached(remote(web), Cache(folder=cache.folder, max_bytes=SIZE - 1)) == remote(web)


def test_a_full_disk_loses_nothing(web: WebServer, cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """A limit of this process stands in for the disk's: the kernel refuses the same call."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, before[1]))
    try:
        source = cached(remote(web), cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert source == remote(web)
    assert "is read where it lies, without a copy" in caplog.text
    assert copies(cache) == []
    assert content(source) == bytes([1]) * SIZE


@pytest.mark.parametrize(("number", "known"), [(1, {"adler32": "00000001"}), (9, {})])
def test_a_download_that_fails_leaves_nothing(
    web: WebServer, cache: Cache, number: int, known: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    source = remote(web, number, **known)
    with caplog.at_level(logging.WARNING):
        assert cached(source, cache) == source
    assert "without a copy" in caplog.text
    assert copies(cache) == []
    if not known:
        with pytest.raises(FileMissingError, match=f"{web.url}/9"):
            open_bytes(source)


def test_what_a_dead_process_left_is_written_anew(web: WebServer, cache: Cache) -> None:
    first = cached(remote(web), cache)
    left = Path(str(first.local)).with_suffix(".part")
    Path(str(first.local)).rename(left)
    left.write_bytes(b"half")
    assert content(cached(remote(web), cache)) == bytes([1]) * SIZE
    assert not left.exists()
