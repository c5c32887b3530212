"""Normalised: raw values as the layers of a network take them, in one pass over memory.

An exported model does the same in its graph. In training that would be five passes over the batch at every
step: a fifth of the time of a network of three layers of 512 on 1,803 columns (benchmarks/training.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from mlaas_ray.core.compiling import alone
from mlaas_ray.training.batches import Batch, Floats

if TYPE_CHECKING:
    from mlaas_ray.training.framework import Setup

# Bytes of a cache line.
_LINE = 64
# Values that are worth a thread of their own.
_VALUES = 1 << 18


class Normaliser:
    """Normalises batches, and puts 0 where nothing finite is.

    Args:
        setup: Says how, and with how many CPUs.
        masked: Whether the network takes the mask too.
    """

    def __init__(self, setup: Setup, *, masked: bool) -> None:
        self._offset, self._scale = setup.features.affine()
        bound = setup.features.bound
        self._bend = np.float32(1 / bound**2)
        self._masked = masked
        self._threads = max(1, int(setup.settings.cpus_per_worker or 1))
        self._pool = ThreadPoolExecutor(self._threads, "normalise")

    def __call__(self, batch: Batch) -> tuple[Floats, Floats]:
        """Return new values ``(events, features)``, and the mask, 1 where there is a value and else 0.

        The mask is ``(0, 0)`` when the network takes none.
        """
        shape = (len(batch), len(self._offset))
        values = _aligned(shape)
        mask = _aligned(shape if self._masked else (0, 0))
        table = np.ascontiguousarray(batch.table)
        rows = np.arange(len(batch)) if batch.rows is None else batch.rows
        parts = max(1, min(self._threads, values.size // _VALUES))
        edges = [len(batch) * part // parts for part in range(parts + 1)]

        def normalise(part: int) -> None:
            own = slice(edges[part], edges[part + 1])
            _loop()(table, rows[own], self._offset, self._scale, self._bend, values[own], mask[own])

        waiting = [self._pool.submit(normalise, part) for part in range(1, parts)]
        normalise(0)
        for one in waiting:
            one.result()
        return values, mask


def _aligned(shape: tuple[int, int]) -> Floats:
    """Return memory that begins where a cache line does.

    Matrix products round by where their factors lie: a run that is gone on with in another process would
    differ in the last digits from one that was not.
    """
    size = shape[0] * shape[1]
    room = np.empty(size + _LINE // 4, np.float32)
    start = -room.ctypes.data % _LINE // 4
    return room[start : start + size].reshape(shape)


@functools.cache
def _loop() -> Callable[..., None]:
    """Compile the loop at its first use; without Python's lock, so that reading goes on meanwhile."""
    import numba

    largest = np.finfo(np.float32).max

    def normalise(table: Any, rows: Any, offset: Any, scale: Any, bend: Any, values: Any, mask: Any) -> None:
        columns = table.shape[1]
        for number in range(len(rows)):
            row = rows[number]
            for column in range(columns):
                value = table[row, column]
                # False for NaN and infinities
                there = abs(value) <= largest
                z = (value - offset[column]) * scale[column]
                values[number, column] = z if there else np.float32(0)
        if bend > 0:
            for number in range(len(rows)):
                for column in range(columns):
                    z = values[number, column]
                    values[number, column] = z / np.sqrt(np.float32(1) + bend * z * z)
        if len(mask) > 0:
            for number in range(len(rows)):
                row = rows[number]
                for column in range(columns):
                    there = abs(table[row, column]) <= largest
                    mask[number, column] = np.float32(1) if there else np.float32(0)

    try:
        compiled: Callable[..., None] = alone(numba.njit(normalise, nogil=True, cache=True))
    except RuntimeError:  # neither beside this file nor in the user's cache folder can one write
        compiled = alone(numba.njit(normalise, nogil=True))
    return compiled
