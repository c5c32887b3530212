"""Values: what an expression computes with; numbers of events or of their objects, and how they combine.

A value that is not there (an object an event does not have, NaN in the file) is NaN. Whole numbers and
booleans have no NaN, so they carry beside them which are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.columns import Column, Jagged, Kind
from mlaas_ray.core.errors import FeatureError

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A constant, one number an event, or any number of them an event.

    Attributes:
        content: A Python number; or ``(events,)``; or ``(objects,)`` of all events, one after the other.
        offsets: ``(events + 1,)``: event ``i`` has the objects ``offsets[i]`` to ``offsets[i + 1]``.
        missing: Like ``content``: where there is no value; only with booleans and whole numbers.
        asked: Objects that ``x[:, :2]`` asked of an event, which may have fewer; 0 for any number.
        absent: Whether it stands for a branch that the file lacks.
    """

    content: Any
    offsets: Whole | None = None
    missing: Bools | None = None
    asked: int = 0
    absent: bool = False

    @classmethod
    def of(cls, column: Column) -> Value:
        """Take a column; a fixed one becomes objects, equally many in every event."""
        if isinstance(column, Jagged):
            return cls(_plain(column.content[: column.offsets[-1]]), column.offsets)
        if column.ndim == 1:
            return cls(_plain(column))
        events, length = column.shape
        return cls(_plain(column.reshape(-1)), np.arange(events + 1, dtype=np.int64) * length)

    def standing_for(self, dtype: str) -> Value:
        """Return the same as what is filled in for a branch of a type: NaN in whole numbers is missing."""
        content, kind = self.content, np.dtype(dtype).kind
        if kind == "f" or content.dtype.kind != "f":
            return replace(self, absent=True)
        nothing: Array = np.zeros(len(content), np.bool_ if kind == "b" else np.int64)
        return Value(nothing, self.offsets, np.isnan(content), absent=True)

    @property
    def kind(self) -> Kind | None:
        """``flat`` or ``jagged``; None for a constant."""
        if self.offsets is not None:
            return "jagged"
        return "flat" if isinstance(self.content, np.ndarray) else None

    @property
    def type(self) -> str:
        """``b`` for booleans, ``i`` for whole numbers, ``f`` for any others."""
        if isinstance(self.content, np.ndarray):
            return {"b": "b", "i": "i", "u": "i"}.get(self.content.dtype.kind, "f")
        return "b" if isinstance(self.content, bool) else "i" if isinstance(self.content, int) else "f"

    @property
    def counts(self) -> Whole:
        """Objects of each event ``(events,)``."""
        return np.diff(self.objects)

    @property
    def objects(self) -> Whole:
        """The offsets, of what has objects.

        Raises:
            FeatureError: When it has one value an event.
        """
        if self.offsets is None:
            raise FeatureError(
                "this has one value an event, where a list of objects is due",
                "Leave it as it is, or name a branch of objects",
            )
        return self.offsets

    @property
    def numbers(self) -> Any:
        """The content with NaN where there is no value."""
        if self.missing is None or not self.missing.any():
            return self.content
        single = self.content.dtype.kind == "b"
        numbers = self.content.astype(np.float32 if single else np.float64)
        numbers[self.missing] = np.nan
        return numbers

    @property
    def truth(self) -> Any:
        """The content as booleans: not zero, and false where there is no value."""
        content = self.content
        if not isinstance(content, np.ndarray):
            return bool(content) and content == content
        if content.dtype.kind == "f":
            return (content != 0) & (content == content)
        true = content if content.dtype.kind == "b" else content != 0
        return true if self.missing is None else true & ~self.missing

    def take(self, index: Whole, offsets: Whole | None, there: Bools | None = None) -> Value:
        """Pick by position in ``content``; where ``there`` is false, there is no value."""
        if there is not None and there.all():
            there = None
        if there is None:
            missing = None if self.missing is None else self.missing[index]
            return Value(self.content[index], offsets, missing)
        if not len(self.content):
            return without(np.zeros(len(index), self.content.dtype), ~there, offsets)
        index = np.where(there, index, 0)
        missing = ~there if self.missing is None else ~there | self.missing[index]
        return without(self.content[index], missing, offsets)

    def of_as_many(self, *others: Value) -> Value:
        """Return the same, asked for as many objects as the most of others were."""
        return replace(self, asked=max(other.asked for other in others))

    def keep(self, mask: Bools) -> Value:
        """Keep some objects: ``mask`` is like ``content``."""
        return self.take(np.flatnonzero(mask), kept_offsets(self.objects, mask))

    def column(self, events: int) -> Column:
        """Return what a reader would have given."""
        numbers = self.numbers
        if self.offsets is not None:
            return Jagged(self.offsets, numbers)
        return numbers if isinstance(numbers, np.ndarray) else np.full(events, numbers)


class CountsDifferError(FeatureError):
    """Two values have different numbers of objects; ``pair`` are they."""

    pair: tuple[Value, Value] | None = None


def without(content: Array, missing: Bools, offsets: Whole | None = None) -> Value:
    """Return a value that lacks some of its content, which this may overwrite."""
    if content.dtype.kind != "f":
        return Value(content, offsets, missing)
    content[missing] = np.nan
    return Value(content, offsets)


