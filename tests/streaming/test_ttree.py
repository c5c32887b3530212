from __future__ import annotations

import re
import shutil
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

# Files of the ROOT and uproot projects' own tests, of classes that uproot cannot write.
DATA = Path(__file__).parent / "data"


def read(events: Events, *names: str, start: int = 0, stop: int | None = None) -> Columns:
    return events.decode(events.fetch(names, start, events.entries if stop is None else stop))


def test_the_only_tree_needs_no_name_and_events_is_preferred(write_tree, tmp_path: Path) -> None:
    assert open_events(str(write_tree("one.root", tree="nominal"))).tree == "nominal"
    path = tmp_path / "two.root"
    with uproot.recreate(path) as file:
        for tree in ("Runs", "Events"):
            file.mktree(tree, {"x": np.float32}).extend({"x": np.ones(2, np.float32)})
    assert open_events(str(path)).tree == "Events"


@pytest.mark.parametrize(
    ("taken", "others"),
    [
        ("Events", ("Runs", "LuminosityBlocks", "events")),
        ("events", ("metadata", "other")),
        ("dir/CollectionTree", ("MetaData", "POOL")),
        ("Delphes", ("LHEF",)),
        ("nominal", ("sumWeights", "podio_metadata")),
    ],
)
def test_of_several_trees_that_of_the_events_is_taken(
    tmp_path: Path, taken: str, others: tuple[str, ...]
) -> None:
    path = tmp_path / "several.root"
    with uproot.recreate(path) as file:
        for tree in (*others, taken):
            file.mktree(tree, {"x": np.float32})
    events = open_events(str(path))
    assert (events.tree, events.beside) == (taken, others)
    assert open_events(str(path), others[0]).beside == ()


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
    assert open_events(str(path), "/").tree == "three/Events"


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


def test_a_boolean_is_true_by_any_byte_but_zero(tmp_path: Path) -> None:
    """C++ never initialised some: flat and jagged ones are read by us, fixed ones by uproot."""
    path, flags = tmp_path / "flags.root", np.array([0, 1, 2, 145, 255, 0], np.uint8).view(np.bool_)
    with uproot.recreate(path, compression=None) as file:
        file.mktree("t", {"flat": "?", "fixed": ("?", (2,)), "Jet_ok": "var * bool"}).extend(
            {
                "flat": flags,
                "fixed": np.repeat(flags, 2).reshape(6, 2),
                "Jet_ok": ak.unflatten(ak.Array(ak.contents.NumpyArray(flags)), [2, 0, 1, 3, 0, 0]),
            }
        )
    assert b"\x91" * 2 in path.read_bytes()  # uproot wrote the bytes as they were
    columns = read(open_events(str(path)), "flat", "fixed", "Jet_ok")
    jets = columns["Jet_ok"]
    assert isinstance(jets, Jagged)
    for values, times in ((columns["flat"], 1), (columns["fixed"], 2), (jets.content, 1)):
        assert not isinstance(values, Jagged)
        assert values.dtype == np.bool_
        assert values.view(np.uint8).ravel().tolist() == np.repeat([0, 1, 1, 1, 1, 0], times).tolist()


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


def test_members_of_split_objects_are_not_taken_for_what_counts_them(real_data: Path) -> None:
    events = open_events(str(real_data / "other_real/treemaker.root"))
    assert events.branches["Electrons.fCoordinates.fPt"].counter is None
    assert {branch.counter for branch in events.branches.values()} & set(events.branches) <= {
        name for name, branch in events.branches.items() if branch.kind == "flat"
    }


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


def test_of_two_branches_of_one_name_both_are_read(tmp_path: Path) -> None:
    path = tmp_path / "twins.root"
    with uproot.recreate(path, compression=None) as file:
        tree = file.mktree("t", {"one_x": "f4", "two_x": "f4", "y": "f4"})
        tree.extend(
            {"one_x": np.arange(3, dtype="f4"), "two_x": -np.arange(3, dtype="f4"), "y": np.ones(3, "f4")}
        )
    path.write_bytes(path.read_bytes().replace(b"two_x", b"one_x"))
    events = open_events(str(path))
    assert list(events.branches) == ["one_x", "one_x;2", "y"]
    assert read(events, "one_x;2", "one_x")["one_x;2"].tolist() == [0, -1, -2]
    assert read(events, "one_x")["one_x"].tolist() == [0, 1, 2]


def test_of_two_branches_of_objects_with_one_name_both_are_read(cases: Path) -> None:
    """Delphes' generator may write ``Particle``, beside Delphes' own."""
    path = cases / "streaming/delphes_two_particle.root"
    events = open_events(str(path), "Delphes", nested="flatten")
    columns = read(events, *events.branches, stop=events.entries)
    with uproot.open(path) as file:
        own, other = (branch for branch in file["Delphes"].branches if branch.name == "Particle")
        for name, branch in {
            "Particle.BTag": other["Particle.BTag"],
            "Particle.PID": own["Particle.PID"],
            "Particle/Particle.PT": own["Particle.PT"],
            "Particle/Particle.PT;2": other["Particle.PT"],
        }.items():
            assert to_awkward(columns[name]).tolist() == branch.array().tolist()
    assert not any("fBits" in name for name in events.branches)
    assert "references" in events.left_out["Jet.fBits"]


