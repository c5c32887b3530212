"""Loops over events as one writes them oneself, in one process, without Ray: the measure of our own layer.

Each reads all events of some files into rows of float32, 100 MB or so at a time, and returns how many there
were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import awkward as ak
import numpy as np
import numpy.typing as npt
import uproot

from mlaas_ray.core import Feature, FeatureSpec
from mlaas_ray.core.columns import Columns, from_awkward
from mlaas_ray.streaming.baskets import BasketReader
from mlaas_ray.streaming.scatter import scatter

Rows = npt.NDArray[np.float32]
# Is given each piece's rows, which are used again for the next.
Consumer = Callable[[Rows], object]
ROWS_BYTES = 100_000_000


@dataclass(frozen=True)
class Piece:
    """Some clusters of one file."""

    path: str
    tree: str
    start: int
    stop: int


def spec_of(
    files: Sequence[str], tree: str = "Events", drop: Sequence[str] = (), longest: int | None = None
) -> FeatureSpec:
    """Return the columns of all numeric branches, each as long as the most objects of an event in any file.

    Args:
        files: Their paths.
        tree: Name of the tree in each.
        drop: Branches to leave out.
        longest: Objects to keep at most.
    """
    lengths: dict[str, int] = {}
    for path in files:
        with uproot.open(path) as file:
            for name, branch in file[tree].items():
                counter = branch.count_branch
                most = 0
                if counter is not None:
                    most = int(max(counter.array(library="np"), default=0))
                lengths[name] = max(lengths.get(name, 0), most)
                if counter is not None:
                    lengths[counter.name] = 0
    features = [
        Feature(name=name, kind="jagged", length=min(length, longest or length), multiplicity=length)
        if length
        else Feature(name=name, kind="flat")
        for name, length in lengths.items()
        if name not in drop
    ]
    return FeatureSpec.of(features)


def recipe_spec(folder: str | Path, longest: int | None = None) -> FeatureSpec:
    """Return the 1,803 columns (or fewer) of MLaaS4HEP's recipe-shaped pair of files."""
    paths = sorted(str(path) for path in Path(folder).glob("*.root"))
    counters = [f"n{name}" for name in ("Muon", "Tau", "Jet", "GenPart")]
    return spec_of(paths, drop=["run", "event", "luminosityBlock", *counters], longest=longest)


def plain(files: Sequence[str], spec: FeatureSpec, consume: Consumer | None = None) -> int:
    """Own decoding and the compiled scatter into one array that is used again: the best we know to write."""
    names = [feature.name for feature in spec.features]
    readers: dict[str, tuple[BasketReader, memoryview]] = {}

    def columns(piece: Piece) -> Columns:
        if piece.path not in readers:
            readers.clear()
            tree = _open(piece.path)[piece.tree]
            reader = BasketReader(dict(tree.items()), tree.num_entries, piece.path)
            readers[piece.path] = reader, memoryview(np.memmap(piece.path, np.uint8, "r"))
        reader, data = readers[piece.path]
        ranges = reader.ranges(names, piece.start, piece.stop)
        return reader.decode([data[a:b] for a, b in ranges], names, piece.start, piece.stop)

    return _scattered(files, spec, columns, consume)


def uproot_numba(files: Sequence[str], spec: FeatureSpec, consume: Consumer | None = None) -> int:
    """Uproot's arrays and the compiled scatter."""
    return _scattered(files, spec, _arrays_of(spec), consume)


def awkward(files: Sequence[str], spec: FeatureSpec, consume: Consumer | None = None) -> int:
    """Uproot and awkward's padding, branch by branch: what a user writes today."""
    arrays_of = _arrays_of(spec, raw=True)
    events = 0
    for piece in _pieces(files, spec):
        arrays = arrays_of(piece)
        parts = []
        for feature in spec.features:
            array = arrays[feature.name]
            if feature.kind == "jagged":
                padded = ak.pad_none(array, feature.length, clip=True)
                array = ak.fill_none(padded, np.nan)
            part = ak.to_numpy(array).astype(np.float32)
            parts.append(part.reshape(len(part), -1))
        rows = np.concatenate(parts, axis=1)
        events += len(rows)
        if consume is not None:
            consume(rows)
    return events


def _scattered(
    files: Sequence[str],
    spec: FeatureSpec,
    columns: Callable[[Piece], Columns],
    consume: Consumer | None,
) -> int:
    memory = np.empty((0, spec.width), np.float32)
    events = 0
    for piece in _pieces(files, spec):
        count = piece.stop - piece.start
        if len(memory) < count:
            memory = np.empty((count, spec.width), np.float32)
        rows = memory[:count]
        scatter(columns(piece), spec, rows)
        events += count
        if consume is not None:
            consume(rows)
    return events


def _arrays_of(spec: FeatureSpec, *, raw: bool = False) -> Callable[[Piece], Columns]:
    names = [feature.name for feature in spec.features]
    opened: dict[str, uproot.TTree] = {}

    def arrays(piece: Piece) -> Columns:
        if piece.path not in opened:
            opened.clear()
            opened[piece.path] = _open(piece.path)[piece.tree]
        found = opened[piece.path].arrays(
            names, entry_start=piece.start, entry_stop=piece.stop, library="ak", how=dict
        )
        return found if raw else {name: from_awkward(array, name) for name, array in found.items()}

    return arrays


def _open(path: str) -> uproot.ReadOnlyDirectory:
    return uproot.open(path, object_cache=None, array_cache=None)


def _pieces(files: Sequence[str], spec: FeatureSpec, tree: str = "Events") -> Iterator[Piece]:
    """Cut each file at cluster boundaries into pieces of rows of about 100 MB."""
    most = max(1, ROWS_BYTES // (4 * spec.width))
    first = spec.features[0].name
    edges_of: dict[str, list[int]] = {}
    for path in files:
        if path not in edges_of:
            edges_of[path] = _open(path)[tree][first].entry_offsets
        edges, start = edges_of[path], 0
        for edge, following in zip(edges[1:], [*edges[2:], None], strict=True):
            if following is None or following - start > most:
                yield Piece(path, tree, start, edge)
                start = edge
