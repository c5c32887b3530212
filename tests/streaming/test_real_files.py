"""Every tree of every real file is read as uproot and awkward read it, or refused with a reason."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from mlaas_ray.core.columns import Column, Jagged
from mlaas_ray.core.errors import DataError
from mlaas_ray.streaming.events import Events, open_events

# Trees that cannot be read: a part of the reason. Everything else is read.
REFUSED = {
    "corner/DERIVED_bitflipped_ww.root:events": "branch 'Muon_Charge'.*zlib cannot decompress it",
    "corner/DERIVED_not_root.root": "it is not a ROOT file",
    "corner/DERIVED_truncated_NanoAODv5_1.5MB.root": "cut short: 1,500,000 bytes of 3,030,882",
    "corner/DERIVED_zero_bytes.root": "it is not a ROOT file",
    "corner/PR554_SkipReadOnlyDirectory.root": r"holds no tree.*dir1/h1 \(TH1F\)",
    "corner/bad_delphes.root": "holds no tree",
    "corner/old_CS_compression_Event1.root:T1": "unsupported compression algorithm: b'CS'",
    "corner/uproot-histograms.root": r"holds no tree.*one \(TH1F\)",
    "rntuple/pre1.0_experimental_rntuple.root:ntuple": "experimental RNTuple",
}
# What uproot cannot read, and another file holds too: jagged branches without offsets whose counter has other
# baskets (uproot 5.7.7).
SAME = {"corner/uproot-small-dy-nooffsets.root": "corner/uproot-small-dy-withoffsets.root"}
# Wide trees, which differ from those read by default in hardly more than their names: with -m soak.
WIDE = (
    *("nanoaod/D", "nanoaod/E", "nanoaod/G", "nanoaod/m", "nanoaod/p", "nanoaod/t"),
    *("nanoaod/nanoAOD_", "nanoaod/nano_", "corner/nano_dy", "rntuple/nano_d", "rntuple/cms", "rntuple/p"),
    *("rntuple/uproot-physlite", "rntuple/test_int_", "other_real/PHYSLITE"),
)


def trees(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Every tree that the folder's index lists; files without one, once."""
    for line in (folder / "INDEX.tsv").read_text().splitlines()[1:]:
        file, _, tree, *_ = line.split("\t")
        yield file, None if tree == "-" else tree


def difference(folder: Path, file: str, tree: str | None) -> str:
    """Say how what is read of a tree differs from what should be; nothing when it does not."""
    where = f"{file}:{tree}" if tree else file
    try:
        events = open_events(str(folder / file), tree, nested="flatten")
        # Two ranges that begin and end within baskets and clusters.
        edges = (0, events.entries // 3, events.entries) if events.entries < 1e6 else (10, 1000)
        columns = [
            events.decode(events.fetch(list(events.branches), *span)) for span in itertools.pairwise(edges)
        ]
    except DataError as error:
        reason = REFUSED.get(where)
        return "" if reason and re.search(reason, str(error)) else f"{where} is refused: {error}"
    if where in REFUSED:
        return f"{where} is not refused"
    if file in SAME:
        file = SAME[file]
    for name, want in arrays(folder / file, events, edges):
        got = [padded(part[name]) for part in columns]
        for part, (start, stop) in zip(got, itertools.pairwise(np.array(edges) - edges[0]), strict=True):
            if not equal(part, want[start:stop]):
                return f"{where}, branch {name!r} is not what uproot reads"
    return ""


def padded(column: Column) -> np.ndarray:
    """Return a column as rows of float64, NaN behind the last value."""
    if not isinstance(column, Jagged):
        return np.asarray(column, np.float64)
    counts = column.counts
    rows = np.full((len(counts), counts.max(initial=0)), np.nan)
    rows[np.arange(rows.shape[1]) < counts[:, None]] = column.content
    return rows


def equal(part: np.ndarray, want: np.ndarray) -> bool:
    """Whether rows are the same; those of some entries may be shorter than those of all."""
    if part.ndim == 1 or len(part) == 0:
        return np.array_equal(part, want, equal_nan=True) or len(part) == len(want) == 0
    width = part.shape[1]
    return np.array_equal(part, want[:, :width], equal_nan=True) and bool(np.isnan(want[:, width:]).all())


def arrays(path: Path, events: Events, edges: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Read each branch with uproot, and pad it with awkward."""
    with uproot.open(path) as file:
        tree = file[events.tree]
        if events.format == "RNTuple":
            record = tree.arrays(entry_start=edges[0], entry_stop=edges[-1])
            for name in events.branches:
                yield name, rows(member(record, name))
            return
        found: dict[str, Any] = {}
        for way, branch in tree.iteritems():
            for known in {way, branch.name}:
                found[f"{known};2" if known in found else known] = branch
        for name in events.branches:
            head = max((known for known in found if name == known or name.startswith(f"{known}.")), key=len)
            array = found[head].array()
            members = name.removeprefix(head).split(".")[1:]
            if set(members) <= {"pt", "eta", "phi", "mass", "energy"} and members:
                continue  # not stored
            for part in members:
                array = array[part]
            yield name, rows(array)


def member(record: ak.Array, name: str) -> ak.Array:
    """Follow ``a.b.c`` into records, whose names may hold dots themselves."""
    for field in record.fields:
        if name == field:
            return record[field]
        if name.startswith(f"{field}."):
            return member(record[field], name.removeprefix(f"{field}."))
    raise KeyError(name)


def rows(array: ak.Array) -> np.ndarray:
    """Pad each event's values with NaN; lists of lists are one list."""
    array = ak.Array(array)
    fixed = isinstance(array.layout, ak.contents.RegularArray | ak.contents.NumpyArray)
    if fixed:
        array = ak.to_numpy(array)
        return (
            array.reshape(len(array), -1).astype(np.float64) if array.ndim > 1 else array.astype(np.float64)
        )
    while array.ndim > 2:
        array = ak.flatten(array, axis=2)
    longest = int(ak.to_numpy(ak.num(array)).max(initial=0))
    array = ak.fill_none(ak.pad_none(array, longest, clip=True), np.nan)
    return np.asarray(ak.to_numpy(array), np.float64).reshape(len(array), longest)


def test_real_trees_are_read_right_or_refused_with_a_reason(real_data: Path) -> None:
    chosen = [(file, tree) for file, tree in trees(real_data) if not file.startswith(WIDE)]
    wrong = [difference(real_data, *one) for one in chosen]
    assert not [reason for reason in wrong if reason]
    assert len(chosen) >= 69


@pytest.mark.soak
def test_wide_real_trees_are_read_right(real_data: Path) -> None:
    chosen = [(file, tree) for file, tree in trees(real_data) if file.startswith(WIDE)]
    wrong = [difference(real_data, *one) for one in chosen]
    assert not [reason for reason in wrong if reason]
    assert len(chosen) >= 30
