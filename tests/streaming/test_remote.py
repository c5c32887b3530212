from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlaas_ray.core.errors import FileMissingError, FileUnreadableError, TreeMissingError
from mlaas_ray.streaming import first_pass, read_root
from mlaas_ray.streaming.first_pass import Sample

pytestmark = [pytest.mark.xrootd, pytest.mark.usefixtures("ray_local")]

Serve = Callable[[Path], str]


def test_a_remote_file_gives_the_same_events_as_the_local_one(
    write_tree, tmp_path: Path, xrootd_server: Serve
) -> None:
    path = write_tree(events=3000, clusters=6)
    url = xrootd_server(tmp_path)
    local, remote = (
        read_root(name, "Events", branches=["MET_pt", "Jet_*"]).take_all() for name in (path, f"{url}/a.root")
    )
    assert len(remote) == 3000
    for mine, theirs in zip(sorted(local, key=_entry), sorted(remote, key=_entry), strict=True):
        np.testing.assert_array_equal(mine["x"], theirs["x"])


def test_a_remote_file_that_is_missing_is_named(tmp_path: Path, xrootd_server: Serve) -> None:
    url = xrootd_server(tmp_path)
    with pytest.raises(FileMissingError, match=r"no such file: root://.*/none.root"):
        first_pass([Sample(f"{url}/none.root")])


def test_a_remote_tree_that_is_missing_names_the_trees(
    write_tree, tmp_path: Path, xrootd_server: Serve
) -> None:
    write_tree()
    url = xrootd_server(tmp_path)
    with pytest.raises(TreeMissingError, match="Its trees: Events"):
        first_pass([Sample(f"{url}/a.root", "nominal")])


def test_a_server_that_is_not_there_is_reported_in_time() -> None:
    with pytest.raises(FileUnreadableError, match=r"root://127.0.0.1:1//a.root"):
        first_pass([Sample("root://127.0.0.1:1//a.root")])


def test_tensorflow_lives_beside_remote_reading_when_reading_comes_first(
    write_tree, tmp_path: Path, xrootd_server: Serve
) -> None:
    """In the other order the process dies with a segmentation fault (docs/decisions)."""
    write_tree()
    url = xrootd_server(tmp_path)
    program = (
        "from mlaas_ray.streaming.events import open_events; import sys; "
        "print(open_events(sys.argv[1]).entries); import tensorflow"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"{url}/a.root"], capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout.strip()) == (0, "100")


def _entry(row: dict[str, int]) -> int:
    return row["entry"]
