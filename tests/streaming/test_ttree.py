from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from mlaas_ray.core.columns import Columns, Jagged, to_awkward
from mlaas_ray.core.errors import (
    BranchMissingError,
    DataError,
    FileMissingError,
    FileUnreadableError,
    TreeMissingError,
)
from mlaas_ray.streaming.events import Events, open_events
from tests.streaming.conftest import damage


def read(events: Events, *names: str, start: int = 0, stop: int | None = None) -> Columns:
    return events.decode(events.fetch(names, start, events.entries if stop is None else stop))


def test_the_only_tree_needs_no_name_and_events_is_preferred(write_tree, tmp_path: Path) -> None:
    assert open_events(str(write_tree("one.root", tree="nominal"))).tree == "nominal"
    path = tmp_path / "two.root"
    with uproot.recreate(path) as file:
        for tree in ("Runs", "Events"):
            file.mktree(tree, {"x": np.float32}).extend({"x": np.ones(2, np.float32)})
    assert open_events(str(path)).tree == "Events"


def test_the_name_of_a_folder_stands_for_the_tree_in_it(tmp_path: Path) -> None:
    path = tmp_path / "folders.root"
    with uproot.recreate(path) as file:
        for tree in ("one/deep/tree", "two/a", "two/b", "three/Events", "three/Runs"):
            file.mktree(tree, {"x": np.float32}).extend({"x": np.ones(2, np.float32)})
        file["none/h"] = np.histogram([1.0, 2.0])
    for folder, tree in (
        ("one", "one/deep/tree"),
        ("one/deep", "one/deep/tree"),
        ("/one/deep/", "one/deep/tree"),
        ("three", "three/Events"),
    ):
        events = open_events(str(path), folder)
        assert (events.tree, events.entries) == (tree, 2)
    with pytest.raises(
        TreeMissingError, match=r"folder 'two' of .* holds several trees. Name one of: two/a, two/b"
    ):
        open_events(str(path), "two")
    with pytest.raises(TreeMissingError, match=r"holds no tree 'one/deep/tree/x'.*Its trees: one/deep/tree"):
        open_events(str(path), "one/deep/tree/x")
    with pytest.raises(TreeMissingError, match=r"folder 'none' of .* holds no tree"):
        open_events(str(path), "none")
    with pytest.raises(TreeMissingError, match=r"folders.root holds several trees"):
        open_events(str(path), "/")


def test_a_tree_may_lie_in_a_folder_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "nested.root"
    with uproot.recreate(path) as file:
        file.mktree("deep/down/tree", {"x": np.float32}).extend({"x": np.arange(3, dtype=np.float32)})
    assert read(open_events(str(path)), "x", start=1)["x"].tolist() == [1.0, 2.0]
    assert open_events(str(path), "/deep/down/tree").tree == "deep/down/tree"


def test_a_missing_tree_names_the_trees_there_are(write_tree) -> None:
    with pytest.raises(TreeMissingError, match=r"'Event' in|holds no tree 'Event'.*Its trees: Events"):
        open_events(str(write_tree()), "Event")


def test_several_trees_without_a_name_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "two.root"
    with uproot.recreate(path) as file:
        for tree in ("a", "b"):
            file.mktree(tree, {"x": np.float32})
    with pytest.raises(TreeMissingError, match="Name one of: a, b"):
        open_events(str(path))


def test_an_object_that_is_no_tree_is_called_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "histogram.root"
    with uproot.recreate(path) as file:
        file["h"] = np.histogram([1.0, 2.0])
    with pytest.raises(TreeMissingError, match=r"'h' in .* is a TH1D, no tree. It holds no tree, but h"):
        open_events(str(path), "h")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match=r"none.root"):
        open_events(str(tmp_path / "none.root"))


@pytest.mark.parametrize("content", [b"", b"<html>", b"x" * 1000])
def test_what_is_not_root_is_said_to_be_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.root"
    path.write_bytes(content)
    with pytest.raises(FileUnreadableError, match=r"page.root: it is not a ROOT file"):
        open_events(str(path))


def test_a_file_cut_short_is_named(write_tree) -> None:
    path = write_tree(events=5000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        FileUnreadableError, match=r"cannot read .*a.root: it is cut short: [\d,]+ bytes of [\d,]+"
    ):
        open_events(str(path), "Events")


def test_a_damaged_branch_is_named_and_the_others_still_read(write_tree) -> None:
    path = write_tree(events=2000, clusters=1)
    damage(path, "MET_pt")
    with pytest.raises(FileUnreadableError, match=r"a.root, tree 'Events', branch 'MET_pt'"):
        read(open_events(str(path)), "MET_pt", "Jet_pt")
    assert len(read(open_events(str(path)), "Jet_pt")["Jet_pt"]) == 2000


def test_a_file_that_was_replaced_is_opened_anew(write_tree) -> None:
    path = str(write_tree(events=10))
    assert open_events(path, "Events").entries == 10
    write_tree(events=20)
    assert open_events(path, "Events").entries == 20


@pytest.fixture
def corner(real_data: Path) -> Path:
    return real_data / "corner"


