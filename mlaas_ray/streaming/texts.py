"""CSV and JSON lines as events: read once when opened, to count the rows and tell the columns' types."""

from __future__ import annotations

import csv
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json

from mlaas_ray.core.columns import Columns
from mlaas_ray.core.errors import BranchMissingError, FileUnreadableError, nearest
from mlaas_ray.streaming.arrow import branch_of, column_of
from mlaas_ray.streaming.events import Branch, Nested
from mlaas_ray.streaming.rows import RowBlock, line_of, row_blocks, row_spans
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.transport import open_bytes
from mlaas_ray.streaming.unpacked import plain_text

# Of each end of a file, for its identifier (bytes).
ENDS = 64 << 10
# The row that pyarrow's messages name, if any: of CSV from 1, of JSON from 0.
_ROW = re.compile(r"Row #(\d+): |in row (\d+)")
_NUMBER = r"^\s*[-+]?(\d+\.?\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|nan|inf(inity)?)\s*$"


@dataclass(frozen=True)
class _Fetched:
    names: tuple[str, ...]
    start: int
    stop: int
    blocks: tuple[RowBlock, ...]


@dataclass
class _Types:
    """What is known of the columns after some blocks.

    Attributes:
        known: Type of each column that has had a value.
        refused: Why a column cannot be numbers.
        empty: Columns without a value so far.
    """

    known: dict[str, pa.DataType] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)

    def add(self, name: str, kind: pa.DataType) -> None:
        """Widen a column's type by what another block holds."""
        if name in self.refused:
            return
        if pa.types.is_null(kind) and name not in self.known:
            self.empty.add(name)
            return
        self.empty.discard(name)
        before = self.known.get(name, kind)
        wider = _wider(before, kind)
        if wider is None:
            self.refused[name] = f"{before} and {kind}"
        else:
            self.known[name] = wider


class TextEvents(ABC):
    """A text of one event a row; see :class:`mlaas_ray.streaming.events.Events`.

    Blocks of rows are the clusters. What :meth:`fetch` gets is mapped: :meth:`decode` parses it.

    Args:
        source: The file.
        nested: What becomes of lists of lists.
    """

    format: str
    tree = ""
    beside: tuple[str, ...] = ()
    quoted = False

    def __init__(self, source: Source, nested: Nested = "leave") -> None:
        self.data = file = open_bytes(source)
        self.path, self.size = source.path, file.size
        ends = file.read([(0, min(ENDS, file.size)), (max(0, file.size - ENDS), file.size)])
        self.uuid = hashlib.sha256(b"%d" % file.size + ends[0] + ends[1]).hexdigest()[:32]
        self._text = plain_text(file)
        file.close()
        start, line = self._begin()
        self._types = _Types()
        blocks = []
        for block in row_blocks(self._text, start, line, quoted=self.quoted):
            self._examine(block)
            blocks.append(block)
        self._blocks = tuple(block for block in blocks if block.rows)
        self.entries = sum(block.rows for block in self._blocks)
        self.branches, self.left_out = self._describe(nested)

    @abstractmethod
    def _begin(self) -> tuple[int, int]:
        """Read what precedes the rows; return the first row's first byte and line."""

    @abstractmethod
    def _parse(self, block: RowBlock, names: Sequence[str] | None) -> pa.Table:
        """Parse some columns of a block by the types known; with None all, by the types they seem to have."""

    def boundaries(self, names: Sequence[str]) -> tuple[int, ...]:
        """See :class:`mlaas_ray.streaming.events.Events`: blocks are the same for all columns."""
        return (*(block.entry for block in self._blocks), self.entries) if self._blocks else (0,)

    def fetch(self, names: Sequence[str], start: int, stop: int) -> _Fetched:
        """See :class:`mlaas_ray.streaming.events.Events`."""
        for name in names:
            if name not in self.branches:
                raise BranchMissingError(
                    f"no numeric column {name!r} in {self.path}", nearest(name, self.branches)
                )
        blocks = [block for block in self._blocks if block.entry < stop and start < block.entry + block.rows]
        return _Fetched(tuple(names), start, stop, tuple(blocks))

    def decode(self, fetched: _Fetched) -> Columns:
        """See :class:`mlaas_ray.streaming.events.Events`."""
        if not fetched.names:
            return {}
        schema = pa.schema([(name, self._types.known[name]) for name in fetched.names])
        tables = [self._parsed(block, fetched.names).select(fetched.names) for block in fetched.blocks]
        table = pa.concat_tables(tables) if tables else schema.empty_table()
        first = fetched.blocks[0].entry if fetched.blocks else 0
        table = table.slice(fetched.start - first, fetched.stop - fetched.start)
        return {name: column_of(table.column(name), self.branches[name].kind) for name in fetched.names}

    def _describe(self, nested: Nested) -> tuple[Mapping[str, Branch], Mapping[str, str]]:
        types = self._types
        left_out = {**types.refused, **dict.fromkeys(types.empty, "no value in any row")}
        branches = {}
        size = len(self._text) // max(1, len(types.known) + len(left_out))
        for name, kind in types.known.items():
            branch = None if name in left_out else branch_of(name, kind, nested, size)
            if branch is None:
                left_out.setdefault(name, str(kind))
            else:
                branches[name] = branch
        return branches, left_out

    def _examine(self, block: RowBlock) -> None:
        """Learn from a block what its columns are."""
        if not block.rows:
            return
        table = self._parsed(block, None)
        for name, column in zip(table.column_names, table.columns, strict=True):
            self._types.add(name, column.type)

    def _parsed(self, block: RowBlock, names: Sequence[str] | None) -> pa.Table:
        try:
            table = self._parse(block, names)
        except (pa.ArrowException, ValueError) as error:
            where, said = self._blame(block, str(error))
            raise self._unreadable(f"{where}: {said}") from error
        if table.num_rows != block.rows:
            last = line_of(self._text, block, block.rows - 1, quoted=self.quoted)
            raise self._unreadable(
                f"lines {block.line} to {last}: they hold {table.num_rows} rows instead of {block.rows}"
            )
        return table

    def _blame(self, block: RowBlock, said: str) -> tuple[str, str]:
        """Return the line that pyarrow complains about, and the complaint without its own count of rows."""
        match = _ROW.search(said)
        if not match:
            return f"lines from {block.line} on", said
        row = int(match[1]) - 1 if match[1] else int(match[2])
        line = line_of(self._text, block, row, quoted=self.quoted)
        return f"line {line}", _ROW.sub("", said).strip()

    def _buffer(self, block: RowBlock) -> pa.BufferReader:
        return pa.BufferReader(pa.py_buffer(self._text[block.start : block.stop]))

    def _unreadable(self, reason: str) -> FileUnreadableError:
        return FileUnreadableError(
            f"cannot read {self.path}, {reason}", f"Correct it: it should be {self.format}"
        )


