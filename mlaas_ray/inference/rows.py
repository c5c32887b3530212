"""Rows as most programs send them, read by a typed decoder or numbers already, put into a model's columns.

What :func:`read_row` and :func:`read_rows` do not take, or :func:`placement_of` and :func:`place_many` do not
allow, is no error yet: :mod:`mlaas_ray.inference.events` reads it in general, and says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import EventError, nearest
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.flatten import Rows

# Lists of keys, each with the model it is for, whose positions are remembered, and the longest such.
KNOWN_KEYS = 1024
LONGEST_KEYS = 1024
# Bodies around values that are remembered, and the longest such with its values.
KNOWN_FRAMES = 1024
LONGEST_FRAME = 16384

# What most models take; rows for them are the quick ones.
FLOAT32 = np.dtype(np.float32)

Keys = tuple[str, ...]
# of each key; a slice of all where they are in order
Positions = npt.NDArray[np.intp] | slice


class SingleRow(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The values of one row, as JSON has them.

    Attributes:
        values: Numbers; None where there is none.
        model: ``name`` or ``name:version``; empty when it is left out.
        keys: Names of the values; None when they are in the model's order.
    """

    values: list[float | None]
    model: str = ""
    keys: Keys | None = None


class ManyRows(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The values of many rows, as JSON has them; else as :class:`SingleRow`."""

    values: list[list[float | None]]
    model: str = ""
    keys: Keys | None = None


class ArrayRow(msgspec.Struct, frozen=True, gc=False):
    """The values of one row that are numbers already ``(values,)``, NaN where there is none."""

    values: Rows
    model: str = ""
    keys: Keys | None = None


@dataclass(frozen=True)
class Table:
    """Rows that are numbers already.

    Attributes:
        values: ``(events, values)`` of any type of numbers, NaN where there is none.
        model: ``name`` or ``name:version``; empty when it is left out.
        keys: Names of the values; None when they are in the model's order.
        many: Whether several rows may have been sent.
    """

    values: npt.NDArray[Any]
    model: str = ""
    keys: Keys | None = None
    many: bool = True

    def rows(
        self, spec: FeatureSpec | None, width: int, dtype: np.dtype[Any] = FLOAT32
    ) -> tuple[npt.NDArray[Any], bool]:
        """Turn the values into a model's rows.

        Args:
            spec: The model's columns; None in a model that came from elsewhere.
            width: Values a row has.
            dtype: Type of its values.

        Returns:
            ``(events, features)`` of that type, and whether many rows may have been sent.

        Raises:
            EventError: For values that do not fit the model.
        """
        # TFaaS ignores the keys; so does a model that knows no columns.
        keys = self.keys if spec is not None else None
        sent = width if keys is None else len(keys)
        values = self.values
        if not len(values):
            raise EventError("there are no rows", "Send one at least")
        if values.shape[1] != sent:
            expected = f"the model takes {width} values" if keys is None else f"{sent} keys"
            raise EventError(f"{values.shape[1]} values were sent, but {expected}", "Send one value for each")
        if keys is not None and spec is not None:
            # NaN marks what is missing
            if values.dtype.kind != "f":
                values = values.astype(carrier(dtype))
            values = scatter(values, positions_of(keys, spec), width)
        return fit(values, dtype, spec), self.many


_VALUES = b'"values"'
_BEFORE = re.compile(rb'"values"[ \t\r\n]*:[ \t\r\n]*\Z')
_frames: dict[tuple[bytes, bytes], SingleRow] = {}

_LIST = msgspec.json.Decoder(list[float | None])
_SINGLE = msgspec.json.Decoder(SingleRow)
_MANY = msgspec.json.Decoder(ManyRows)


def read_row(body: bytes) -> SingleRow | None:
    """Read JSON of one row in its usual form, ``{"model": …, "keys": […], "values": […]}``.

    A program's requests differ in their values only. So what stands around the values is remembered, and of a
    body with the same around them only the list of values is parsed; ``keys`` is then the same object.

    Returns:
        None for anything else, right or wrong.
    """
    try:
        if len(body) > LONGEST_FRAME:
            return _SINGLE.decode(body)
        start = body.find(b"[", body.find(_VALUES))
        end = body.find(b"]", start) + 1
        frame = (body[:start], body[end:])
        known = _frames.get(frame)
        if known is not None:
            return SingleRow(_LIST.decode(body[start:end]), known.model, known.keys)
        row = _SINGLE.decode(body)
    except (ValueError, RecursionError):
        return None
    if _framed(frame, body[start:end], row):
        if len(_frames) >= KNOWN_FRAMES:
            _frames.clear()
        _frames[frame] = row
    return row


def _framed(frame: tuple[bytes, bytes], middle: bytes, row: SingleRow) -> bool:
    """Tell whether a body is its values in a frame, so that other values in it would make another body.

    That is so when the name ``values`` stands once, right before the list, which holds numbers only.
    """
    before, after = frame
    # A backslash may write the name in another way, and the last of several is the one that counts.
    if not _BEFORE.search(before) or before.count(_VALUES) != 1 or _VALUES in after or b"\\" in after:
        return False
    try:
        return bool(_LIST.decode(middle) == row.values)
    except (ValueError, RecursionError):
        return False


def read_rows(body: bytes) -> ManyRows | None:
    """Read JSON of many rows in its usual form, ``{"model": …, "keys": […], "values": [[…], …]}``.

    Returns:
        None for anything else, right or wrong.
    """
    try:
        return _MANY.decode(body)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True, eq=False, slots=True)
class Placement:
    """Where the values of a row go in a model's row; one object for all rows alike, whichever their model.

    Attributes:
        sent: How many values there are.
        positions: The column of each.
        width: Columns of the model's row.
    """

    sent: int
    positions: Positions
    width: int


def placement_of(row: SingleRow | ArrayRow, spec: FeatureSpec | None, width: int) -> Placement | None:
    """Say where the values of a row go; of their size nothing is said.

    Args:
        row: As it was sent.
        spec: The model's columns; None in a model that came from elsewhere.
        width: Values a row has.

    Returns:
        None for a row that does not fit.
    """
    values = row.values
    placement = _in_order(width) if spec is None or row.keys is None else _known_placement(row.keys, spec)
    if placement is None or len(values) != placement.sent or not len(values):
        return None
    return placement


def place(rows: Sequence[SingleRow | ArrayRow], placement: Placement) -> Rows:
    """Put rows, all of the same placement, into their models' columns.

    Returns:
        ``(events, features)`` float32; infinite where a value is too large for it.
    """
    cells: Rows
    if isinstance(rows[0], ArrayRow):
        cells = np.concatenate([np.asarray(row.values) for row in rows], dtype=np.float32)
    else:
        cells = _cells([row.values for row in rows], placement.sent)  # type: ignore[misc]
    return scatter(cells.reshape(len(rows), placement.sent), placement.positions, placement.width)


def place_row(row: SingleRow | ArrayRow, spec: FeatureSpec | None, width: int) -> Rows | None:
    """Put the values of one row into a model's columns: :func:`placement_of` and :func:`place` in one.

    Returns:
        ``(features,)`` float32; None for what does not fit.
    """
    placement = placement_of(row, spec, width)
    if placement is None:
        return None
    placed: Rows = place([row], placement)[0]
    return None if np.isinf(placed).any() else placed


def place_many(many: ManyRows, spec: FeatureSpec | None, width: int) -> Rows | None:
    """Put the values of many rows into a model's columns, as :func:`place_row` does.

    Returns:
        ``(events, features)`` float32; None for what does not fit.
    """
    rows = many.values
    keys = many.keys if spec is not None else None
    sent = width if keys is None else len(keys)
    if not rows or not sent or set(map(len, rows)) != {sent}:
        return None
    cells = _cells(rows, sent)
    if np.isinf(cells).any():
        return None
    placed = cells.reshape(len(rows), sent)
    if keys is None or spec is None:
        return placed
    placement = _known_placement(keys, spec)
    return None if placement is None else scatter(placed, placement.positions, width)


def _cells(rows: Sequence[list[float | None]], sent: int) -> Rows:
    """Return ``(rows * sent,)`` float32 of lists of so many values each."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and None NaN
        return np.fromiter(chain.from_iterable(rows), dtype=np.float32, count=len(rows) * sent)


def scatter(values: Rows, positions: Positions, width: int) -> Rows:
    """Put ``(events, values)`` at their positions in rows ``(events, width)`` that are NaN elsewhere.

    Where they are in order already, the rows may be the values themselves.
    """
    if isinstance(positions, slice):
        # which may lie at any address, and not every runtime takes that
        return np.require(values, None, ["C", "A"])
    result = np.full((len(values), width), np.nan, dtype=values.dtype)
    result[:, positions] = values
    return result


def carrier(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """Return a type that holds a missing value as NaN and, without loss, what a model's type can hold.

    On Linux long double has 64 bits of mantissa at least: all 64-bit integers and float64 are in it.
    """
    return np.float32 if dtype == FLOAT32 else np.longdouble


def fit(values: npt.NDArray[Any], dtype: np.dtype[Any], spec: FeatureSpec | None = None) -> npt.NDArray[Any]:
    """Return rows in the type that a model takes; only floating-point numbers are rounded.

    Args:
        values: ``(events, features)`` of any type of numbers.
        dtype: The type.
        spec: The columns' names.

    Returns:
        ``(events, features)``, contiguous and aligned: values within a body may lie at any address, which not
        every runtime takes.

    Raises:
        EventError: Naming the first value that the type cannot hold.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.require(values, dtype, ["C", "A"])
        if dtype.kind == "f":
            bad = np.isinf(rows)
        elif values.dtype == dtype:
            return rows
        else:  # NaN, too, is not what became of it
            bad = rows.astype(np.longdouble) != values
    if not bad.any():
        return rows
    row, column = np.argwhere(bad)[0]
    name = spec.columns[column] if spec else f"number {column}"
    where, shown = f"row {row}: the value of {name}", _shown(values[row, column])
    if dtype.kind == "f":
        raise EventError(f"{where} is too large for {dtype}: {shown}", "Send a finite value")
    least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    remedy = f"Send whole numbers from {least} to {most}"
    raise EventError(f"{where} is {shown}, which {dtype} cannot hold", remedy)


def _shown(value: np.number[Any]) -> str:
    if np.isnan(value):
        return "missing"
    # a long double would show digits that nobody sent
    whole = abs(value) < 1e20 and value == int(value)
    return str(int(value)) if whole else str(np.float64(value) if value.itemsize > 8 else value)


def positions_of(keys: Sequence[Any], spec: FeatureSpec) -> Positions:
    """Return the column of each key ``(keys,)``.

    Raises:
        EventError: For a key the model does not know, or one given twice.
    """
    positions = []
    for key in keys:
        position = spec.index.get(key) if isinstance(key, str) else None
        if position is None:
            if isinstance(key, str) and key in spec.raw:
                raise EventError(
                    f"{key!r} is a branch of the files, not a column of the model",
                    "Send the branches as an event",
                )
            raise EventError(f"the model knows no key {key!r}", nearest(str(key), spec.columns))
        positions.append(position)
    if len(set(positions)) != len(positions):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise EventError(f"the key {twice!r} is given twice", "Send each key once")
    return _placement(tuple(positions), spec.width).positions


def _placement(positions: tuple[int, ...], width: int) -> Placement:
    if positions == tuple(range(width)):
        return _in_order(width)
    return Placement(len(positions), np.array(positions, dtype=np.intp), width)


# the one placement with these positions, of models whose specs are equal
_shared_placement = lru_cache(KNOWN_KEYS)(_placement)


@lru_cache(KNOWN_KEYS)
def _in_order(width: int) -> Placement:
    return Placement(width, slice(None), width)


_placements: dict[tuple[int, Keys], tuple[FeatureSpec, Placement]] = {}


def _known_placement(keys: Keys, spec: FeatureSpec) -> Placement | None:
    """Return where the values of keys go, remembered by spec; None when one is unknown or given twice."""
    found = _placements.get((id(spec), keys))
    if found is not None:  # it holds the spec, so that no other has its id
        return found[1]
    positions = tuple([spec.index.get(key, -1) for key in keys])
    if -1 in positions or len(set(positions)) != len(positions):
        return None
    if len(keys) > LONGEST_KEYS:
        return _placement(positions, spec.width)
    placement = _shared_placement(positions, spec.width)
    if len(_placements) >= KNOWN_KEYS:
        _placements.clear()
    _placements[id(spec), keys] = spec, placement
    return placement
