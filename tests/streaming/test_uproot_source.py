from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.transport import open_bytes
from mlaas_ray.streaming.uproot_source import HEAD, TAIL, uproot_source
from tests.webserver import running_webserver


def test_a_tree_read_through_a_server_is_the_one_uproot_reads_locally(write_tree, tmp_path: Path) -> None:
    path = write_tree(events=5000, clusters=7)
    expected = uproot.open(path)["Events"].arrays()
    with running_webserver(tmp_path) as web:
        for where in (str(path), f"{web.url}/a.root"):
            opened = open_bytes(Source(where))
            tree = uproot.open({where: None}, handler=uproot_source(opened))["Events"]
            assert ak.array_equal(tree.arrays(), expected)
            assert ak.array_equal(
                tree["Jet_pt"].array(entry_start=100, entry_stop=3000), expected["Jet_pt"][100:3000]
            )


@pytest.mark.xrootd
def test_an_rntuple_is_read_through_a_server(tmp_path: Path, xrootd_server: Callable[[Path], str]) -> None:
    values = np.arange(1000, dtype=np.float32)
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mkrntuple("events", {"x": values})
    opened = open_bytes(Source(xrootd_server(tmp_path) + "/a.root"))
    found = uproot.open({opened.path: None}, handler=uproot_source(opened))["events"]
    np.testing.assert_array_equal(ak.to_numpy(found.arrays()["x"]), values)


def test_opening_a_tree_takes_few_requests(write_tree, tmp_path: Path) -> None:
    path = write_tree(events=200_000, clusters=10)
    assert path.stat().st_size > 2 * (HEAD + TAIL)
    with running_webserver(tmp_path) as web:
        opened = open_bytes(Source(f"{web.url}/a.root"))
        tree = uproot.open({opened.path: None}, handler=uproot_source(opened))["Events"]
        assert tree.num_entries == 200_000
        assert len(tree.keys()) == 6
        assert len(web.requests) <= 4  # of them one for the size, and each end its own, which XRootD joins
        assert opened.bytes_read < HEAD + TAIL + 200_000


def test_a_file_that_is_no_root_file_is_told_by_uproot(tmp_path: Path) -> None:
    (tmp_path / "a.root").write_bytes(b"no such thing" * 1000)
    opened = open_bytes(Source(str(tmp_path / "a.root")))
    with pytest.raises(ValueError, match="not a ROOT file"):
        uproot.open({opened.path: None}, handler=uproot_source(opened))


def test_a_closed_file_is_read_no_more(write_tree) -> None:
    opened = open_bytes(Source(str(write_tree())))
    with uproot.open({opened.path: None}, handler=uproot_source(opened)) as file:
        tree = file["Events"]
    with pytest.raises(OSError, match="is closed"):
        tree["MET_pt"].array()
    assert opened.read([(0, 4)])[0] == b"root"  # which belongs to whoever opened it
