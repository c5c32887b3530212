"""Statistics of the values of a branch, and the sketches they are made of: exact to merge, in any order.

A sketch counts values by the upper half of their float32: its sign, exponent and 7 bits of the fraction.
A bucket is therefore as wide as 1/128 of its values at most, whatever their scale, needs no range beforehand,
and the counts of two files add up to those of both. Quantiles and histograms are read off the counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

# What Statistics keeps of the distribution.
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

BUCKETS = 1 << 16
_ZERO = 1 << 15  # the bucket that begins at 0
_INFINITE = 0x7F80  # upper half of float32's infinity
_TINY = float(np.finfo(np.float32).tiny)
# Bucket counts pending in a merge before they are added up: bounds its memory.
_PENDING = 10_000_000

Doubles = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.uint16]


class Statistics(BaseModel):
    """What the values of one branch look like; the moments are of the finite values only.

    A model's input is float32, so what is beyond its range counts as infinite.

    Attributes:
        count: Finite values.
        nan: Values that are NaN in the file.
        infinite: Values that are plus or minus infinity.
        missing: Events whose file lacks the branch.
        min: Smallest finite value; None when there is none.
        max: Largest finite value; None when there is none.
        mean: Mean of the finite values.
        std: Population standard deviation of the finite values.
        quantiles: Value below which a share of the finite values lies, by share, to 1/128 of itself; empty
            when there is no value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = 0
    nan: int = 0
    infinite: int = 0
    missing: int = 0
    min: float | None = None
    max: float | None = None
    mean: float = 0.0
    std: float = 0.0
    quantiles: dict[float, float] = Field(default_factory=dict)

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Statistics:
        """Measure an array of any shape."""
        return Sketches.of({"": Summary.of(values)}).statistics("")


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """What one array of numbers leaves behind.

    Attributes:
        count: Finite values.
        nan: NaN values.
        infinite: Values beyond float32.
        min: Smallest finite value; NaN when there is none, as the other moments.
        max: Largest finite value.
        mean: Mean of the finite values.
        squares: Sum of their squared distances from the mean.
        whole: Whether all finite values are whole numbers.
        buckets: Buckets with values, in order ``(n,)`` uint16.
        weights: Values in each ``(n,)``.
        largest: Most values in one event; 0 unless jagged.
        missing: Events whose file lacks the branch.
    """

    count: int = 0
    nan: int = 0
    infinite: int = 0
    min: float = math.nan
    max: float = math.nan
    mean: float = math.nan
    squares: float = math.nan
    whole: bool = True
    buckets: Numbers = field(default_factory=lambda: np.empty(0, np.uint16))
    weights: Whole = field(default_factory=lambda: np.empty(0, np.int64))
    largest: int = 0
    missing: int = 0

    @classmethod
    @np.errstate(over="ignore")  # what is beyond float32 is infinite
    def of(cls, values: npt.ArrayLike) -> Summary:
        """Measure an array of any shape: the reference of the compiled loop that files go through."""
        numbers = np.asarray(values, dtype=np.float64).ravel()
        single = numbers.astype(np.float32)
        finite = numbers[np.isfinite(single)]
        nan = int(np.isnan(numbers).sum())
        infinite = len(numbers) - len(finite) - nan
        if len(finite) == 0:
            return cls(nan=nan, infinite=infinite)
        buckets, weights = np.unique(bucket(single[np.isfinite(single)]), return_counts=True)
        mean = float(finite.mean())
        return cls(
            count=len(finite),
            nan=nan,
            infinite=infinite,
            min=float(finite.min()),
            max=float(finite.max()),
            mean=mean,
            squares=float(((finite - mean) ** 2).sum()),
            whole=bool((finite == np.floor(finite)).all()),
            buckets=buckets,
            weights=weights.astype(np.int64),
        )


