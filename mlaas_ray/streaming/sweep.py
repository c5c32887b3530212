"""Sweep: the compiled loop that measures numbers: moments and buckets at once.

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