def test_what_cannot_be_columns_is_left_out_with_its_type(tmp_path: Path) -> None:
    path = tmp_path / "strings.root"
    with uproot.recreate(path) as file:
        file.mktree("t", {"name": "string", "x": "int32", "y": ("f4", (2, 3))}).extend(
            {"name": ["a", "b"], "x": np.zeros(2, np.int32), "y": np.arange(12, dtype="f4").reshape(2, 2, 3)}
        )
    events = open_events(str(path))
    assert {name: (branch.kind, branch.length) for name, branch in events.branches.items()} == {
        "x": ("flat", 1),
        "y": ("fixed", 6),
    }
    assert events.left_out == {"name": "char*"}
    assert read(events, "y", start=1)["y"].tolist() == [[6, 7, 8, 9, 10, 11]]
    with pytest.raises(
        DataError, match=r"'name' in .*, tree 't' is no numeric branch \(char\*\). Leave it out"
    ):
        events.fetch(["name"], 0, 1)
    with pytest.raises(BranchMissingError, match=r"no branch 'X' in .*Did you mean 'x'"):
        events.fetch(["X"], 0, 1)


def test_a_branch_says_who_counts_it_and_how_large_it_is(write_tree) -> None:
    events = open_events(str(write_tree(events=1000)))
    branch = events.branches["Jet_pt"]
    assert (branch.kind, branch.type, branch.counter) == ("jagged", "float[]", "nJet_pt")
    assert 4 * 1000 < branch.bytes < 20 * 1000
    counted = read(events, "nJet_pt", "Jet_pt", start=100, stop=700)
    assert isinstance(counted["Jet_pt"], Jagged)
    assert counted["nJet_pt"].tolist() == counted["Jet_pt"].counts.tolist()


def test_clusters_are_those_that_the_branches_share(corner: Path) -> None:
    events = open_events(str(corner / "uproot-small-dy-nooffsets.root"))
    assert events.boundaries(["Jet_pt", "Jet_jetId"]) == (0, 200, 397, 400, 501)
    assert events.boundaries(["Jet_pt", "MET_pt"]) == (0, 200, 400, 501)


def test_lists_of_lists_are_left_out_or_flattened_as_asked(corner: Path) -> None:
    path = str(corner / "tree_with_doubly_jagged.root")
    assert open_events(path).left_out["bi"] == "std::vector<std::vector<int32_t>>"
    with pytest.raises(DataError, match=r"'bi' .* set nested: flatten"):
        open_events(path).fetch(["bi"], 0, 1)
    with uproot.open(path) as file:
        want = ak.flatten(file["t1"]["bi"].array(), axis=2)
    assert to_awkward(read(open_events(path, nested="flatten"), "bi")["bi"]).tolist() == want.tolist()


def test_branches_in_branches_go_by_their_own_names_unless_two_bear_the_same(real_data: Path) -> None:
    events = open_events(str(real_data / "corner/uproot-nesteddirs.root"), "three/tree")
    assert "StlVecI16" in events.branches
    events = open_events(str(real_data / "other_real/edm4hep.root"), "podio_metadata")
    assert {name for name in events.branches if name.endswith("major")} == {
        "PodioBuildVersion/major",
        "edm4hep___Version/major",
    }


def test_of_two_branches_of_one_name_the_first_is_read(real_data: Path) -> None:
    events = open_events(str(real_data / "sigbkg/MVA_Radion_M-260.root"))
    assert events.branches["dR_genl1l2"].kind == "flat"
    assert events.left_out == {"dR_genl1l2;2": "float, another branch of that name"}


def test_the_leaves_of_a_leaf_list_are_columns(corner: Path) -> None:
    events = open_events(str(corner / "tree_with_custom_struct.root"))
    assert list(events.branches) == ["myints.MyInt1", "myints.MyInt2", "myints.MyInt3"]
    assert read(events, "myints.MyInt2", stop=3)["myints.MyInt2"].dtype == np.int32


def test_threads_that_want_the_same_file_share_what_one_of_them_opens(write_tree) -> None:
    path = str(write_tree())
    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(lambda _: open_events(path), range(8)))
    assert len(set(map(id, opened))) == 1


def test_a_header_written_by_a_version_unknown_is_no_fault(write_tree) -> None:
    """Some real files have a negative version; uproot reads them."""
    path = write_tree()
    content = bytearray(path.read_bytes())
    content[4:8] = (-937176).to_bytes(4, signed=True)
    path.write_bytes(content)
    assert open_events(str(path)).entries == 100


def test_a_large_file_has_a_longer_header(write_tree) -> None:
    path = write_tree()
    content = path.read_bytes()
    version, begin, end = (int.from_bytes(content[i : i + 4]) for i in (4, 8, 12))
    header = (
        b"root" + (version % 1_000_000 + 1_000_000).to_bytes(4) + begin.to_bytes(4) + (end + 1).to_bytes(8)
    )
    path.write_bytes(header + content[20:])
    with pytest.raises(FileUnreadableError, match=rf"cut short: {len(content):,} bytes of {end + 1:,}"):
        open_events(str(path))
