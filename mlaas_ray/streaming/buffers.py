"""Buffers: memory that is used again, for new pages cost 2 CPU-seconds a GB, as much as decoding."""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

# Smaller arrays come from the allocator, which keeps such memory by itself.
_SMALLEST = 1 << 17
_PROBE = [np.empty(0)]
# References there seem to be to an array that only one list holds, when asked by its place in it.
_UNUSED = sys.getrefcount(_PROBE[0])


class Pool:
    """Hands out arrays, and their memory again when nothing refers to it; nobody gives anything back.

    Every array made of one that was handed out, and every Arrow buffer over it, refers to its block of memory
    (numpy's ``base``): a block that only the pool refers to is free.

    Args:
        idle: Bytes of free blocks to keep.
    """

    def __init__(self, idle: int = 512 << 20) -> None:
        self._idle = idle
        self._blocks: list[npt.NDArray[np.uint8]] = []  # last used last
        self._lock = threading.Lock()

    def take(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """Return an array of anything, C-contiguous.

        Args:
            shape: Its shape.
            dtype: Its type.
        """
        kind = np.dtype(dtype)
        size = math.prod(shape if isinstance(shape, tuple) else (shape,)) * kind.itemsize
        if size < _SMALLEST:
            return np.empty(shape, kind)
        with self._lock:
            block = self._free(size)
            if block is None:
                # steps of an eighth, so that blocks of about a size serve for each other
                step = 1 << (size.bit_length() - 4)
                block = np.empty(-(-size // step) * step, np.uint8)
            self._blocks.append(block)
            array = block[:size].view(kind).reshape(shape)
            del block
            self._trim()
        return array

    @property
    def idle(self) -> int:
        """Bytes of the blocks that nothing uses."""
        with self._lock:
            return sum(len(self._blocks[index]) for index in self._unused())

    def _unused(self) -> list[int]:
        blocks = self._blocks
        return [index for index in range(len(blocks)) if sys.getrefcount(blocks[index]) == _UNUSED]

    def _free(self, size: int) -> npt.NDArray[np.uint8] | None:
        """Take out the smallest free block that is large enough, and not much too large."""
        sizes = [(len(self._blocks[index]), index) for index in self._unused()]
        fitting = [entry for entry in sizes if size <= entry[0] <= 2 * size]
        return self._blocks.pop(min(fitting)[1]) if fitting else None

    def _trim(self) -> None:
        """Let go of the free blocks used longest ago, beyond what may be idle."""
        idle, gone = 0, []
        for index in reversed(self._unused()):
            idle += len(self._blocks[index])
            if idle > self._idle:
                gone.append(index)
        for index in gone:
            del self._blocks[index]


# One for a process: what decoding leaves, the next rows can use.
POOL = Pool()