def bucket(values: npt.NDArray[np.float32]) -> Numbers:
    """Return the bucket of each value; buckets are in the order of their values."""
    upper = (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
    # negative numbers grow backwards
    return np.where(upper & _ZERO, ~upper, upper | np.uint16(_ZERO))


@cache
def edges() -> Doubles:
    """Return the edges of the buckets ``(65537,)``: bucket ``i`` lies between edges ``i`` and ``i + 1``.

    Those beyond float32's largest number are infinite.
    """
    upper = np.minimum(np.arange(_ZERO + 1, dtype=np.uint32), _INFINITE) << 16
    positive = upper.view(np.float32).astype(np.float64)
    positive[_INFINITE] = 2.0**128
    return np.concatenate([-positive[:0:-1], positive])


@dataclass(frozen=True, slots=True, eq=False)
class Sketches:
    """Mergeable summaries of several branches, kept as arrays: files times branches are many.

    Attributes:
        names: The branches.
        counts: ``(branches, 5)``: finite, NaN and infinite values, missing events, most values in one event.
        moments: ``(branches, 4)``: min, max, mean and sum of squared distances; NaN without a finite value.
        whole: ``(branches,)``: whether all values are whole numbers.
        starts: ``(branches + 1,)``: where each branch's buckets begin.
        buckets: Buckets with values, branch by branch.
        weights: Values in each.
    """

    names: tuple[str, ...]
    counts: Whole
    moments: Doubles
    whole: npt.NDArray[np.bool_]
    starts: Whole
    buckets: Numbers
    weights: Whole

    @classmethod
    def of(cls, summaries: Mapping[str, Summary]) -> Sketches:
        """Put summaries together."""
        rows = list(summaries.values())
        return cls(
            tuple(summaries),
            np.array([(r.count, r.nan, r.infinite, r.missing, r.largest) for r in rows], np.int64).reshape(
                -1, 5
            ),
            np.array([(r.min, r.max, r.mean, r.squares) for r in rows], np.float64).reshape(-1, 4),
            np.array([r.whole for r in rows], np.bool_),
            np.concatenate([[0], np.cumsum([len(r.buckets) for r in rows])]).astype(np.int64),
            np.concatenate([np.empty(0, np.uint16), *(r.buckets for r in rows)]),
            np.concatenate([np.empty(0, np.int64), *(r.weights for r in rows)]),
        )

    @classmethod
    def merged(cls, parts: Sequence[Sketches], names: Sequence[str] | None = None) -> Sketches:
        """Combine the sketches of several parts of the data.

        Counts are exact, and so are quantiles. Mean and deviation are combined pairwise, in order: Chan,
        Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.

        Args:
            parts: Each may lack some of the branches.
            names: The branches to keep; None for all.
        """
        chosen = tuple(dict.fromkeys(n for part in parts for n in part.names) if names is None else names)
        position = {name: i for i, name in enumerate(chosen)}
        counts = np.zeros((len(chosen), 5), np.int64)
        moments = np.full((len(chosen), 4), np.nan)
        whole = np.ones(len(chosen), np.bool_)
        tally = _Tally()
        for part in parts:
            known = [i for i, name in enumerate(part.names) if name in position]
            rows = np.array([position[part.names[i]] for i in known], np.int64)
            moments[rows] = _combined(
                moments[rows], counts[rows, 0], part.moments[known], part.counts[known, 0]
            )
            largest = np.maximum(counts[rows, 4], part.counts[known, 4])
            counts[rows] += part.counts[known]
            counts[rows, 4] = largest
            whole[rows] &= part.whole[known]
            own = np.full(len(part.names), -1, np.int64)
            own[known] = rows
            tally.add(np.repeat(own, np.diff(part.starts)), part.buckets, part.weights)
        keys, weights = tally.total()
        starts = np.searchsorted(keys, np.arange(len(chosen) + 1, dtype=np.int64) * BUCKETS)
        return cls(
            chosen,
            counts,
            moments,
            whole,
            starts.astype(np.int64),
            (keys % BUCKETS).astype(np.uint16),
            weights,
        )

    def statistics(self, name: str) -> Statistics:
        """Return what a model package keeps of a branch."""
        row = self.names.index(name)
        count, nan, infinite, missing, _ = (int(n) for n in self.counts[row])
        rest = {"nan": nan, "infinite": infinite, "missing": missing}
        if count == 0:
            return Statistics(**rest)
        low, high, mean, squares = (float(x) for x in self.moments[row])
        return Statistics(
            count=count,
            min=low,
            max=high,
            mean=mean,
            std=math.sqrt(squares / count),
            quantiles=dict(zip(QUANTILES, self.quantiles(name, QUANTILES), strict=True)),
            **rest,
        )

    def largest(self, name: str) -> int:
        """Return the most values of a jagged branch in one event."""
        return int(self.counts[self.names.index(name), 4])

    def quantiles(self, name: str, shares: Sequence[float]) -> list[float]:
        """Return the values below which shares of the finite values lie; between values, interpolated."""
        row = self.names.index(name)
        buckets, weights = self._counted(row)
        before = np.cumsum(weights) - weights
        rank = np.asarray(shares) * (self.counts[row, 0] - 1)
        place = np.searchsorted(before, rank, side="right") - 1
        within = np.clip((rank - before[place] + 0.5) / weights[place], 0.0, 1.0)
        low, high = edges()[buckets[place].astype(np.int64)], edges()[buckets[place].astype(np.int64) + 1]
        found = low + within * (high - low)
        # the bucket of 0 is shared with what float32 can hardly tell from it
        found[np.abs(found) < _TINY] = 0.0
        if self.whole[row]:
            # the whole number of a bucket is its edge nearest to 0; larger ones share a bucket
            found = np.trunc(found)
        return [float(x) for x in np.clip(found, self.moments[row, 0], self.moments[row, 1])]

    def histogram(self, name: str, bins: npt.ArrayLike) -> Doubles:
        """Return the values of a branch in each bin ``(bins,)``, given their edges ``(bins + 1,)``.

        A bucket that a bin's edge cuts is shared out by width.
        """
        row = self.names.index(name)
        buckets, weights = self._counted(row)
        places = np.asarray(bins, np.float64)
        if len(buckets) == 0:
            return np.zeros(len(places) - 1)
        index = buckets.astype(np.int64)
        # each bucket as a step up between its edges; flat in between
        x = np.stack([edges()[index], edges()[index + 1]], axis=1).ravel()
        total = np.cumsum(weights)
        y = np.stack([total - weights, total], axis=1).ravel().astype(np.float64)
        below = np.interp(places, x, y)
        # a bucket reaches beyond the values it holds
        below[places <= self.moments[row, 0]] = 0.0
        below[places >= self.moments[row, 1]] = total[-1]
        return np.diff(below)

    def document(self) -> dict[str, Any]:
        """Return the same as lists, for JSON; NaN as None."""
        return {
            "names": list(self.names),
            "counts": self.counts.tolist(),
            "moments": [[None if math.isnan(x) else x for x in row] for row in self.moments.tolist()],
            "whole": self.whole.tolist(),
            "starts": self.starts.tolist(),
            # distances are mostly 1, which compresses well
            "buckets": np.diff(self.buckets.astype(np.int64), prepend=0).tolist(),
            "weights": self.weights.tolist(),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Sketches:
        """Make it of what :meth:`document` returned."""
        return cls(
            tuple(document["names"]),
            np.array(document["counts"], np.int64).reshape(-1, 5),
            np.array(document["moments"], np.float64).reshape(-1, 4),
            np.array(document["whole"], np.bool_),
            np.array(document["starts"], np.int64),
            np.cumsum(np.array(document["buckets"], np.int64)).astype(np.uint16),
            np.array(document["weights"], np.int64),
        )

    def _counted(self, row: int) -> tuple[Numbers, Whole]:
        own = slice(self.starts[row], self.starts[row + 1])
        return self.buckets[own], self.weights[own]


class _Tally:
    """Adds up bucket counts of branches, by row and bucket."""

    def __init__(self) -> None:
        self._keys: list[Whole] = []
        self._weights: list[Whole] = []
        self._pending = 0

    def add(self, rows: Whole, buckets: Numbers, weights: Whole) -> None:
        """Add counts; a row of -1 is left out."""
        keys = rows * BUCKETS + buckets
        self._keys.append(keys[rows >= 0])
        self._weights.append(weights[rows >= 0])
        self._pending += len(keys)
        if self._pending > _PENDING:
            keys, weights = self.total()
            self._keys, self._weights = [keys], [weights]
            self._pending = 0

    def total(self) -> tuple[Whole, Whole]:
        """Return each row and bucket once, in order, and its count."""
        if not self._keys:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        keys, weights = np.concatenate(self._keys), np.concatenate(self._weights)
        # stable sorts of integers take runs that are in order as they are
        order = np.argsort(keys, kind="stable")
        keys, weights = keys[order], weights[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        return keys[first], np.add.reduceat(weights, first) if len(first) else weights


def _combined(one: Doubles, ones: Whole, other: Doubles, others: Whole) -> Doubles:
    """Combine moments ``(branches, 4)`` of so many values each."""
    count = np.maximum(ones + others, 1)
    delta = other[:, 2] - one[:, 2]
    both = np.stack(
        [
            np.fmin(one[:, 0], other[:, 0]),
            np.fmax(one[:, 1], other[:, 1]),
            one[:, 2] + delta * others / count,
            one[:, 3] + other[:, 3] + delta**2 * ones * (others / count),
        ],
        axis=1,
    )
    return np.where(ones[:, None] == 0, other, np.where(others[:, None] == 0, one, both))
