"""Scatter: the columns of some events written straight to their rows, in any order, in one pass over memory.

It gives what :func:`mlaas_ray.core.flatten.flatten` gives, which is the reference. What differs is what it
costs: values are taken in either byte order as they lie in a file, the events of a block may be shuffled,
split or left out without a copy, and every row is written once (docs/decisions/0016-own-baskets.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.columns import Column, Jagged
from mlaas_ray.core.errors import FeatureError, nearest
from mlaas_ray.core.features import Feature, FeatureSpec
from mlaas_ray.core.flatten import Rows, as_column

Indices = npt.NDArray[np.int64]

# Bytes of rows that are filled together: they stay in a core's second cache (measured, 500 to 1,800 columns).
_TILE_BYTES = 1 << 20
_TILE_EVENTS = 256
# Values of a branch that are converted together.
_ROOM = 8192


class Bounds(NamedTuple):
    """The range in which the values of each feature are expected.

    Attributes:
        low: ``(branches,)`` float32, in the order of ``spec.features``; minus infinity for any.
        high: ``(branches,)`` float32; plus infinity for any.
    """

    low: Rows
    high: Rows

    @classmethod
    def of(cls, spec: FeatureSpec) -> Bounds:
        """Return the smallest and largest values that the first pass saw."""
        seen = [(f.statistics.min, f.statistics.max) if f.statistics else (None, None) for f in spec.features]
        low = np.array([-np.inf if least is None else least for least, _ in seen], np.float32)
        high = np.array([np.inf if most is None else most for _, most in seen], np.float32)
        # statistics are of float64: a whole number beyond it, rounded once, may be the next float32
        below, above = np.nextafter(low, np.float32(-np.inf)), np.nextafter(high, np.float32(np.inf))
        return cls(np.where(abs(low) < 2**53, low, below), np.where(abs(high) < 2**53, high, above))


def scatter(
    columns: Mapping[str, Any],
    spec: FeatureSpec,
    out: Rows,
    rows: Indices | None = None,
    *,
    bounds: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
) -> Indices:
    """Write event ``i`` of some columns to row ``rows[i]``.

    Every slot of a row that is written gets its value or NaN; other rows stay as they are.

    Args:
        columns: By branch name. Branches of one collection are quickest when they share their offsets object.
        spec: The columns of a row.
        out: ``(n, width)`` float32, C-contiguous.
        rows: ``(events,)`` int64, each in ``[0, n)``, or -1 to leave an event out; None for ``0, 1, 2, …``.
        bounds: Least and greatest value to expect, each ``(branches,)``, as :class:`Bounds`.

    Returns:
        ``(branches,)`` int64: the finite values of each feature that are out of its bounds, those of events
        left out and those beyond its length included.

    Raises:
        FeatureError: When a branch is missing, of the wrong kind or number of events, not numeric, or its
            offsets do not fit its content; when ``out`` or ``rows`` are not what they should be.
    """
    missing = [feature.name for feature in spec.features if feature.name not in columns]
    if missing:
        raise FeatureError(f"no values for {missing[0]!r}", nearest(missing[0], columns))
    used = [as_column(columns[feature.name], feature) for feature in spec.features]
    events = len(used[0])
    rows = _rows(rows, events, out, spec.width)
    table, kept = _table(used, spec, events)
    limits = np.empty((len(used), 2), np.float32)
    limits[:, 0], limits[:, 1] = bounds or (-np.inf, np.inf)
    tile = max(8, min(_TILE_EVENTS, _TILE_BYTES // (4 * spec.width)))
    room = max(_ROOM, *(feature.length for feature in spec.features), 0)
    outside = np.zeros(len(used), np.int64)
    _kernel()(
        table,
        limits,
        rows,
        out,
        room,
        np.empty((tile + 1) * spec.width, np.float32),
        np.empty(2 * room + 4, np.uint64),
        np.empty(tile, np.int32),
        outside,
    )
    del kept  # the table holds only addresses of it
    return outside


@functools.cache
def _kernel() -> Callable[..., None]:
    from mlaas_ray.streaming.kernels import scatter_tiles

    return scatter_tiles


def _rows(rows: Indices | None, events: int, out: Rows, width: int) -> Indices:
    """Check where the events go."""
    if out.ndim != 2 or out.shape[1] != width or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise FeatureError(f"out must be C-contiguous float32 of shape (n, {width})")
    if rows is None:
        rows = np.arange(events, dtype=np.int64)
    rows = np.ascontiguousarray(rows)
    if rows.dtype != np.int64 or rows.shape != (events,):
        raise FeatureError(f"rows must be {events} int64, one an event, not {rows.shape} {rows.dtype}")
    if events and not (rows.min() >= -1 and rows.max() < len(out)):
        raise FeatureError(f"rows must be -1 or less than {len(out)}, the rows of out")
    return rows


def _table(used: list[Column], spec: FeatureSpec, events: int) -> tuple[Indices, list[Any]]:
    """Return what the kernel is told of each feature, and the arrays whose addresses that contains."""
    kept: list[Any] = []
    lines = []
    offsets, address = None, 0
    for feature, column in zip(spec.features, used, strict=True):
        if len(column) != events:
            first = spec.features[0].name
            raise FeatureError(
                f"{feature.name!r} has values for {len(column)} events, {first!r} for {events}"
            )
        if isinstance(column, Jagged):
            if column.offsets is not offsets:
                own = _offsets(column, feature)
                # Branches of one collection follow each other: equal offsets are as good as the same.
                if offsets is None or not np.array_equal(own, offsets):
                    kept.append(own)
                    address = _address(own)
                offsets = column.offsets
            if len(column.content) != offsets[-1]:
                raise FeatureError(
                    f"{feature.name!r} has {len(column.content)} values, but offsets for {offsets[-1]}"
                )
        values, code = _values(column.content if isinstance(column, Jagged) else column, feature)
        kept.append(values)
        jagged = address if isinstance(column, Jagged) else 0
        start = spec.starts[feature.name]
        lines.append((code, _address(values), values.itemsize, start, feature.length, jagged))
    return np.array(lines, np.int64).reshape(-1, 6), kept


def _offsets(column: Jagged, feature: Feature) -> Indices:
    """Check offsets, which may come from a damaged file: the kernel follows them wherever they point."""
    offsets = np.ascontiguousarray(column.offsets, np.int64)
    if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():
        raise FeatureError(f"the offsets of {feature.name!r} do not rise from 0")
    return offsets


def _values(column: npt.NDArray[Any], feature: Feature) -> tuple[npt.NDArray[Any], int]:
    """Return values as the kernel can take them, with the code of their type."""
    code = _codes().get(column.dtype.str)
    if code is None:  # 16 or 128 bits
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(column, np.float32), _codes()[np.dtype(np.float32).str]
    flags = column.flags
    if not (flags.c_contiguous and flags.aligned):
        column = np.require(column, requirements=("C", "A"))
    return column, code


@functools.cache
def _codes() -> dict[str, int]:
    """Codes by numpy's names of the types, ``<f4`` or ``>i2``."""
    from mlaas_ray.streaming.kernels import CODES, SWAPPED

    codes = {}
    for name, code in CODES.items():
        native = np.dtype(name)
        codes[native.str] = code
        if native.itemsize > 1:
            codes[native.newbyteorder().str] = code + SWAPPED
    return codes


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
