"""Parquet files as events: row groups are the clusters, and of each only the wanted columns are read."""

from __future__ import annotations

import hashlib
import io
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlaas_ray.core.columns import Column, Columns
from mlaas_ray.core.errors import BranchMissingError, FileUnreadableError, nearest
from mlaas_ray.streaming.arrow import branch_of, column_of, member_of, members
from mlaas_ray.streaming.events import Branch, Nested
from mlaas_ray.streaming.ranges import Range
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.transport import ByteSource, open_bytes

# What pyarrow raises on bytes that are not what they should be; most of its errors are ValueErrors too.
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    NotImplementedError,
    MemoryError,
    pa.ArrowException,
)

# Read at once from the end; most footers are smaller (bytes).
TAIL = 64 << 10
_MAGIC = b"PAR1"


@dataclass(frozen=True)
class _Fetched:
    """Bytes of some columns of some row groups.

    Attributes:
        names: The columns.
        start: First entry wanted.
        stop: End of those wanted.
        groups: The row groups that hold them.
        ranges: Where in the file the bytes lie, ascending.
        data: The bytes of each range.
        decoded: These columns and row groups, when they were decoded already; nothing is fetched then.
    """

    names: tuple[str, ...]
    start: int
    stop: int
    groups: tuple[int, ...]
    ranges: Sequence[Range]
    data: Sequence[memoryview]
    decoded: pa.Table | None = None


@dataclass(frozen=True)
class _Column:
    """Where a column is in the file.

    Attributes:
        field: Name of the field that holds it.
        path: Names of the members that lead to it, where the field holds structs.
        type: The type it has by itself.
        leaves: Numbers of the Parquet columns it is stored in.
    """

    field: str
    path: tuple[str, ...]
    type: pa.DataType
    leaves: tuple[int, ...]


