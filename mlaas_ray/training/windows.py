"""Windows: some blocks of events in memory together, read by a thread while the window before is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlaas_ray.training.batches import Batch, Integers, batches
from mlaas_ray.training.cursor import Part

# What a window's memory is used in turns with: one is used while the other is filled. More and smaller ones
# would be full sooner, but a stored dataset's blocks may hold one class only, and a window is what is mixed.
BUFFERS = 2
# Bytes of an event beside its columns: label and weight, and its place in the order.
_MORE_BYTES = 16


class Buffer:
    """Room for the events of one window; pages are taken from the system as they are written.

    Args:
        like: A batch without events, of the shapes that events have.
        limit: Memory in bytes.

    Attributes:
        capacity: Events that are put together here; a single block may hold more, and then finds room too.
    """

    def __init__(self, like: Batch, limit: int) -> None:
        self.capacity = max(1, limit // (4 * like.x.shape[1] + _MORE_BYTES))
        self._events = like

    def put(self, start: int, events: Batch) -> None:
        """Copy events to rows from ``start`` on; what was there before them stays."""
        stop = start + len(events)
        if stop > len(self._events):
            self._grow(start, max(self.capacity, stop))  # which blocks make a window must not depend on it
        rows = self._events[slice(start, stop)]
        rows.x[:], rows.y[:], rows.weight[:] = events.x, events.y, events.weight

    def events(self, count: int) -> Batch:
        """Return the first events, without a copy."""
        return self._events[slice(0, count)]

    def _grow(self, kept: int, room: int) -> None:
        before = self.events(kept)
        arrays = (before.x, before.y, before.weight)
        self._events = Batch(*(np.empty((room, *array.shape[1:]), np.float32) for array in arrays))
        if kept:
            self.put(0, before)


class Window:
    """Events of some blocks, given out in an order drawn anew for every epoch.

    Args:
        blocks: Indices of its blocks.
        buffer: Where its events lie.
        size: How many.
    """

    def __init__(self, blocks: tuple[int, ...], buffer: Buffer, size: int) -> None:
        self.blocks = blocks
        self.size = size
        self.seen = 0
        self.buffer: Buffer | None = buffer  # None when its memory went to another window
        self._order: Integers = np.empty(0, np.int64)

    @property
    def left(self) -> int:
        """Events not given out yet."""
        return self.size - self.seen

    @property
    def part(self) -> Part:
        """How far it is used."""
        return Part(self.blocks, self.size, self.seen)

    def begin(self, seed: int, epoch: int, seen: int = 0) -> None:
        """Draw the order of an epoch; ``seen`` of its events were given out before."""
        key = [seed, epoch, self.blocks[0] if self.blocks else 0]
        self._order = np.random.default_rng(key).permutation(self.size)
        self.seen = seen

    def forget(self) -> None:
        """Let its memory go to another window."""
        self.buffer, self._order = None, np.empty(0, np.int64)

    def take(self, count: int) -> Batch:
        """Give out the next events; their values stay in the window's memory."""
        assert self.buffer is not None
        rows = self._order[self.seen : self.seen + count]
        self.seen += count
        events = self.buffer.events(self.size)
        return Batch(events.table, events.y[rows], events.weight[rows], rows)


class Loader:
    """Fills windows with a rank's blocks, in a thread.

    Args:
        tables: Arrow tables of the blocks, one each, those of ``groups`` first.
        groups: Blocks of windows that must be as they were.
        blocks: The other blocks; as many make a window as fit into its buffer.
        buffers: Free memory.
    """

    def __init__(
        self,
        tables: Iterator[Any],
        groups: Sequence[tuple[int, ...]],
        blocks: Sequence[int],
        buffers: Sequence[Buffer],
    ) -> None:
        self._tables = tables
        self._groups = groups
        self._blocks = blocks
        self._free: queue.SimpleQueue[tuple[Buffer, Window | None]] = queue.SimpleQueue()
        for buffer in buffers:
            self.add(buffer)
        self._ready: queue.SimpleQueue[Window | BaseException | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="windows", daemon=True)
        self._thread.start()

    def next(self) -> Window | None:
        """Wait for the next window; None after the last.

        Raises:
            Exception: What reading raised.
        """
        window = self._ready.get()
        if isinstance(window, Window):
            return window
        self._ready.put(window)
        if window is not None:
            raise window
        return None

    def add(self, buffer: Buffer) -> None:
        """Give more memory."""
        self._free.put((buffer, None))

    def give_back(self, window: Window) -> None:
        """Let a used window's memory serve another, if there is need of it."""
        assert window.buffer is not None
        self._free.put((window.buffer, window))

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            for window in self._windows():
                self._ready.put(window)
            self._ready.put(None)
        except ClosedError:
            pass
        except BaseException as error:
            self._ready.put(error)

    def _windows(self) -> Iterator[Window]:
        for group in self._groups:
            buffer, size = self._buffer(), 0
            for _ in group:
                size = self._fill(buffer, size, self._table())
            yield Window(group, buffer, size)
        yield from self._fitting()

    def _fitting(self) -> Iterator[Window]:
        """Give windows of as many blocks as fit."""
        chosen: list[int] = []
        buffer: Buffer | None = None
        size = 0
        for index in self._blocks:
            table = self._table()
            if buffer is not None and size + table.num_rows > buffer.capacity:
                yield Window(tuple(chosen), buffer, size)
                buffer = None
            if buffer is None:
                buffer, size, chosen = self._buffer(), 0, []
            size = self._fill(buffer, size, table)
            chosen.append(index)
        if buffer is not None:
            yield Window(tuple(chosen), buffer, size)

    def _table(self) -> Any:
        if self._stop.is_set():
            raise ClosedError
        return next(self._tables)

    def _fill(self, buffer: Buffer, size: int, table: Any) -> int:
        for events in batches(table):
            buffer.put(size, events)
            size += len(events)
        return size

    def _buffer(self) -> Buffer:
        """Wait for free memory."""
        while not self._stop.is_set():
            try:
                buffer, before = self._free.get(timeout=0.1)
            except queue.Empty:
                continue
            if before is not None:
                before.forget()
            return buffer
        raise ClosedError


class ClosedError(Exception):
    """The loader was closed."""
