"""Rows of a text: where they begin and end, found block by block without holding the text in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Text that is parsed at once (bytes).
BLOCK = 4 << 20

_NEWLINE, _RETURN, _QUOTE = b"\n"[0], b"\r"[0], b'"'[0]


@dataclass(frozen=True)
class RowBlock:
    """Some whole rows.

    Attributes:
        start: First byte.
        stop: End of the bytes.
        entry: Number of its first row in the file.
        rows: Rows; blank lines are none.
        line: Number of the line it starts with, from 1.
    """

    start: int
    stop: int
    entry: int
    rows: int
    line: int


def row_blocks(text: memoryview, start: int, line: int, *, quoted: bool) -> Iterator[RowBlock]:
    """Cut a text into blocks of whole rows.

    Args:
        text: All of it, mapped.
        start: First byte of the first row.
        line: Number of the line that starts there.
        quoted: Whether double quotes may hold newlines, which end no row then.
    """
    entry, size = 0, BLOCK
    while start < len(text):
        window = np.frombuffer(text[start : start + size], np.uint8)
        ends = _row_ends(window, quoted)
        if start + size >= len(text) and (not len(ends) or ends[-1] < len(window)):
            ends = np.append(ends, len(window))  # the last row needs no newline
        if not len(ends):  # a row longer than a block
            size *= 2
            continue
        stop = start + int(ends[-1])
        rows = int(np.count_nonzero(~_blank(window, ends)))
        yield RowBlock(start, stop, entry, rows, line)
        line += int(np.count_nonzero(window[: ends[-1]] == _NEWLINE))
        start, entry, size = stop, entry + rows, BLOCK


def row_spans(text: memoryview, block: RowBlock, *, quoted: bool) -> npt.NDArray[np.int64]:
    """Return the first byte and the end of each row of a block in the text, ``(rows, 2)``."""
    window = np.frombuffer(text[block.start : block.stop], np.uint8)
    ends = _row_ends(window, quoted)
    if not len(ends) or ends[-1] < len(window):
        ends = np.append(ends, len(window))
    spans: npt.NDArray[np.int64] = np.stack([np.append(0, ends[:-1]), ends], axis=1)
    return spans[~_blank(window, ends)] + block.start


def line_of(text: memoryview, block: RowBlock, row: int, *, quoted: bool) -> int:
    """Return the number of the line where a row of a block begins, from 1; rows count from 0."""
    spans = row_spans(text, block, quoted=quoted)
    begin = int(spans[min(row, len(spans) - 1), 0])
    return block.line + bytes(text[block.start : begin]).count(b"\n")


def _row_ends(window: npt.NDArray[np.uint8], quoted: bool) -> npt.NDArray[np.int64]:
    ends = np.flatnonzero(window == _NEWLINE)
    if quoted:
        # Inside quotes their number so far is odd; a quote that is part of the text is written twice.
        inside: npt.NDArray[Any] = np.cumsum(window == _QUOTE, dtype=np.int32)[ends] & 1
        ends = ends[inside == 0]
    return ends + 1


def _blank(window: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Tell which rows hold nothing but their newline."""
    starts = np.append(0, ends[:-1])
    lengths = ends - starts
    first = window[starts]
    blank: npt.NDArray[np.bool_] = (lengths == 1) & (first == _NEWLINE)
    blank |= (lengths == 2) & (first == _RETURN) & (window[ends - 1] == _NEWLINE)
    return blank