class _Recent:
    """Tables decoded last, by file, row groups and columns.

    Row groups of a million rows are common; a plan takes them in pieces, and each would be decoded whole.

    Args:
        limit: Bytes of all tables together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tables: OrderedDict[object, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object) -> pa.Table | None:
        """Return a table that is still known."""
        with self._lock:
            table = self._tables.get(key)
            if table is not None:
                self._tables.move_to_end(key)
            return table

    def put(self, key: object, table: pa.Table) -> None:
        """Remember a table, and forget the oldest beyond the limit."""
        with self._lock:
            self._tables[key] = table
            while self._tables and sum(known.nbytes for known in self._tables.values()) > self._limit:
                self._tables.popitem(last=False)


_RECENT = _Recent(256 << 20)


class ParquetEvents:
    """A Parquet file; see :class:`mlaas_ray.streaming.events.Events`.

    Args:
        source: The file.
        nested: What becomes of lists of lists.
    """

    format = "Parquet"
    tree = ""
    beside: tuple[str, ...] = ()

    def __init__(self, source: Source, nested: Nested = "leave") -> None:
        self.data = open_bytes(source)
        self.path, self.size = source.path, self.data.size
        footer = _footer(self.data)
        try:
            self._metadata = pq.read_metadata(pa.BufferReader(footer))
            self._schema = self._metadata.schema.to_arrow_schema()
        except DAMAGE as error:
            raise _unreadable(self.path, f"its footer: {error}") from error
        # Two files may agree in their footers, but hardly in their first values as well.
        [head] = self.data.read([(0, min(self.size, TAIL))])
        self.uuid = hashlib.sha256(b"%d" % self.size + head + footer).hexdigest()[:32]
        self.entries = int(self._metadata.num_rows)
        groups = range(self._metadata.num_row_groups)
        self._starts = [0]
        for group in groups:
            self._starts.append(self._starts[-1] + self._metadata.row_group(group).num_rows)
        self._columns = _columns(self._schema)
        self.branches, self.left_out = self._describe(nested)

    def _describe(self, nested: Nested) -> tuple[Mapping[str, Branch], Mapping[str, str]]:
        branches, left_out = {}, {}
        for name, (column, *twins) in self._columns.items():
            branch = branch_of(name, column.type, nested, self._uncompressed(column))
            if branch is None or twins:
                left_out[name] = str(column.type)
            else:
                branches[name] = branch
        return branches, left_out

    def _uncompressed(self, column: _Column) -> int:
        groups = (self._metadata.row_group(group) for group in range(self._metadata.num_row_groups))
        return sum(group.column(leaf).total_uncompressed_size for group in groups for leaf in column.leaves)

    def boundaries(self, names: Sequence[str]) -> tuple[int, ...]:
        """See :class:`mlaas_ray.streaming.events.Events`: row groups are the same for all columns."""
        return tuple(dict.fromkeys(self._starts))  # a row group may be empty

    def fetch(self, names: Sequence[str], start: int, stop: int) -> _Fetched:
        """See :class:`mlaas_ray.streaming.events.Events`."""
        for name in names:
            if name not in self.branches:
                raise BranchMissingError(
                    f"no numeric column {name!r} in {self.path}", nearest(name, self.branches)
                )
        groups = tuple(
            group
            for group in range(self._metadata.num_row_groups)
            if self._starts[group] < stop and start < self._starts[group + 1]
        )
        decoded = _RECENT.get((self.uuid, groups, tuple(names)))
        chunks = (_chunk(self._metadata, group, leaf) for group in groups for leaf in self._wanted(names))
        ranges = [] if decoded is not None else sorted(chunks)
        return _Fetched(tuple(names), start, stop, groups, ranges, self.data.read(ranges), decoded)

    def decode(self, fetched: _Fetched) -> Columns:
        """See :class:`mlaas_ray.streaming.events.Events`."""
        try:
            return self._decode(fetched, fetched.names)
        except DAMAGE as error:
            for name in fetched.names:
                try:
                    self._decode(fetched, (name,))
                except DAMAGE as own:
                    raise _unreadable(self.path, f"column {name!r}: {own}") from own
            raise _unreadable(self.path, str(error)) from error

    def _decode(self, fetched: _Fetched, names: Sequence[str]) -> Columns:
        if not fetched.groups or not names:
            table = self._schema.empty_table()
        else:
            first, last = self._starts[fetched.groups[0]], self._starts[fetched.groups[-1] + 1]
            table = fetched.decoded if fetched.decoded is not None else self._table(fetched, names)
            if fetched.decoded is None and fetched.stop - fetched.start < last - first:
                _RECENT.put((self.uuid, fetched.groups, tuple(names)), table)
            table = table.slice(fetched.start - first, fetched.stop - fetched.start)
        return {name: self._column(table, name) for name in names}

    def _column(self, table: pa.Table, name: str) -> Column:
        [column] = self._columns[name]
        array = table.column(column.field)
        if column.path:
            array = member_of(array.combine_chunks(), column.path)
        return column_of(array, self.branches[name].kind)

    def _table(self, fetched: _Fetched, names: Sequence[str]) -> pa.Table:
        file = pa.PythonFile(_Sparse(self.data, fetched), mode="r")
        opened = pq.ParquetFile(file, metadata=self._metadata, page_checksum_verification=True)
        # By number: ParquetFile takes a dot in a name for a member of a struct.
        return opened.reader.read_row_groups(
            list(fetched.groups), column_indices=self._wanted(names), use_threads=False
        )

    def _wanted(self, names: Sequence[str]) -> list[int]:
        return sorted(leaf for name in names for leaf in self._columns[name][0].leaves)


class _Sparse(io.RawIOBase):
    """What was fetched of a file, as a file; anything else, which is hardly asked for, is read now."""

    def __init__(self, file: ByteSource, fetched: _Fetched) -> None:
        self._file = file
        self._ranges, self._data = fetched.ranges, fetched.data
        self._first = [start for start, _ in fetched.ranges]
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = origin + offset
        return self._at

    def read(self, size: int = -1) -> Any:
        start = self._at
        stop = self._file.size if size < 0 else min(start + size, self._file.size)
        self._at = max(start, stop)
        index = bisect_right(self._first, start) - 1
        if index >= 0 and stop <= self._ranges[index][1]:
            first = self._ranges[index][0]
            return self._data[index][start - first : stop - first]
        return self._file.read([(start, max(start, stop))])[0]


def _footer(file: ByteSource) -> memoryview:
    """Return the end of a file from its footer on."""
    if file.size < 12:
        raise _unreadable(file.path, "it is too short to be Parquet")
    [tail] = file.read([(max(0, file.size - TAIL), file.size)])
    if bytes(tail[-4:]) != _MAGIC:
        raise _unreadable(file.path, "it is not Parquet, or cut short")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > file.size - 4:
        raise _unreadable(file.path, "its footer says it is longer than the file")
    if length > len(tail):
        [tail] = file.read([(file.size - length, file.size)])
    return tail[len(tail) - length :]


def _chunk(metadata: Any, group: int, leaf: int) -> Range:
    """Return where the bytes of one column of one row group lie (parquet.thrift, ColumnMetaData)."""
    column = metadata.row_group(group).column(leaf)
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        start = min(start, column.dictionary_page_offset)
    return start, start + column.total_compressed_size


def _columns(schema: pa.Schema) -> dict[str, list[_Column]]:
    """Return the columns by name, ``<field>.<member>`` for those of structs; several where two have one."""
    columns: dict[str, list[_Column]] = {}
    number = 0
    for field in schema:
        for path, kind in members(field.type):
            count = _leaf_count(kind)
            leaves = tuple(range(number, number + count))
            name = ".".join((field.name, *path))
            columns.setdefault(name, []).append(_Column(field.name, path, kind, leaves))
            number += count
    return columns


def _leaf_count(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _leaf_count(kind.storage_type)
    return sum(_leaf_count(kind.field(index).type) for index in range(kind.num_fields)) or 1


def _unreadable(path: str, reason: str) -> FileUnreadableError:
    return FileUnreadableError(
        f"cannot read {path}, {reason}", "It may be cut short or damaged: copy it again, or leave it out"
    )