def typed(x: Value) -> Value:
    """Return conditions and whole numbers some of which are missing as such: a column has them as floats.

    Conditions are float32 then, whole numbers float64. Where no value is known (the objects of an event
    without any, a branch that was not sent) they are conditions.
    """
    content = x.content
    if not isinstance(content, np.ndarray) or content.dtype.kind != "f":
        return x
    missing = np.isnan(content)
    known = content[~missing]
    if len(known) and not missing.any():
        return x
    if content.dtype.itemsize < 8 or not len(known):
        return Value(content == 1, x.offsets, missing) if np.isin(known, (0, 1)).all() else x
    if (known != np.floor(known)).any() or (abs(known) >= 2.0**63).any():
        return x
    return Value(np.where(missing, 0, content).astype(np.int64), x.offsets, missing)


def same_objects(one: Whole, other: Whole) -> bool:
    """Tell whether two branches have as many objects in every event."""
    return one is other or np.array_equal(one, other)


def aligned(values: Sequence[Value]) -> tuple[list[Value], Whole | None]:
    """Give values the same shape: what an event has one of, each of its objects has.

    Returns:
        The values, and the offsets they now have. Constants stay constants.

    Raises:
        CountsDifferError: When two have different numbers of objects.
    """
    first = next((value for value in values if value.offsets is not None), None)
    if first is None:
        return list(values), None
    offsets = first.objects
    result = []
    for value in values:
        if value.offsets is not None and not same_objects(value.offsets, offsets):
            one, other = np.diff(offsets), value.counts
            event = int(np.flatnonzero(one != other)[0]) if len(one) == len(other) else 0
            error = CountsDifferError(
                f"they have different numbers of objects, such as {one[event]} and {other[event]}",
                "Combine branches of one collection, or reduce one of them: max(…), sum(…), …[:, 0]",
            )
            error.pair = (first, value)
            raise error
        if value.kind == "flat":
            counts = np.diff(offsets)
            missing = None if value.missing is None else np.repeat(value.missing, counts)
            value = Value(np.repeat(value.content, counts), offsets, missing)
        result.append(value)
    return result, offsets


def elementwise(function: Callable[..., Any], *values: Value) -> Value:
    """Apply a function of numbers to each event or object; it sees NaN where there is no value."""
    same, offsets = aligned(values)
    content = python_number(function(*(widened(value.numbers) for value in same)))
    return Value(content, offsets).of_as_many(*values)


def widened(numbers: Any) -> Any:
    """Return whole numbers as 64-bit ones, so that none wraps around: 3 - 5 is -2, also of unsigned ones."""
    if not isinstance(numbers, np.ndarray):
        return int(numbers) if isinstance(numbers, bool) else numbers
    if numbers.dtype.kind == "f" or numbers.dtype == np.int64:
        return numbers
    if numbers.dtype == np.uint64 and numbers.size and numbers.max() > np.iinfo(np.int64).max:
        return numbers.astype(np.longdouble)  # most machines' has 64 bits: event % 2 is right
    return numbers.astype(np.int64)


def kept_offsets(offsets: Whole, mask: Bools) -> Whole:
    """Return the offsets of the objects that are kept: ``mask`` is like their content."""
    running = np.zeros(len(mask) + 1, np.int64)
    np.cumsum(mask, out=running[1:])
    return running[offsets]


def from_counts(counts: Whole) -> Whole:
    """Return the offsets of so many objects an event."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def event_of(offsets: Whole) -> Whole:
    """Return the event of each object."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def reduced(function: np.ufunc, content: Array, offsets: Whole, empty: Any, dtype: Any = None) -> Array:
    """Reduce the objects of each event by a ufunc; ``empty`` stands for an event without."""
    starts = offsets[:-1]
    filled = starts < offsets[1:]
    result = np.full(len(starts), empty, dtype or content.dtype)
    if filled.any():
        result[filled] = function.reduceat(content, starts[filled], dtype=dtype)
    return result


def sorted_index(keys: Array, offsets: Whole, *, ascending: bool) -> Whole | None:
    """Return the order of the objects within their events, as positions in the content.

    Equal ones keep their order, and NaN comes last.

    Returns:
        ``(objects,)``; None when they are in that order already.
    """
    if not ascending:
        # ~ turns whole numbers and booleans round, and cannot overflow
        keys = -keys if keys.dtype.kind == "f" else ~keys
    inner = np.ones(max(len(keys) - 1, 0), np.bool_)
    borders = offsets[1:-1]
    inner[borders[(borders > 0) & (borders < len(keys))] - 1] = False
    rising = (keys[:-1] <= keys[1:]) | ~inner
    if keys.dtype.kind == "f":
        rising |= np.isnan(keys[1:])
    if rising.all():
        return None
    events = event_of(offsets)
    if keys.dtype == np.float32:
        # One sort of whole numbers, an order of magnitude faster than sorting by two keys: the event, then
        # the bits of the number, which rise with it once those of negative ones are turned round.
        keys = np.where(np.isnan(keys), np.float32(np.nan), keys) + np.float32(0)  # one NaN, one zero
        bits = keys.view(np.uint32)
        bits = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
        return np.argsort((events.astype(np.uint64) << np.uint64(32)) | bits, kind="stable")
    return np.lexsort((keys, events))


def python_number(content: Any) -> Any:
    """Return a number of no axes as Python's own, which leaves the precision of arrays as it is."""
    return content.item() if isinstance(content, np.generic) else content


def _plain(content: Array) -> Array:
    """Return numbers as numpy computes with them: of the machine's byte order, and not of 16 bits."""
    if content.dtype.kind == "f" and content.dtype.itemsize == 2:
        return content.astype(np.float32)
    return content if content.dtype.isnative else content.astype(content.dtype.newbyteorder("="))
