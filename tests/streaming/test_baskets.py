from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from mlaas_ray.core.columns import Column, Jagged, from_awkward
from mlaas_ray.core.errors import FileUnreadableError
from mlaas_ray.streaming.baskets import BasketReader
from mlaas_ray.streaming.leaves import find_leaves

CODECS = {
    "none": None,
    "zlib": uproot.ZLIB(1),
    "lz4": uproot.LZ4(4),
    "zstd": uproot.ZSTD(5),
    "lzma": uproot.LZMA(1),
}


class Opened:
    """A tree, with uproot and with our reader."""

    def __init__(self, path: Path, tree: str = "Events") -> None:
        self.tree = uproot.open(path, object_cache=None, array_cache=None)[tree]
        self.bytes = memoryview(path.read_bytes())
        leaves = find_leaves(self.tree)
        self.branches = {name: leaf.branch for name, leaf in leaves.items() if not leaf.members}
        self.reader = BasketReader(self.branches, self.tree.num_entries, f"{path.name}, tree {tree!r}")
        self.ours = [name for name in self.branches if self.reader.can(name)]

    def read(self, names: Iterable[str], start: int, stop: int) -> dict[str, Column]:
        wanted = list(names)
        chunks = [self.bytes[a:b] for a, b in self.reader.ranges(wanted, start, stop)]
        return self.reader.decode(chunks, wanted, start, stop)

    def check(self, start: int, stop: int) -> None:
        """Compare all our branches with what uproot reads."""
        columns = self.read(self.ours, start, stop)
        for name, column in columns.items():
            array = self.branches[name].array(library="ak", entry_start=start, entry_stop=stop)
            assert_equal(column, from_awkward(array, name), name)


def assert_equal(column: Column, expected: Column, name: str) -> None:
    if isinstance(expected, Jagged):
        assert isinstance(column, Jagged), name
        np.testing.assert_array_equal(column.offsets, expected.offsets, name)
        column, expected = column.content, expected.content
    assert not isinstance(column, Jagged), name
    assert column.dtype.newbyteorder("=") == expected.dtype.newbyteorder("="), name
    np.testing.assert_array_equal(column, expected, name)


def write(path: Path, codec: Any, events: int = 1000, clusters: int = 3) -> Path:
    random = np.random.default_rng(1)
    counts = random.integers(0, 5, events)
    kinds = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
    arrays: dict[str, Any] = {}
    for kind in kinds:
        dtype = np.dtype(kind)
        values = random.integers(0, 2 if kind == "?" else 100, counts.sum()).astype(dtype)
        arrays[f"flat_{dtype.name}"] = random.integers(0, 2, events).astype(dtype)
        arrays[f"Jet_{dtype.name}"] = ak.unflatten(values, counts)
    with uproot.recreate(path, compression=codec) as file:
        types = {k: v.dtype if isinstance(v, np.ndarray) else v.type for k, v in arrays.items()}
        tree = file.mktree("Events", types)
        for part in np.array_split(np.arange(events), clusters):
            tree.extend({k: v[part[0] : part[-1] + 1] for k, v in arrays.items()})
    return path


@pytest.mark.parametrize("codec", CODECS)
def test_every_number_type_is_read_as_uproot_reads_it_from_every_codec(tmp_path: Path, codec: str) -> None:
    opened = Opened(write(tmp_path / "a.root", CODECS[codec]))
    assert len(opened.ours) == len(opened.branches) == 22 + 11
    for start, stop in [(0, 1000), (333, 335), (400, 900), (999, 1000), (500, 500)]:
        opened.check(start, stop)


def test_branches_of_one_counter_share_their_offsets_and_one_piece_of_memory(tmp_path: Path) -> None:
    opened = Opened(write(tmp_path / "a.root", uproot.ZLIB(1), events=3000))
    columns = opened.read(["Jet_float32", "flat_float32"], 100, 2900)
    both = opened.read(["Jet_float32", "nJet_float32"], 100, 2900)
    jets = both["Jet_float32"]
    assert isinstance(jets, Jagged)
    np.testing.assert_array_equal(jets.counts, both["nJet_float32"])
    first, second = columns.values()
    assert isinstance(first, Jagged)
    assert first.content.base is second.base


