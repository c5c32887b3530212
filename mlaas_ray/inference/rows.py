"""Rows as most programs send them, read by a typed decoder or numbers already, put into a model's columns.

What :func:`read_row` and :func:`read_rows` do not take, or :func:`place_row` and :func:`place_many` do not
place, is no error yet: :mod:`mlaas_ray.inference.events` reads it in general, and says what is wrong.
"""

from __future__ import annotations

import math
import struct
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

# Lists of keys whose positions are remembered, and the longest such.
KNOWN_KEYS = 256
LONGEST_KEYS = 1024

Keys = tuple[str, ...]
Positions = npt.NDArray[np.intp]


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
        values: ``(events, values)`` float32, NaN where there is none.
        model: ``name`` or ``name:version``; empty when it is left out.
        keys: Names of the values; None when they are in the model's order.
        many: Whether several rows may have been sent.
    """

    values: Rows
    model: str = ""
    keys: Keys | None = None
    many: bool = True

    def rows(self, spec: FeatureSpec | None, width: int) -> tuple[Rows, bool]:
        """Turn the values into a model's rows.

        Args:
            spec: The model's columns; None in a model that came from elsewhere.
            width: Values a row has.

        Returns:
            ``(events, features)`` float32, and whether many rows may have been sent.

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
            values = scatter(values, positions_of(keys, spec), width)
        refuse_infinite(values, spec)
        # numbers within a body may lie at any address, which not every runtime takes
        return np.require(values, np.float32, ["C", "A"]), self.many


_SINGLE = msgspec.json.Decoder(SingleRow)
_MANY = msgspec.json.Decoder(ManyRows)


def read_row(body: bytes) -> SingleRow | None:
    """Read JSON of one row in its usual form, ``{"model": …, "keys": […], "values": […]}``.

    Returns:
        None for anything else, right or wrong.
    """
    try:
        return _SINGLE.decode(body)
    except (ValueError, RecursionError):
        return None


def read_rows(body: bytes) -> ManyRows | None:
    """Read JSON of many rows in its usual form, ``{"model": …, "keys": […], "values": [[…], …]}``.

    Returns:
        None for anything else, right or wrong.
    """
    try:
        return _MANY.decode(body)
    except (ValueError, RecursionError):
        return None


def place_row(row: SingleRow | ArrayRow, spec: FeatureSpec | None, width: int) -> Rows | None:
    """Put the values of one row into a model's columns.

    Args:
        row: As it was sent.
        spec: The model's columns; None in a model that came from elsewhere.
        width: Values a row has.

    Returns:
        ``(features,)`` float32, which may be read-only; None for what does not fit.
    """
    values = row.values
    keys = row.keys if spec is not None else None
    if len(values) != (width if keys is None else len(keys)) or not len(values):
        return None
    placed = values if isinstance(values, np.ndarray) else _packed(values, null=spec is not None)
    if placed is None or np.isinf(placed).any():
        return None
    if keys is None or spec is None:
        return placed
    positions = _known_positions(keys, spec)
    if positions is None:
        return None
    result = np.full(width, np.nan, dtype=np.float32)
    result[positions] = placed
    return result


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
    if spec is None and any(None in row for row in rows):
        return None
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and None NaN
        cells = np.fromiter(chain.from_iterable(rows), dtype=np.float32, count=len(rows) * sent)
    if np.isinf(cells).any():
        return None
    placed = cells.reshape(len(rows), sent)
    if keys is None or spec is None:
        return placed
    positions = _known_positions(keys, spec)
    return None if positions is None else scatter(placed, positions, width)


def scatter(values: Rows, positions: Positions, width: int) -> Rows:
    """Put ``(events, values)`` at their positions in rows ``(events, width)`` that are NaN elsewhere."""
    result = np.full((len(values), width), np.nan, dtype=np.float32)
    result[:, positions] = values
    return result


def refuse_infinite(rows: Rows, spec: FeatureSpec | None) -> None:
    """Refuse rows of which a value is no finite float32.

    Raises:
        EventError: Naming the first such value.
    """
    infinite = np.isinf(rows)
    if infinite.any():
        row, column = np.argwhere(infinite)[0]
        name = spec.columns[column] if spec else f"number {column}"
        raise EventError(f"row {row}: the value of {name} is too large for float32", "Send a finite value")


def positions_of(keys: Sequence[Any], spec: FeatureSpec) -> Positions:
    """Return the column of each key ``(keys,)``.

    Raises:
        EventError: For a key the model does not know, or one given twice.
    """
    positions = []
    for key in keys:
        position = spec.index.get(key) if isinstance(key, str) else None
        if position is None:
            raise EventError(f"the model knows no key {key!r}", nearest(str(key), spec.columns))
        positions.append(position)
    if len(set(positions)) != len(positions):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise EventError(f"the key {twice!r} is given twice", "Send each key once")
    return np.array(positions, dtype=np.intp)


def _packed(values: Sequence[float | None], *, null: bool) -> Rows | None:
    """Return values as float32; None when one is too large, or is None and may not be."""
    pack = _floats(len(values)).pack
    try:
        try:
            return np.frombuffer(pack(*values), dtype=np.float32)
        except struct.error:  # None is among them
            if not null:
                return None
            filled = [math.nan if value is None else value for value in values]
            return np.frombuffer(pack(*filled), dtype=np.float32)
    except OverflowError:
        return None


@lru_cache(256)
def _floats(count: int) -> struct.Struct:
    return struct.Struct(f"={count}f")


_placed: dict[tuple[int, Keys], tuple[FeatureSpec, Positions]] = {}


def _known_positions(keys: Keys, spec: FeatureSpec) -> Positions | None:
    """Return the column of each key, remembered by spec; None when one is unknown or given twice."""
    found = _placed.get((id(spec), keys))
    if found is not None:  # it holds the spec, so that no other has its id
        return found[1]
    known = [spec.index.get(key, -1) for key in keys]
    if -1 in known or len(set(known)) != len(known):
        return None
    positions = np.array(known, dtype=np.intp)
    if len(keys) <= LONGEST_KEYS:
        if len(_placed) >= KNOWN_KEYS:
            _placed.clear()
        _placed[id(spec), keys] = spec, positions
    return positions
