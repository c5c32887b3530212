"""Batches: events of Arrow blocks, mixed in a pool of bounded memory; none is lost, none comes twice.

Everything here is numpy. The order of a worker's events depends only on its blocks and on the generator
it is given, so that the same seed gives the same batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Some events.

    Attributes:
        x: Values ``(events, features)`` float32, NaN where there is none.
        y: Labels ``(events,)`` float32, 0 or 1.
        weight: Weights ``(events,)`` float32.
    """

    x: Floats
    y: Floats
    weight: Floats

    def __len__(self) -> int:
        return len(self.y)


def block_arrays(table: Any, columns: Sequence[str]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Give the columns of an Arrow table as numpy arrays, one set for each of its chunks, without copies.

    Args:
        table: ``pyarrow.Table``; tensor columns are Arrow's own fixed-shape tensors.
        columns: Names of the columns wanted.
    """
    for chunk in table.select(list(columns)).to_batches():
        if chunk.num_rows:
            yield {name: _array(chunk.column(name)) for name in columns}


def blocks(tables: Iterable[Any]) -> Iterator[Batch]:
    """Give the events of Arrow tables in their order, without copies."""
    for table in tables:
        for arrays in block_arrays(table, ("x", "y", "weight")):
            yield Batch(arrays["x"], arrays["y"], arrays["weight"])


def _array(column: Any) -> npt.NDArray[Any]:
    if hasattr(column, "to_numpy_ndarray"):
        return column.to_numpy_ndarray()  # type: ignore[no-any-return]
    return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


class ShufflePool:
    """Mixes events: blocks go in as they come, batches of events drawn at random come out.

    The rows lie in arrays that never move; a permutation of the row numbers says which are occupied. What
    is drawn leaves free rows, which the next block fills. When all events of a shard fit, nothing is
    overwritten, and :meth:`restart` begins the next epoch from memory.

    Args:
        width: Columns of ``x``.
        limit: Memory of the pool in bytes.
        least: Events the pool holds at least, however small the limit.
    """

    def __init__(self, width: int, limit: int, least: int = 1) -> None:
        # a row: x, y, weight in float32, and its number in int64
        self.capacity = max(least, limit // (4 * width + 16))
        # Pages are taken from the system as they are written, not here.
        self._x = np.empty((self.capacity, width), dtype=np.float32)
        self._y = np.empty(self.capacity, dtype=np.float32)
        self._weight = np.empty(self.capacity, dtype=np.float32)
        self._slots: Integers = np.arange(self.capacity, dtype=np.int64)
        self._fill = 0
        self._read = 0
        self._rest: Batch | None = None
        self._source: Iterator[Batch] = iter(())
        self._random = np.random.default_rng(0)
        self.ended = False

    @property
    def ready(self) -> int:
        """Events that may be drawn now: half of the pool while more come, so that the rest stays mixed."""
        return self._fill if self.ended else max(1, self._fill // 2) if self._fill else 0

    @property
    def whole(self) -> bool:
        """Whether the pool holds every event of its source, so that it can be restarted."""
        return self.ended and self._read <= self.capacity

    def start(self, source: Iterator[Batch], random: np.random.Generator) -> None:
        """Begin an epoch with the events of a source."""
        self._source, self._random = source, random
        self._slots = np.arange(self.capacity, dtype=np.int64)
        self._fill = self._read = 0
        self._rest, self.ended = None, False

    def restart(self, random: np.random.Generator) -> None:
        """Begin an epoch with the events the pool holds; only when it is :attr:`whole`."""
        if not self.whole:
            raise RuntimeError("the pool does not hold all events of its source")
        self._random = random
        self._slots = np.arange(self.capacity, dtype=np.int64)
        self._fill = self._read

    def refill(self) -> None:
        """Read until the pool is full or its source has ended."""
        while not self.ended:
            block = self._rest if self._rest is not None else next(self._source, None)
            self._rest = None
            if block is None:
                self.ended = True
                return
            free = self.capacity - self._fill
            if free == 0:
                self._rest = block
                return
            if len(block) > free:
                self._rest = Batch(block.x[free:], block.y[free:], block.weight[free:])
                block = Batch(block.x[:free], block.y[:free], block.weight[:free])
            rows = self._slots[self._fill : self._fill + len(block)]
            target: Integers | slice = rows
            if rows[-1] - rows[0] == len(rows) - 1 and self._read == self._fill:
                target = slice(int(rows[0]), int(rows[-1]) + 1)  # nothing drawn yet: one plain copy
            self._x[target], self._y[target], self._weight[target] = block.x, block.y, block.weight
            self._fill += len(block)
            self._read += len(block)

    def take(self, sizes: Sequence[int]) -> Iterator[Batch]:
        """Draw batches of exactly these sizes; each event of the pool is equally likely to be drawn.

        Raises:
            ValueError: When the pool holds fewer events.
        """
        rows = self._draw(int(sum(sizes)))
        start = 0
        for size in sizes:
            chosen = rows[start : start + size]
            start += size
            yield Batch(self._x[chosen], self._y[chosen], self._weight[chosen])

    def _draw(self, count: int) -> Integers:
        """Take row numbers at random from the occupied ones."""
        if count > self._fill:
            raise ValueError(f"{count} events wanted, {self._fill} there")
        if count == 0:
            return np.empty(0, dtype=np.int64)
        positions = self._random.choice(self._fill, count, replace=False)
        drawn: Integers = self._slots[positions]
        # What is drawn goes to the end of the occupied part, and what was there into the holes.
        left = self._fill - count
        stays = np.ones(count, dtype=np.bool_)
        stays[positions[positions >= left] - left] = False
        moved = self._slots[left : self._fill][stays]
        self._slots[positions[positions < left]] = moved
        self._slots[left : self._fill] = drawn
        self._fill = left
        return drawn


def share_out(ready: Sequence[int], batch_size: int, *, last: bool, most: int) -> Integers:
    """Say how many events each rank gives to each of the next steps.

    All ranks know the same numbers and so come to the same plan, without a word at every step. Each gives
    in proportion to what it has left; so all end together, and a rank whose events are of one class
    cannot bend the mixture.

    Args:
        ready: Events each rank can give now.
        batch_size: Events of a step, over all ranks.
        last: Whether this is all there is: then the last step may be short.
        most: Steps to plan at most.

    Returns:
        ``(steps, ranks)``; empty when there are too few events for a step.
    """
    left = np.asarray(ready, dtype=np.int64).copy()
    plan: list[Integers] = []
    while len(plan) < most:
        total = int(left.sum())
        size = min(batch_size, total)
        if size == 0 or (size < batch_size and not last):
            break
        exact = left * (size / total)
        shares = np.minimum(np.floor(exact).astype(np.int64), left)
        for rank in np.argsort(shares - exact, kind="stable"):
            missing = size - int(shares.sum())
            if missing == 0:
                break
            shares[rank] += min(1, missing, int(left[rank] - shares[rank]))
        while (missing := size - int(shares.sum())) > 0:  # rounding met a rank's end
            rank = int(np.argmax(left - shares))
            shares[rank] += min(missing, int(left[rank] - shares[rank]))
        left -= shares
        plan.append(shares)
    return np.array(plan, dtype=np.int64).reshape(len(plan), len(left))