@pytest.mark.parametrize(
    ("file", "tree", "why"),
    [
        ("struct_array.root", "T", dict.fromkeys(("point.x", "point.y"), "array of leaf lists")),
        (
            "tbase.root",
            "tree",
            {"d1": "D1", "d2": "uproot cannot describe it: field 'I32' occurs more than once"},
        ),
    ],
)
def test_what_uproot_cannot_describe_is_left_out_with_its_reason(
    file: str, tree: str, why: dict[str, str]
) -> None:
    events = open_events(str(DATA / file), tree)
    assert (dict(events.branches), set(events.left_out)) == ({}, set(why))
    for name, reason in why.items():
        assert reason in events.left_out[name]
        with pytest.raises(
            DataError, match=rf"branch '{name}' in .*{file}.* is no numeric branch \(.*{re.escape(reason)}"
        ):
            read(events, name)


def test_a_branch_that_uproot_stumbles_over_does_not_keep_others_from_being_read(
    write_tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write_tree())
    whole = uproot.TBranch.interpretation

    def stumbles(branch: uproot.TBranch) -> object:  # as at classes that uproot itself cannot write
        if branch.name == "MET_pt":
            raise RuntimeError("I shouldn't be here")
        return whole.fget(branch)

    monkeypatch.setattr(uproot.TBranch, "interpretation", property(stumbles))
    events = open_events(path)
    assert events.left_out == {"MET_pt": "uproot cannot describe it: I shouldn't be here"}
    assert len(read(events, *events.branches)) == 5


def test_lists_of_arrays_of_truncated_numbers_have_as_many_values_as_their_counter_says() -> None:
    events = open_events(str(DATA / "float16_ndim_slice.root"), "tree", nested="flatten")
    counts = read(events, "N")["N"]
    # the first pass would take it for the number of values
    assert events.branches["SliD16"].counter is events.branches["SliF64"].counter is None
    column = read(events, "SliD16")["SliD16"]
    assert isinstance(column, Jagged)
    assert column.counts.tolist() == (24 * counts).tolist()
    # small whole numbers, which any of these types holds
    for name in ("SliD16", "SliD32"):
        values = read(events, name, "SliF64", start=1)
        for own, exact in zip(*(to_awkward(one) for one in values.values()), strict=True):
            assert own.tolist() == exact.tolist()


def test_what_uproot_reads_must_have_as_many_values_as_its_counter_says(tmp_path: Path) -> None:
    path = Path(shutil.copy(DATA / "float16_ndim_slice.root", tmp_path))
    with uproot.open(path) as file:
        [seek], [size] = (file["tree"]["N"].member(name)[:1] for name in ("fBasketSeek", "fBasketBytes"))
    content = bytearray(path.read_bytes())
    assert content[seek + size - 8 : seek + size] == bytes([0, 0, 0, 1, 0, 0, 0, 2])
    content[seek + size - 1] = 3
    path.write_bytes(content)
    events = open_events(str(path), "tree", nested="flatten")
    for name in ("SliD16", "SliF64"):
        with pytest.raises(FileUnreadableError, match=rf"branch '{name}'.*as many values as 'N' counts"):
            read(events, name)


def test_the_leaves_of_a_leaf_list_are_columns(corner: Path) -> None:
    events = open_events(str(corner / "tree_with_custom_struct.root"))
    assert list(events.branches) == ["myints.MyInt1", "myints.MyInt2", "myints.MyInt3"]
    assert read(events, "myints.MyInt2", stop=3)["myints.MyInt2"].dtype == np.int32


@pytest.mark.parametrize(
    ("file", "tree", "vectors"),
    [("uproot-HZZ-objects.root", "events", "muonp4"), ("Jagged_TLorentzVector.root", "t1", "LVs")],
)
def test_lorentz_vectors_are_columns_by_component(corner: Path, file: str, tree: str, vectors: str) -> None:
    events = open_events(str(corner / file), tree)
    with uproot.open(corner / file) as opened:
        want = opened[tree][vectors].array()
    assert vectors not in {**events.branches, **events.left_out}
    names = [f"{vectors}.{name}" for name in ("pt", "eta", "phi", "mass", "energy", "fP.fX", "fE")]
    columns = read(events, *names, start=1)
    pt, eta, phi, mass, energy, x, e = (to_awkward(columns[name]) for name in names)
    assert x.tolist() == want.fP.fX[1:].tolist()
    assert e.tolist() == energy.tolist() == want.fE[1:].tolist()
    momentum = want.fP[1:]
    for got, formula in {
        "pt": (pt, np.hypot(momentum.fX, momentum.fY)),
        "eta": (eta, np.arcsinh(momentum.fZ / np.hypot(momentum.fX, momentum.fY))),
        "phi": (phi, np.arctan2(momentum.fY, momentum.fX)),
        "energy": (np.sqrt(mass**2 + (pt * np.cosh(eta)) ** 2), energy),
    }.values():
        np.testing.assert_allclose(ak.flatten(got), ak.flatten(formula), rtol=1e-6)
    with pytest.raises(DataError, match=rf"'{vectors}' in .* Choose of its parts: {vectors}.fP.fX"):
        read(events, vectors)


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
