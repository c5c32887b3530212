from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pytest
import uproot

from tests.xrootd_server import running_xrootd

pytestmark = pytest.mark.xrootd


def write_events(path: Path, values: np.ndarray) -> None:
    with uproot.recreate(path) as file:
        file.mktree("events", {"x": values.dtype}).extend({"x": values})


def test_uproot_reads_a_tree_from_the_server(xrootd_server: Callable[[Path], str], tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.float32)
    write_events(tmp_path / "a.root", values)
    url = xrootd_server(tmp_path) + "/a.root"
    with uproot.open(url, handler=uproot.source.fsspec.FSSpecSource) as file:
        np.testing.assert_array_equal(file["events"]["x"].array(library="np"), values)


def test_files_written_after_the_start_are_served_and_folders_can_be_listed(
    xrootd_server: Callable[[Path], str], tmp_path: Path
) -> None:
    url = xrootd_server(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "later.txt").write_text("hello")
    with fsspec.open(url + "/sub/later.txt", "rb") as file:
        assert file.read() == b"hello"
    filesystem, path = fsspec.core.url_to_fs(url + "/sub")
    assert [os.path.basename(name) for name in filesystem.ls(path, detail=False)] == ["later.txt"]


def test_two_servers_export_two_folders(xrootd_server: Callable[[Path], str], tmp_path: Path) -> None:
    urls = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name.txt").write_text(name)
        urls.append(xrootd_server(tmp_path / name))
    assert [fsspec.open(url + "/name.txt").open().read() for url in urls] == [b"one", b"two"]


def test_nothing_listens_any_more_after_the_block(
    xrootd_server: Callable[[Path], str], tmp_path: Path
) -> None:
    with running_xrootd(tmp_path) as (url, _):
        address = ("127.0.0.1", urlsplit(url).port)
        socket.create_connection(address, timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)
