"""Ranges of bytes: neighbours are read together, large ones in parts, and each gets its own bytes back."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

# First byte and end (not included).
Range = tuple[int, int]

# Reading this many bytes for nothing costs less than another range.
GAP = 4096


def plan(ranges: Sequence[Range], *, largest: int, lone: int, gap: int = GAP) -> list[Range]:
    """Join neighbours, and cut what is too large.

    Args:
        ranges: In any order; they may overlap.
        largest: Bytes up to which ranges are joined; only one that is larger by itself becomes larger.
        lone: Bytes into which ranges larger than ``largest`` are cut.
        gap: Bytes between two ranges up to which they are joined.

    Returns:
        Disjoint or touching parts that cover every range, ascending.
    """
    parts: list[Range] = []
    for start, stop in sorted(span for span in ranges if span[0] < span[1]):
        if parts:
            first, last = parts[-1]
            if stop <= last:
                continue
            if start <= last + gap and stop - first <= largest:
                parts[-1] = (first, stop)
                continue
            start = max(start, last)
        while stop - start > lone:
            parts.append((start, start + lone))
            start += lone
        parts.append((start, stop))
    return parts


def gather(ranges: Sequence[Range], parts: Mapping[Range, memoryview]) -> list[memoryview]:
    """Cut each range out of the parts that cover it; bytes are copied only where a range spans several.

    Args:
        ranges: As given to :func:`plan`.
        parts: What :func:`plan` made of them, with their bytes.
    """
    order = sorted(parts)
    starts = [start for start, _ in order]
    return [_cut(span, order, starts, parts) for span in ranges]


def _cut(
    span: Range, order: Sequence[Range], starts: Sequence[int], parts: Mapping[Range, memoryview]
) -> memoryview:
    start, stop = span
    if start >= stop:
        return memoryview(b"")
    index = bisect_right(starts, start) - 1
    pieces = []
    while start < stop:
        first, last = order[index]
        end = min(stop, last)
        pieces.append(parts[order[index]][start - first : end - first])
        start, index = end, index + 1
    return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
