from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import uproot

from mlaas_ray.core.errors import (
    BranchMissingError,
    DataError,
    FileMissingError,
    FileUnreadableError,
    TreeMissingError,
)
from mlaas_ray.streaming.trees import branch_kinds, choose, open_tree, read_arrays
from tests.streaming.conftest import damage


def test_the_only_tree_needs_no_name_and_events_is_preferred(write_tree, tmp_path: Path) -> None:
    assert open_tree(str(write_tree("one.root", tree="nominal"))).name == "nominal"
    path = tmp_path / "two.root"
    with uproot.recreate(path) as file:
        for tree in ("Runs", "Events"):
            file.mktree(tree, {"x": np.float32}).extend({"x": np.ones(2, np.float32)})
    assert open_tree(str(path)).name == "Events"


def test_a_tree_may_lie_in_a_folder_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "nested.root"
    with uproot.recreate(path) as file:
        file.mktree("deep/down/tree", {"x": np.float32}).extend({"x": np.arange(3, dtype=np.float32)})
    arrays = read_arrays(str(path), "deep/down/tree", ["x"], 1, 3)
    assert arrays["x"].tolist() == [1.0, 2.0]


def test_a_missing_tree_names_the_trees_there_are(write_tree) -> None:
    with pytest.raises(TreeMissingError, match=r"'Event' in|holds no tree 'Event'.*Its trees: Events"):
        open_tree(str(write_tree()), "Event")


def test_several_trees_without_a_name_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "two.root"
    with uproot.recreate(path) as file:
        for tree in ("a", "b"):
            file.mktree(tree, {"x": np.float32})
    with pytest.raises(TreeMissingError, match="Name one of: a, b"):
        open_tree(str(path))


def test_an_object_that_is_no_tree_is_called_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "histogram.root"
    with uproot.recreate(path) as file:
        file["h"] = np.histogram([1.0, 2.0])
    with pytest.raises(TreeMissingError, match=r"'h' in .* is a TH1D"):
        open_tree(str(path), "h")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match=r"none.root"):
        open_tree(str(tmp_path / "none.root"))


@pytest.mark.parametrize("content", [b"", b"<html>", b"x" * 1000])
def test_what_is_not_root_is_said_to_be_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.root"
    path.write_bytes(content)
    with pytest.raises(FileUnreadableError, match=r"page.root: it is not a ROOT file"):
        open_tree(str(path))


def test_a_file_cut_short_is_named(write_tree) -> None:
    path = write_tree(events=5000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        FileUnreadableError, match=r"cannot read .*a.root: it is cut short: [\d,]+ bytes of [\d,]+"
    ):
        open_tree(str(path), "Events")


def test_a_damaged_branch_is_named_and_the_others_still_read(write_tree) -> None:
    path = write_tree(events=2000, clusters=1)
    damage(path, "MET_pt")
    with pytest.raises(FileUnreadableError, match=r"a.root, tree 'Events', branch 'MET_pt'"):
        read_arrays(str(path), "Events", ["MET_pt", "Jet_pt"], 0, 2000)
    assert len(read_arrays(str(path), "Events", ["Jet_pt"], 0, 2000)["Jet_pt"]) == 2000


def test_a_file_that_was_replaced_is_opened_anew(write_tree) -> None:
    path = str(write_tree(events=10))
    assert open_tree(path, "Events").num_entries == 10
    write_tree(events=20)
    assert open_tree(path, "Events").num_entries == 20


def test_strings_are_left_out_with_their_type(tmp_path: Path) -> None:
    path = tmp_path / "strings.root"
    with uproot.recreate(path) as file:
        file.mktree("t", {"name": "string", "x": "int32", "y": ("f4", (3,))}).extend(
            {"name": ["a", "b"], "x": np.zeros(2, np.int32), "y": np.zeros((2, 3), np.float32)}
        )
    kinds, others = branch_kinds(open_tree(str(path)))
    assert kinds == {"x": "flat"}
    assert set(others) == {"name", "y"}


KINDS = {"MET_pt": "flat", "Jet_pt": "jagged", "Jet_eta": "jagged"}


def test_branches_are_chosen_by_name_and_glob() -> None:
    assert choose(KINDS, {}, "here", ["Jet_*"], ["*_eta"]) == {"Jet_pt": "jagged"}
    assert choose(KINDS, {}, "here", None, []) == KINDS


def test_a_missing_branch_offers_the_nearest() -> None:
    with pytest.raises(BranchMissingError, match=r"no branch 'Jet_Pt' in here.*'Jet_pt'"):
        choose(KINDS, {}, "here", ["Jet_Pt"], [])


def test_a_branch_that_is_no_number_is_refused_by_its_type() -> None:
    with pytest.raises(DataError, match="'name' in here is no numeric branch \\(std::string\\)"):
        choose(KINDS, {"name": "std::string"}, "here", ["name"], [])


def test_excluding_everything_is_refused() -> None:
    with pytest.raises(BranchMissingError, match="no numeric branch is left"):
        choose(KINDS, {}, "here", None, ["*"])


def test_a_header_written_by_a_version_unknown_is_no_fault(write_tree) -> None:
    """Some real files have a negative version; uproot reads them."""
    path = write_tree()
    content = bytearray(path.read_bytes())
    content[4:8] = (-937176).to_bytes(4, signed=True)
    path.write_bytes(content)
    assert open_tree(str(path)).num_entries == 100


def test_a_large_file_has_a_longer_header(write_tree) -> None:
    path = write_tree()
    content = path.read_bytes()
    version, begin, end = (int.from_bytes(content[i : i + 4]) for i in (4, 8, 12))
    header = (
        b"root" + (version % 1_000_000 + 1_000_000).to_bytes(4) + begin.to_bytes(4) + (end + 1).to_bytes(8)
    )
    path.write_bytes(header + content[20:])
    with pytest.raises(FileUnreadableError, match=rf"cut short: {len(content):,} bytes of {end + 1:,}"):
        open_tree(str(path))
