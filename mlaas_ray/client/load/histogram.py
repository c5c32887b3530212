"""A histogram of durations: quantiles within half a percent, in memory that does not grow."""

from __future__ import annotations

import math

# Each bucket is one percent wider than the one before; the first ends at a microsecond.
_GROWTH = 1.01
_FIRST = 1e-6
_BUCKETS = 2400
_SCALE = 1 / math.log(_GROWTH)
_log = math.log


class Histogram:
    """Counts of durations from a microsecond to six hours, in buckets of equal width in the logarithm.

    The memory is that of 2,400 counts, however many durations are added; the largest is kept exactly.
    """

    __slots__ = ("_counts", "count", "max")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = 0
        self.max = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        bucket = int(_log(seconds / _FIRST) * _SCALE) + 1 if seconds > _FIRST else 0
        self._counts[bucket if bucket < _BUCKETS else -1] += 1
        self.count += 1
        if seconds > self.max:
            self.max = seconds

    def quantile(self, share: float) -> float | None:
        """Return the duration, in seconds, that this share of them did not exceed; None without any.

        Args:
            share: 0 to 1; 0.99 for the 99th percentile.
        """
        if not self.count:
            return None
        rank = max(1, math.ceil(share * self.count))
        if rank == self.count:
            return self.max
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                # the middle of the bucket, in the logarithm
                return min(self.max, _FIRST * _GROWTH ** (bucket - 0.5)) if bucket else min(self.max, _FIRST)
        return self.max
