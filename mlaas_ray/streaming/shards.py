"""Shards: which entries of which file one task reads; cut on cluster boundaries, pure arithmetic."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.hashing import mix


@dataclass(frozen=True)
class Shard:
    """Contiguous entries of one file.

    Attributes:
        path: Path or URL.
        tree: Name of the tree.
        uuid: The file's own identifier, the same wherever a copy lies.
        start: First entry.
        stop: One past the last entry.
        dataset: Index of the dataset the file belongs to.
        file: Index of the file in the plan.
        label: Class of every event.
    """

    path: str
    tree: str
    uuid: str
    start: int
    stop: int
    dataset: int = 0
    file: int = 0
    label: float = 0.0

    @property
    def entries(self) -> int:
        """Number of entries."""
        return self.stop - self.start


def cut(boundaries: Sequence[int], target: int) -> list[tuple[int, int]]:
    """Cut a file's entries into contiguous ranges of about ``target`` entries.

    Ranges end on cluster boundaries, so that no basket is fetched twice; only a cluster of more than twice
    the target is cut inside, into equal pieces, since a block must fit in memory.

    Args:
        boundaries: First entry of each cluster, and last the number of entries: ``[0, 1000, 1800]``.
        target: Entries a range should have.

    Returns:
        ``(start, stop)`` that together cover every entry once, in order.
    """
    ranges: list[tuple[int, int]] = []
    position, last = boundaries[0], boundaries[-1]
    while position < last:
        stop = boundaries[bisect_left(boundaries, position + 1)]
        if stop - position > 2 * target:
            pieces = round((stop - position) / target)
            edges = [position + (stop - position) * i // pieces for i in range(pieces + 1)]
            ranges += pairwise(edges)
        else:
            following = bisect_left(boundaries, position + target)
            # the boundary nearest to the target, but always forward
            if following == len(boundaries) or boundaries[following] - position > 1.5 * target:
                following = max(following - 1, bisect_left(boundaries, stop))
            stop = boundaries[following]
            ranges.append((position, stop))
        position = stop
    return ranges


def part_mask(
    uuid: str, start: int, stop: int, part: tuple[float, float], seed: int
) -> npt.NDArray[np.bool_]:
    """Tell which entries belong to a part of the data, such as ``(0.0, 0.8)`` for training.

    Each event is given a number in [0, 1) by a hash of its file's identifier, its entry and the seed, so
    that it falls on the same side however the files are named, sharded or ordered.

    Args:
        uuid: The file's identifier.
        start: First entry.
        stop: One past the last entry.
        part: Interval ``[low, high)`` of [0, 1).
        seed: Another seed makes another split.

    Returns:
        ``(stop - start,)`` booleans.
    """
    low, high = part
    if low <= 0.0 and high >= 1.0:
        return np.ones(stop - start, dtype=np.bool_)
    key = hashlib.blake2b(f"{uuid}/{seed}".encode(), digest_size=8).digest()
    with np.errstate(over="ignore"):
        number = mix(np.arange(start, stop, dtype=np.uint64) + np.uint64(int.from_bytes(key, "little")))
    unit = (number >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.asarray((unit >= low) & (unit < high))
