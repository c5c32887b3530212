"""Batches: events of Arrow blocks as arrays, and how many of them each worker gives to each step.

Everything here is numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        table: Values ``(n, features)`` float32, NaN where there is none.
        y: What is to be learnt, float32: a class's number or a target ``(events,)``, or several targets
            ``(events, targets)``.
        weight: Weights ``(events,)`` float32.
        rows: Which rows of the table the events are; None for all of them in their order.
    """

    table: Floats
    y: Floats
    weight: Floats
    rows: Integers | None = None

    @property
    def x(self) -> Floats:
        """The events' values ``(events, features)``; a copy when they are rows of a larger table."""
        return self.table if self.rows is None else self.table[self.rows]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, part: slice) -> Batch:
        if self.rows is None:
            return Batch(self.table[part], self.y[part], self.weight[part])
        return Batch(self.table, self.y[part], self.weight[part], self.rows[part])

    @classmethod
    def joined(cls, parts: Sequence[Batch]) -> Batch:
        """Put batches one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("x", "y", "weight"))
        )


def block_arrays(table: Any, columns: Sequence[str]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Give the columns of an Arrow table as numpy arrays, one set for each of its chunks, without copies.

    Args:
        table: ``pyarrow.Table``; tensor columns are Arrow's own fixed-shape tensors.
        columns: Names of the columns wanted.
    """
    for chunk in table.select(list(columns)).to_batches():
        if chunk.num_rows:
            yield {name: _array(chunk.column(name)) for name in columns}


def batches(table: Any) -> Iterator[Batch]:
    """Give the events of an Arrow table in their order, without copies."""
    for arrays in block_arrays(table, ("x", "y", "weight")):
        yield Batch(arrays["x"], arrays["y"], arrays["weight"])


def _array(column: Any) -> npt.NDArray[Any]:
    if hasattr(column, "to_numpy_ndarray"):
        return column.to_numpy_ndarray()  # type: ignore[no-any-return]
    return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def share_out(ready: Sequence[int], batch_size: int, *, ended: Sequence[bool], most: int) -> Integers:
    """Say how many events each rank gives to each of the next steps.

    All ranks know the same numbers and so come to the same plan, without a word at every step. While all have
    more to come, each gives the same. When one has come to its end, each gives in proportion to what it has:
    so all end together, every event is used, and only the very last step may be short.

    Args:
        ready: Events each rank can give now.
        batch_size: Events of a step, over all ranks.
        ended: Whether this is all that a rank has.
        most: Steps to plan at most.

    Returns:
        ``(steps, ranks)``; empty when there are too few events for a step.
    """
    left = np.asarray(ready, dtype=np.int64).copy()
    plan: list[Integers] = []
    while len(plan) < most:
        size = min(batch_size, int(left.sum()))
        if size == 0 or (size < batch_size and not all(ended)):
            break
        shares = _proportional(left, size) if any(ended) else _even(len(left), size)
        if (shares > left).any():  # somebody has more to come, and must read first
            break
        left -= shares
        plan.append(shares)
    return np.array(plan, dtype=np.int64).reshape(len(plan), len(left))


def _even(ranks: int, size: int) -> Integers:
    each, more = divmod(size, ranks)
    shares: Integers = each + (np.arange(ranks) < more).astype(np.int64)
    return shares


def _proportional(left: Integers, size: int) -> Integers:
    exact = left * (size / int(left.sum()))
    shares: Integers = np.minimum(np.floor(exact).astype(np.int64), left)
    for rank in np.argsort(shares - exact, kind="stable"):
        missing = size - int(shares.sum())
        if missing == 0:
            break
        shares[rank] += min(1, missing, int(left[rank] - shares[rank]))
    while (missing := size - int(shares.sum())) > 0:  # rounding met a rank's end
        rank = int(np.argmax(left - shares))
        shares[rank] += min(missing, int(left[rank] - shares[rank]))
    return shares