class CsvEvents(TextEvents):
    """CSV: values separated by commas, and a first row that names the columns."""

    format = "CSV"

    def _begin(self) -> tuple[int, int]:
        self.quoted = _holds_quote(self._text)
        blocks = row_blocks(self._text, 0, 1, quoted=self.quoted)
        first = next((block for block in blocks if block.rows), None)
        if first is None:
            return len(self._text), 1
        start, stop = map(int, row_spans(self._text, first, quoted=self.quoted)[0])
        row = bytes(self._text[start:stop])
        line = line_of(self._text, first, 0, quoted=self.quoted)
        self._names = self._header(row.strip(b"\r\n"), line)
        return stop, line + row.count(b"\n")

    def _header(self, row: bytes, line: int) -> list[str]:
        text = row.decode("utf-8-sig", errors="replace")
        names = [name.strip() for name in next(csv.reader([text]))]
        if all(re.match(_NUMBER, name) for name in names):
            raise self._unreadable(f"line {line}: it holds numbers instead of the columns' names")
        if len(names) == 1 and re.search(r"[;\t]", text):
            raise self._unreadable(f"line {line}: its names are not separated by commas")
        twice = [name for name in names if name and names.count(name) > 1]
        if twice:
            raise self._unreadable(f"line {line}: it names the column {twice[0]!r} twice")
        # as of the index that pandas writes
        return [name or f"column {number}" for number, name in enumerate(names, start=1)]

    def _parse(self, block: RowBlock, names: Sequence[str] | None) -> pa.Table:
        convert = pa_csv.ConvertOptions()
        if names is not None:
            types = {name: self._types.known[name] for name in names}
            convert = pa_csv.ConvertOptions(column_types=types, include_columns=list(names))
        size = block.stop - block.start
        return pa_csv.read_csv(
            self._buffer(block),
            pa_csv.ReadOptions(use_threads=False, block_size=size + 1, column_names=self._names),
            pa_csv.ParseOptions(newlines_in_values=self.quoted),
            convert,
        )

    def _examine(self, block: RowBlock) -> None:
        if not block.rows:
            return
        table = self._parsed(block, None)
        for name, column in zip(table.column_names, table.columns, strict=True):
            if pa.types.is_string(column.type) and name not in self._types.refused:
                self._types.refused[name] = self._text_reason(block, column)
            self._types.add(name, column.type)

    def _text_reason(self, block: RowBlock, column: pa.ChunkedArray) -> str:
        """Say which value is no number, if most are."""
        numbers = pc.match_substring_regex(pc.utf8_lower(column), _NUMBER)
        strange = np.flatnonzero(~numbers.to_numpy() & (pc.utf8_length(column).to_numpy() > 0))
        if 2 * len(strange) > len(column) or not len(strange):
            return "text"
        row = int(strange[0])
        line = line_of(self._text, block, row, quoted=self.quoted)
        return f"text: {column[row].as_py()[:50]!r} in line {line}"


class JsonEvents(TextEvents):
    """JSON lines: one object a line; numbers and lists of numbers are columns."""

    format = "JSON lines"

    def _begin(self) -> tuple[int, int]:
        blank = len(self._text) <= ENDS and not bytes(self._text).strip()
        return len(self._text) if blank else 0, 1

    def _parse(self, block: RowBlock, names: Sequence[str] | None) -> pa.Table:
        parse = pa_json.ParseOptions()
        if names is not None:
            schema = pa.schema([(name, self._types.known[name]) for name in names])
            parse = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        size = block.stop - block.start
        options = pa_json.ReadOptions(use_threads=False, block_size=size + 1)
        return pa_json.read_json(self._buffer(block), options, parse)


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type that holds both, or None."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_list(one) and pa.types.is_list(other):
        inner = _wider(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    return None


def _holds_quote(text: memoryview) -> bool:
    step = 16 << 20
    return any(b'"' in bytes(text[at : at + step]) for at in range(0, len(text), step))
