"""Sweep: the compiled loops over numbers: moments and buckets at once, and a digest of them in their order.

It lies apart because importing numba takes longer than the rest of this layer together.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.statistics import BUCKETS, Summary
from mlaas_ray.streaming.kernels import compiled

# Values converted at once: they stay in the processor's cache.
CHUNK = 1 << 13

# Integers that float32 holds exactly are swept as such; all others as float64.
_SINGLE = {"f4", "i1", "u1", "b1", "i2", "u2"}


def _sweep(values: Any, bits: Any, table: Any, counts: Any, sums: Any) -> None:
    finite, nan, infinite, whole = counts[0], counts[1], counts[2], counts[3]
    low, high, origin, total, squares = sums[0], sums[1], sums[2], sums[3], sums[4]
    first, last = counts[4], counts[5]
    for i in range(len(values)):
        upper = np.int64(bits[i] >> np.uint32(16))
        if (upper & 0x7F80) == 0x7F80:
            # float64 tells NaN from what float32 cannot hold
            if math.isnan(values[i]):
                nan += 1
            else:
                infinite += 1
            continue
        x = np.float64(values[i])
        if finite == 0:
            origin = x
        finite += 1
        if x < low:
            low = x
        if x > high:
            high = x
        if whole != 0 and x != math.floor(x):
            whole = 0
        distance = x - origin
        total += distance
        squares += distance * distance
        place = 0xFFFF - upper if upper & 0x8000 else upper | 0x8000
        table[place] += 1
        if place < first:
            first = place
        if place > last:
            last = place
    counts[0], counts[1], counts[2], counts[3], counts[4], counts[5] = (
        finite,
        nan,
        infinite,
        whole,
        first,
        last,
    )
    sums[0], sums[1], sums[2], sums[3], sums[4] = low, high, origin, total, squares


_compiled = compiled(_sweep)


def _scatter(bits: Any, seed: Any) -> Any:
    total = np.uint64(0)
    for i in range(len(bits)):
        value = np.uint64(bits[i])
        if value & np.uint64(0x7FFFFFFF) > np.uint64(0x7F800000):
            value = np.uint64(0x7FC00000)  # all NaN are one
        elif value == np.uint64(0x80000000):
            value = np.uint64(0)  # and so are the zeros
        # SplitMix64's finaliser, as in core/hashing.py
        z = (np.uint64(i) + seed) * np.uint64(0x9E3779B97F4A7C15) + value * np.uint64(0xD1B54A32D192ED03)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        total += z ^ (z >> np.uint64(31))
    return total


_scattered = compiled(_scatter)


@np.errstate(over="ignore")
def digest(content: npt.NDArray[Any], seed: int) -> int:
    """Return a number of 64 bits that tells an array's values, as float32 and in their order, from others.

    Args:
        content: Of any shape, number type and byte order.
        seed: Of where the values come from: digests of different places may be added up.
    """
    single = np.ascontiguousarray(content.reshape(-1), np.float32)
    return int(_scattered(single.view(np.uint32), np.uint64(seed % 2**64)))


@np.errstate(over="ignore")  # what is beyond float32 is infinite
def summarise(content: npt.NDArray[Any], *, largest: int = 0) -> Summary:
    """Measure an array of any shape, number type and byte order, as :meth:`Summary.of` does.

    Sums are of the distances from the first value, so that a small spread far from zero survives.
    """
    content = content.reshape(-1)
    single = np.empty(min(CHUNK, len(content)), np.float32)
    narrow = content.dtype.str[1:] in _SINGLE
    double = single if narrow else np.empty(len(single), np.float64)
    table = np.zeros(BUCKETS, np.int64)
    counts = np.array([0, 0, 0, 1, BUCKETS, -1], np.int64)
    sums = np.array([math.inf, -math.inf, 0.0, 0.0, 0.0])
    for start in range(0, len(content), CHUNK):
        part = content[start : start + CHUNK]
        double[: len(part)] = part
        if not narrow:
            single[: len(part)] = double[: len(part)]
        _compiled(double[: len(part)], single[: len(part)].view(np.uint32), table, counts, sums)
    finite, nan, infinite, whole, first, last = (int(n) for n in counts)
    if finite == 0:
        return Summary(nan=nan, infinite=infinite, largest=largest)
    low, high, origin, total, squares = (float(x) for x in sums)
    buckets = first + np.flatnonzero(table[first : last + 1])
    return Summary(
        count=finite,
        nan=nan,
        infinite=infinite,
        min=low,
        max=high,
        mean=origin + total / finite,
        squares=max(0.0, squares - total * total / finite),
        whole=bool(whole),
        buckets=buckets.astype(np.uint16),
        weights=table[buckets],
        largest=largest,
    )
