"""Streams: one worker's training events, mixed anew each epoch, and its validation events in their order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mlaas_ray.core.errors import DataError
from mlaas_ray.training.batches import Batch, batches
from mlaas_ray.training.cursor import Cursor, Deal, Part, Position, joined
from mlaas_ray.training.events import EventSource
from mlaas_ray.training.group import Group
from mlaas_ray.training.windows import BUFFERS, Buffer, Loader, Window


class EventStream:
    """The training events of one rank, as one long row of them that is read ahead; every event comes once.

    The order depends on the seed, the epoch and the blocks alone. When all events of all ranks fit into their
    memory, they are read once and mixed anew for each epoch; else each epoch reads its own blocks.

    Args:
        source: Where they come from.
        width: Columns of ``x``.
        limit: Memory in bytes.
        targets: Shape of one event's ``y``.
        seed: Of the order.
        group: The ranks.
    """

    def __init__(
        self,
        source: EventSource,
        width: int,
        limit: int,
        *,
        targets: tuple[int, ...] = (),
        seed: int,
        group: Group,
    ) -> None:
        self._source = source
        self._seed = seed
        self._group = group
        x, y, weight = (np.empty(shape, np.float32) for shape in ((0, width), (0, *targets), (0,)))
        self._none = Batch(x, y, weight)
        self._limit = limit
        self._buffers = [Buffer(self._none, limit // BUFFERS) for _ in range(BUFFERS)]
        self._loader: Loader | None = None
        self._deal = Deal((), [], np.empty(0, np.int64), 0)
        self._cursor = Cursor.start(0)
        self._kept: Cursor | None = None
        self._windows: list[Window] = []  # those of this epoch, as far as they were read
        self._waiting: deque[Window] = deque()  # of them, those still in memory whose turn has not come
        self._at_hand: deque[Window] = deque()
        self._used: list[Window] = []  # given out, but perhaps still being looked at
        self.waited = 0.0

    @property
    def ready(self) -> int:
        """Events that may be taken now."""
        return sum(window.left for window in self._at_hand)

    @property
    def ended(self) -> bool:
        """Whether nothing comes after those."""
        return not self._waiting and self._loader is not None and self._loader.ended

    def start(self, cursor: Cursor) -> None:
        """Begin an epoch, or go on in the middle of one; all ranks at the same place.

        Args:
            cursor: What :meth:`cursor` or :meth:`following` gave, in this process or another.
        """
        self._cursor = cursor
        self._at_hand.clear()
        self._used.clear()
        if cursor == self._kept:
            for window in self._windows:
                window.begin(self._seed, cursor.epoch)
            self._waiting = deque(self._windows)
            return
        self.close()
        self._windows, self._waiting, self._kept = [], deque(), None
        blocks = self._source.blocks(cursor.source)
        self._deal = cursor.deal(blocks, self._group.rank, self._group.size)

    def read_ahead(self) -> None:
        """Begin to fill the memory for the epoch that was started, if that was not begun."""
        if self._loader is None:
            groups, rest = self._asked
            self._loader = Loader(self._tables(groups, rest), groups, rest, self._buffers)

    def everything(self) -> Iterator[Batch]:
        """Give all events of this rank in the epoch, in no drawn order; a batch lasts until the next.

        What was read ahead is used the first time; then they are read anew.
        """
        loader, self._loader = self._loader, None
        if loader is None:
            for table in self._tables(*self._asked):
                yield from batches(table)
            return
        try:
            while (window := loader.next()) is not None:
                assert window.buffer is not None
                yield window.buffer.events(window.size)
                loader.give_back(window)
        finally:
            loader.close()

    def refill(self, least: int) -> None:
        """Read until so many events may be taken, or nothing more comes."""
        begun = time.perf_counter()
        self._give_back()
        self.read_ahead()
        assert self._loader is not None
        while not self.ended and self.ready < least:
            if len(self._at_hand) >= len(self._buffers):
                # windows of blocks so small, or uneven, that all of them do not make a few steps
                self._buffers.append(Buffer(self._none, self._limit // BUFFERS))
                self._loader.add(self._buffers[-1])
            window = self._next()
            if window is not None:
                self._at_hand.append(window)
        self.waited += time.perf_counter() - begun

    def take(self, sizes: Sequence[int]) -> Iterator[Batch]:
        """Give batches of exactly these sizes; the values of one last until the next is asked for.

        Raises:
            ValueError: When fewer events are ready.
        """
        if sum(sizes) > self.ready:
            raise ValueError(f"{sum(sizes)} events wanted, {self.ready} there")
        for size in sizes:
            yield self._batch(size)

    def cursor(self) -> Cursor:
        """Return how far all ranks have come in the epoch; all must ask together."""
        positions = self._group.gather_objects(self._position)
        return joined(self._cursor.epoch, self._cursor.source, self._deal.before, positions)

    def following(self) -> Cursor:
        """Return the beginning of the next epoch, when this one is over; all ranks must ask together.

        It reads the same blocks again if all ranks have theirs in memory, and then they need not be read.
        """
        position = self._position if self._is_whole else None
        positions = self._group.gather_objects(position)
        kept = [each for each in positions if each is not None]
        epoch = self._cursor.epoch + 1
        if len(kept) < len(positions):
            return Cursor.start(epoch)
        unseen = [replace(each, parts=tuple(replace(part, seen=0) for part in each.parts)) for each in kept]
        self._kept = joined(epoch, self._cursor.source, (), unseen)
        return self._kept

    def close(self) -> None:
        """End the reading."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    @property
    def _asked(self) -> tuple[list[tuple[int, ...]], list[int]]:
        """Blocks of windows that must be as they were, and the others."""
        return [part.blocks for part in self._deal.parts], self._deal.blocks[self._deal.taken :].tolist()

    def _tables(self, groups: Sequence[tuple[int, ...]], rest: Sequence[int]) -> Iterator[Any]:
        blocks = [*(index for group in groups for index in group), *rest]
        return self._source.tables(self._cursor.source, blocks, readers=self._group.size)

    @property
    def _position(self) -> Position:
        there = [window.part for window in self._windows if window.buffer is not None]
        coming = self._deal.parts[len(self._windows) :]
        own = self._windows[len(self._deal.parts) :]
        taken = self._deal.taken + sum(len(window.blocks) for window in own)
        return Position(taken, (*there, *coming))

    @property
    def _is_whole(self) -> bool:
        """Whether all blocks of the epoch that were dealt to this rank are in memory."""
        held = sum(len(window.blocks) for window in self._windows if window.buffer is not None)
        return self.ended and not self._deal.before and held == len(self._deal.blocks)

    def _next(self) -> Window | None:
        if self._waiting:
            return self._waiting.popleft()
        assert self._loader is not None
        window = self._loader.next()
        if window is not None:
            number = len(self._windows)
            part: Part | None = self._deal.parts[number] if number < len(self._deal.parts) else None
            if part is not None and part.size != window.size:
                raise DataError(
                    f"{len(part.blocks)} blocks held {part.size:,} events before, and {window.size:,} now",
                    "Train anew: the files, or what can be read of them, have changed",
                )
            window.begin(self._seed, self._cursor.epoch, part.seen if part else 0)
            self._windows.append(window)
        return window

    def _batch(self, size: int) -> Batch:
        self._give_back()
        parts: list[Batch] = []
        while size > 0:
            window = self._at_hand[0]
            parts.append(window.take(min(size, window.left)))
            size -= len(parts[-1])
            while self._at_hand and self._at_hand[0].left == 0:
                self._used.append(self._at_hand.popleft())
        return Batch.joined(parts) if parts else self._none

    def _give_back(self) -> None:
        """Let the memory of windows that nobody looks at any more serve others."""
        if self._loader is not None and not self._loader.ended:
            for window in self._used:
                self._loader.give_back(window)
        self._used.clear()


class ValidationEvents:
    """One rank's validation events, in their order; kept in memory when they fit.

    Args:
        source: Where they come from.
        limit: Memory for keeping them, in bytes.
        group: The ranks.
    """

    def __init__(self, source: EventSource, limit: int, *, group: Group) -> None:
        self._source = source
        self._limit = limit
        self._group = group
        self._kept: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        own = range(self._group.rank, self._source.blocks(0), self._group.size)
        kept: list[Batch] | None = []
        size = 0
        for table in self._source.tables(0, own, readers=self._group.size):
            for events in batches(table):
                yield events
                size += events.x.nbytes + events.y.nbytes + events.weight.nbytes
                if kept is not None and size <= self._limit:
                    # copies: the originals lie in memory that the next blocks need
                    kept.append(Batch(events.x.copy(), events.y.copy(), events.weight.copy()))
                else:
                    kept = None
        self._kept = kept
