from __future__ import annotations

import shutil
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from mlaas_ray.core.columns import Columns, to_awkward
from mlaas_ray.core.errors import BranchMissingError, DataError, FileUnreadableError
from mlaas_ray.streaming.events import Events, open_events

JETS = [[1.5], [], [2.5, 3.5], [4.5], [], [5.5, 6.5, 7.5]]


@pytest.fixture
def folder(real_data: Path) -> Path:
    return real_data / "rntuple"


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Two clusters of six events each."""
    path = tmp_path / "small.root"
    arrays = {"met": np.arange(6, dtype=np.float32), "jets": ak.Array(JETS), "good": np.arange(6) % 2 == 0}
    with uproot.recreate(path) as file:
        ntuple = file.mkrntuple("dir/events", ak.Array(arrays).layout.form)
        ntuple.extend(arrays)
        ntuple.extend(arrays)
    return str(path)


def read(events: Events, *names: str, start: int = 0, stop: int | None = None) -> Columns:
    return events.decode(events.fetch(names, start, events.entries if stop is None else stop))


def test_entries_are_read_across_clusters(small: str) -> None:
    events = open_events(small)
    assert (events.tree, events.format, events.entries) == ("dir/events", "RNTuple", 12)
    assert events.boundaries(["met"]) == (0, 6, 12)
    columns = read(events, "met", "jets", "good", start=4, stop=9)
    assert columns["met"].tolist() == [4, 5, 0, 1, 2]
    assert columns["good"].tolist() == [True, False, True, False, True]
    assert to_awkward(columns["jets"]).tolist() == [*JETS[4:], *JETS[:3]]


def test_booleans_are_bits_whatever_bytes_they_were_written_from(tmp_path: Path) -> None:
    path, flags = tmp_path / "flags.root", np.array([0, 1, 2, 145, 255, 0], np.uint8).view(np.bool_)
    content = ak.contents.NumpyArray(flags)
    arrays = {"flat": ak.Array(content), "jets": ak.unflatten(ak.Array(content), [2, 0, 1, 3, 0, 0])}
    with uproot.recreate(path) as file:
        file.mkrntuple("t", ak.Array(arrays).layout.form).extend(arrays)
    columns = read(open_events(str(path)), "flat", "jets")
    for values in (columns["flat"], columns["jets"].content):
        assert values.view(np.uint8).tolist() == [0, 1, 1, 1, 1, 0]


def test_no_entries_are_columns_without_rows(small: str) -> None:
    columns = read(open_events(small), "met", "jets", start=5, stop=5)
    assert {name: len(column) for name, column in columns.items()} == {"met": 0, "jets": 0}


def test_only_the_pages_that_hold_the_entries_are_read(folder: Path) -> None:
    events = open_events(str(folder / "test_int_multicluster_rntuple_v1-0-0-0.root"))
    assert events.entries == 100_000_000
    fetched = events.fetch(["one_integers"], 49_999_998, 50_000_002)
    assert sum(page.elements for page in fetched.data) < 2_000_000
    assert events.decode(fetched)["one_integers"].tolist() == [2, 2, 1, 1]


def test_what_is_shown_under_two_names_is_one_branch_and_knows_its_counter(folder: Path) -> None:
    events = open_events(str(folder / "Run2012BC_DoubleMuParked_Muons_1000evts_rntuple_v1-0-0-0.root"))
    assert sorted(events.branches) == ["Muon_charge", "Muon_eta", "Muon_mass", "Muon_phi", "Muon_pt", "nMuon"]
    assert events.branches["Muon_pt"].counter == "nMuon"
    columns = read(events, "nMuon", "Muon_pt", start=500)
    assert columns["nMuon"].tolist() == columns["Muon_pt"].counts.tolist()


def test_a_field_added_later_is_zero_or_empty_before(folder: Path) -> None:
    events = open_events(str(folder / "test_extension_columns_rntuple_v1-0-0-0.root"))
    columns = read(events, "float_field", "intvec_field", start=0, stop=400)
    with uproot.open(events.path) as file:
        want = file["ntuple"].arrays(entry_stop=400)
    for name, column in columns.items():
        assert to_awkward(column).tolist() == want[name].tolist()
    assert not np.asarray(columns["float_field"][:100]).any()


def test_records_are_branches_by_member_and_strings_are_left_out(folder: Path) -> None:
    path = str(folder / "test_stl_containers_rntuple_v1-0-0-0.root")
    events = open_events(path)
    kinds = {name: (branch.kind, branch.length) for name, branch in events.branches.items()}
    assert kinds["array_float"] == ("fixed", 3)
    assert kinds["lorentz_vector.pt"] == ("flat", 1)
    assert kinds["tuple_int32_string.0"] == ("flat", 1)
    assert kinds["array_lv.pt"] == ("fixed", 3)
    assert events.left_out["tuple_int32_string.1"] == "std::string"
    assert events.left_out["variant_int32_string"] == "std::variant<std::int32_t,std::string>"
    with pytest.raises(DataError, match=r"'vector_vector_int32' .* set nested: flatten"):
        events.fetch(["vector_vector_int32"], 0, 1)
    with pytest.raises(BranchMissingError, match="Did you mean 'array_float'"):
        events.fetch(["array_floats"], 0, 1)
    assert "vector_vector_int32" in open_events(path, nested="flatten").branches


def test_a_page_that_is_not_what_its_checksum_says_is_refused(folder: Path, tmp_path: Path) -> None:
    name = "ntpl001_staff_rntuple_v1-0-1-0.root"
    path = Path(shutil.copy(folder / name, tmp_path))
    events = open_events(str(path))
    page = next(iter(events.fetch(["Age"], 0, 10).data))
    content = bytearray(path.read_bytes())
    content[page.start + page.bytes // 2] ^= 1
    path.write_bytes(content)
    damaged = open_events(str(path))
    with pytest.raises(FileUnreadableError, match=r"staff.*tree 'Staff', branch 'Age', .* checksum"):
        read(damaged, "Age")
    assert len(read(damaged, "Flag")["Flag"]) == damaged.entries


def test_an_experimental_rntuple_is_refused_with_the_remedy(folder: Path) -> None:
    with pytest.raises(FileUnreadableError, match=r"experimental RNTuple.*Write it again"):
        open_events(str(folder / "pre1.0_experimental_rntuple.root"))
