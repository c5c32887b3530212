"""RNTupleEvents: an RNTuple as columns."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.columns import Column, Columns, Jagged
from mlaas_ray.core.errors import BranchMissingError, DataError, FileUnreadableError, nearest
from mlaas_ray.streaming.damage import DAMAGE, REMEDY, naming, reason_of
from mlaas_ray.streaming.events import Branch, Nested
from mlaas_ray.streaming.fields import Field, ListOf, find_fields
from mlaas_ray.streaming.pages import ColumnStore, Page
from mlaas_ray.streaming.transport import ByteSource
from mlaas_ray.streaming.uproot_source import identifier

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Part:
    """The entries that are wanted of one cluster, ``start`` to ``stop`` of its ``entries``."""

    cluster: int
    start: int
    stop: int
    entries: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """Pages, still compressed.

    Attributes:
        fields: What is to be made of them, by name.
        start: First entry.
        stop: Behind the last.
        parts: Where those are.
        pages: By cluster and column.
        data: The bytes of each page.
    """

    fields: Mapping[str, Field]
    start: int
    stop: int
    parts: Sequence[_Part]
    pages: Mapping[tuple[int, int], Sequence[Page]]
    data: Mapping[Page, memoryview]


class RNTupleEvents:
    """One RNTuple of one open file, as :class:`.Events`.

    uproot reads what the file says of itself, and knows how the elements of a page are encoded; which pages
    are wanted is decided here, so that they come in one request, and a few entries of a large cluster do not
    cost all of it. (uproot's own ``arrays`` reads page after page, whole clusters, and takes 4 s to choose 50
    of 1,500 fields.)

    Args:
        ntuple: uproot's RNTuple.
        tree: Its name, with its folders.
        source: The file's bytes.
        nested: What becomes of lists of lists of numbers.
    """

    format = "RNTuple"
    beside: tuple[str, ...] = ()

    def __init__(self, ntuple: Any, tree: str, source: ByteSource, nested: Nested = "leave") -> None:
        self.path = source.path
        self.tree = tree
        self.size = source.size
        self.uuid = identifier(ntuple.file, source)
        self.data = source
        self._nested = nested
        with naming(self.path, tree):
            self.entries = int(ntuple.num_entries)
            self._fields, self._others = find_fields(ntuple)
            self._store = ColumnStore(ntuple)

    @property
    def branches(self) -> Mapping[str, Branch]:
        """What can be columns, by name."""
        return self._tables[0]

    @property
    def left_out(self) -> Mapping[str, str]:
        """What cannot, with its C++ type."""
        return self._tables[1]

    @functools.cached_property
    def _tables(self) -> tuple[dict[str, Branch], dict[str, str]]:
        counters = {field.values: name for name, field in self._fields.items() if field.counts}
        branches: dict[str, Branch] = {}
        left_out = dict(self._others)
        for name, field in self._fields.items():
            if self._refuses(field):
                left_out[name] = field.type
                continue
            try:
                branches[name] = Branch(
                    name=name,
                    kind=field.kind,
                    type=field.type,
                    length=field.length,
                    bytes=self._bytes(field),
                    counter=_counter(field, counters),
                    dtype=self._store.dtype(field.values).name,
                )
            except Exception as error:  # as of a column of a kind that uproot does not know
                left_out[name] = f"{field.type}, uproot cannot describe it: {reason_of(error, self.path)}"
        return branches, left_out

    def boundaries(self, names: Sequence[str]) -> tuple[int, ...]:
        """First entry of each cluster, which all fields share, and last ``entries``."""
        return tuple(sorted({0, self.entries} | {first for first, _ in self._store.clusters}))

    def fetch(self, names: Sequence[str], start: int, stop: int) -> Fetched:
        """Get the pages that hold some fields of the entries ``start`` to ``stop`` (not included).

        Raises:
            BranchMissingError: When the RNTuple lacks one.
            DataError: When one cannot be columns.
            FileUnreadableError: When the file cannot be read.
        """
        fields = {name: self._field(name) for name in names}
        parts = list(self._parts(start, stop))
        pages: dict[tuple[int, int], list[Page]] = {}
        with naming(self.path, self.tree):
            for part in parts:
                for field in fields.values():
                    for column, wanted in self._wanted(field, part):
                        pages[part.cluster, column] = wanted
            needed = list(dict.fromkeys(page for listed in pages.values() for page in listed))
            data = self.data.read([page.range for page in needed])
        return Fetched(fields, start, stop, parts, pages, dict(zip(needed, data, strict=True)))

    def decode(self, fetched: Fetched) -> Columns:
        """Make columns of pages.

        Raises:
            FileUnreadableError: When they are damaged; names the field.
        """
        elements = _Elements(self._store, fetched)
        columns = {}
        for name, field in fetched.fields.items():
            try:
                columns[name] = _column(field, fetched.parts, elements)
            except DAMAGE as error:
                raise FileUnreadableError(
                    f"cannot read {self.path}, tree {self.tree!r}, branch {name!r}, entries {fetched.start}"
                    f" to {fetched.stop}: {reason_of(error, self.path)}",
                    REMEDY,
                ) from error
        return columns

    def _parts(self, start: int, stop: int) -> Iterator[_Part]:
        for cluster, (first, entries) in enumerate(self._store.clusters):
            low, high = max(start, first), min(stop, first + entries)
            if low < high:
                yield _Part(cluster, low - first, high - first, entries)

    def _wanted(self, field: Field, part: _Part) -> Iterator[tuple[int, list[Page]]]:
        """Yield each column of a field with those of its pages that may hold the entries of a part."""
        times = 1
        below = False  # lists, of which it is not known yet where the wanted ones are
        for axis in (*field.axes, None):
            if axis is not None and not isinstance(axis, ListOf):
                times *= axis.length
                continue
            column = field.values if axis is None else axis.ends
            if below:
                yield column, self._store.pages(part.cluster, column)
                continue
            # The end of a list is the beginning of the next.
            low, high = part.start * times - 1, part.stop * times
            pages = self._store.pages(part.cluster, column, part.entries * times)
            yield column, [page for page in pages if page.first < high and low < page.first + page.elements]
            below = axis is not None

    def _field(self, name: str) -> Field:
        field = self._fields.get(name)
        where = f"in {self.path}, tree {self.tree!r}"
        if field is None and name not in self._others:
            raise BranchMissingError(f"no branch {name!r} {where}", nearest(name, self._fields))
        if field is None:
            raise DataError(
                f"branch {name!r} {where} is no numeric branch ({self._others[name]})", "Leave it out"
            )
        if self._refuses(field):
            raise DataError(
                f"branch {name!r} {where} is a list of lists ({field.type})",
                "Leave it out, or set nested: flatten",
            )
        return field

    def _refuses(self, field: Field) -> bool:
        return field.nested and self._nested == "leave"

    def _bytes(self, field: Field) -> int:
        return sum(
            page.elements * self._store.dtype(page.column).itemsize
            for cluster in range(len(self._store.clusters))
            for page in self._store.pages(cluster, field.values)
        )


class _Elements:
    """The elements of columns in fetched pages; each page is decoded once, however many fields it serves."""

    def __init__(self, store: ColumnStore, fetched: Fetched) -> None:
        self._store = store
        self._fetched = fetched
        self._decoded: dict[Page, npt.NDArray[Any]] = {}

    def read(self, cluster: int, column: int, start: int, stop: int) -> npt.NDArray[Any]:
        """Return the elements ``start`` to ``stop`` (not included) of a cluster's column.

        Raises:
            ValueError: When the pages do not hold them all.
        """
        pieces = [np.zeros(0, self._store.dtype(column))]
        for page in self._fetched.pages[cluster, column]:
            low, high = max(start, page.first), min(stop, page.first + page.elements)
            if low < high:
                pieces.append(self._page(page)[low - page.first : high - page.first])
        found = sum(map(len, pieces))
        if found != stop - start:
            raise ValueError(f"{found:,} values where there should be {stop - start:,}")
        return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)

    def _page(self, page: Page) -> npt.NDArray[Any]:
        if page not in self._decoded:
            self._decoded[page] = self._store.decode(page, self._fetched.data[page])
        return self._decoded[page]


def _column(field: Field, parts: Sequence[_Part], elements: _Elements) -> Column:
    """Join what the clusters hold of one field."""
    read = [_read(field, part, elements) for part in parts]
    values = np.concatenate([values for _, values in read]) if read else np.zeros(0, np.float32)
    if field.kind == "flat":
        return values
    if field.kind == "fixed":
        return values.reshape(-1, field.length)
    counts = [np.diff(offsets) for offsets, _ in read]
    return Jagged(np.concatenate([[0], *counts]).cumsum(dtype=np.int64), values)


def _read(field: Field, part: _Part, elements: _Elements) -> tuple[Integers, npt.NDArray[Any]]:
    """Read one field in one cluster: where each event's values begin and end, and the values."""
    start, stop = part.start, part.stop
    offsets = np.arange(stop - start + 1, dtype=np.int64)
    for axis in field.axes:
        if isinstance(axis, ListOf):
            ends = _ends(axis.ends, part.cluster, start, stop, elements)
            offsets = ends[offsets] - ends[0]
            start, stop = int(ends[0]), int(ends[-1])
        else:
            start, stop, offsets = start * axis.length, stop * axis.length, offsets * axis.length
    if field.counts:
        return offsets, np.diff(_ends(field.values, part.cluster, start, stop, elements))
    return offsets, elements.read(part.cluster, field.values, start, stop)


def _ends(column: int, cluster: int, start: int, stop: int, elements: _Elements) -> Integers:
    """Return where the lists ``start`` to ``stop`` begin, and the last ends: ``(stop - start + 1,)``."""
    ends = elements.read(cluster, column, max(start - 1, 0), stop).astype(np.int64)
    ends = ends if start else np.concatenate([[0], ends])
    if (np.diff(ends) < 0).any():
        raise ValueError("lists of fewer than no values")
    return ends


def _counter(field: Field, counters: Mapping[int, str]) -> str | None:
    """Return the name of the field that holds how many values an event has."""
    axis = field.axes[0] if len(field.axes) == 1 else None
    return counters.get(axis.ends) if isinstance(axis, ListOf) else None