def test_threads_read_the_same_from_one_reader(tmp_path: Path) -> None:
    opened = Opened(write(tmp_path / "a.root", uproot.ZSTD(1)))
    expected = opened.read(opened.ours, 10, 990)
    with ThreadPoolExecutor(4) as pool:
        for columns in pool.map(lambda _: opened.read(opened.ours, 10, 990), range(12)):
            for name, column in columns.items():
                assert_equal(column, expected[name], name)


@pytest.mark.parametrize(
    "file",
    [
        pytest.param("sigbkg/ww.root", id="counter branches"),
        pytest.param("corner/uproot-HZZ-lzma.root", id="lzma"),
        pytest.param("corner/uproot-HZZ-zstd.root", id="zstd"),
        pytest.param("corner/uproot-small-dy-withoffsets.root", id="baskets that do not align"),
        pytest.param("other_real/treemaker.root", id="vectors"),
        pytest.param("corner/tree_with_clusters.root", id="clusters"),
        pytest.param("corner/uproot-empty.root", id="no entries"),
    ],
)
def test_real_files_are_read_as_uproot_reads_them(real_data: Path, file: str) -> None:
    check_file(real_data / file)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["sigbkg", "other_real"])
def test_all_real_files_are_read_as_uproot_reads_them(real_data: Path, folder: str) -> None:
    assert sum(check_file(path) for path in sorted((real_data / folder).glob("*.root"))) > 300


def check_file(path: Path) -> int:
    """Compare all trees of a file with uproot; return how many branches were ours."""
    ours = 0
    with uproot.open(path) as file:
        trees = [name for name, kind in file.classnames(cycle=False).items() if kind == "TTree"]
    for name in trees:
        opened = Opened(path, name)
        entries = opened.tree.num_entries
        opened.check(0, entries)
        opened.check(entries // 3, entries // 3 + entries // 5)
        ours += len(opened.ours)
    return ours


def test_lists_without_offsets_whose_counter_is_cut_elsewhere_are_read(real_data: Path) -> None:
    # uproot 5.7.7 fails on the first; the second holds the same events
    bare = Opened(real_data / "corner/uproot-small-dy-nooffsets.root", "tree")
    full = Opened(real_data / "corner/uproot-small-dy-withoffsets.root", "tree")
    assert bare.ours == full.ours
    for start, stop in [(0, 501), (200, 420)]:
        expected = full.read(full.ours, start, stop)
        for name, column in bare.read(bare.ours, start, stop).items():
            assert_equal(column, expected[name], name)


def test_what_is_no_plain_number_or_never_left_the_metadata_is_not_ours(real_data: Path) -> None:
    assert Opened(real_data / "corner/uproot-double32-float16.root", "tree").ours == []
    embedded = real_data / "nanoaod/nanoAOD_2015_CMS_Open_Data_ttbar.root"
    assert Opened(embedded).ours == []


def test_a_contradiction_names_file_tree_branch_and_entries(tmp_path: Path) -> None:
    opened = Opened(write(tmp_path / "a.root", None))
    names = ["flat_float32", "Jet_float32"]
    chunks = [bytearray(opened.bytes[a:b]) for a, b in opened.reader.ranges(names, 0, 1000)]
    chunks[0][6:10] = (7).to_bytes(4)  # of the counter: what the basket makes
    with pytest.raises(
        FileUnreadableError, match=r"a.root, tree 'Events', branch 'nJet_float32', entries 0 to 1000"
    ):
        opened.reader.decode([memoryview(chunk) for chunk in chunks], names, 0, 1000)


def test_a_counter_that_does_not_fit_its_lists_is_refused(tmp_path: Path) -> None:
    opened = Opened(write(tmp_path / "a.root", None))
    names = ["Jet_float32"]
    chunks = [bytearray(opened.bytes[a:b]) for a, b in opened.reader.ranges(names, 0, 1000)]
    chunks[0][-1] += 1
    with pytest.raises(
        FileUnreadableError, match=r"'Jet_float32', .* as many values as 'nJet_float32' counts"
    ):
        opened.reader.decode([memoryview(chunk) for chunk in chunks], names, 0, 1000)
