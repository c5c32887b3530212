"""Streams: one worker's events, mixed anew each epoch, or in their order as often as they are wanted."""

from __future__ import annotations

import time
import zlib
from abc import ABC, abstractmethod
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


class Stream(ABC):
    """The training events of one rank, as one long row of them that is read ahead; every event comes once.

    When all events of all ranks fit into their memory, they are read once and mixed anew for each epoch; else
    each epoch reads its own.

    Args:
        width: Columns of ``x``.
        limit: Memory in bytes.
        targets: Shape of one event's ``y``.
        seed: Of the order.
        group: The ranks.
    """

    def __init__(
        self, width: int, limit: int, *, targets: tuple[int, ...] = (), seed: int, group: Group
    ) -> None:
        self._seed = seed
        self._group = group
        x, y, weight = (np.empty(shape, np.float32) for shape in ((0, width), (0, *targets), (0,)))
        self._none = Batch(x, y, weight)
        self._limit = limit
        self._buffers = [Buffer(self._none, limit // BUFFERS) for _ in range(BUFFERS)]
        self._loader: Loader | None = None
        self._cursor: Any = None  # of the epoch that was started
        self._kept: Any = None  # of a next one whose windows are all in memory
        self._windows: list[Window] = []  # those of this epoch, as far as they were read
        self._waiting: deque[Window] = deque()  # of them, those still in memory whose turn has not come
        self._at_hand: deque[Window] = deque()
        self._used: list[Window] = []  # given out, but perhaps still being looked at
        self.waited = 0.0

    @property
    def epoch(self) -> int:
        """Number of the epoch that was started, from 0."""
        epoch: int = self._cursor.epoch
        return epoch

    @property
    def ready(self) -> int:
        """Events that may be taken now."""
        return sum(window.left for window in self._at_hand)

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether nothing comes after those."""

    @abstractmethod
    def read_ahead(self) -> None:
        """Begin to fill the memory for the epoch that was started, if that was not begun."""

    @abstractmethod
    def everything(self) -> OrderedEvents:
        """Return the events of this rank in the first epoch, the same in any number of passes."""

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

    def close(self) -> None:
        """End the reading."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def _restarted(self, cursor: Any) -> bool:
        """Begin an epoch; return whether its windows are those in memory, and else forget them."""
        self._cursor = cursor
        self._at_hand.clear()
        self._used.clear()
        again = cursor == self._kept
        if again:
            for window in self._windows:
                window.begin(self._seed, cursor.epoch)
        else:
            self.close()
            self._windows, self._kept = [], None
        self._waiting = deque(self._windows)
        return bool(again)

    @abstractmethod
    def _next(self) -> Window | None:
        """Return the next window, waiting for it; None when it turns out that there is none."""

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
        if self._loader is not None and not self.ended:
            for window in self._used:
                self._loader.give_back(window)
        self._used.clear()


class EventStream(Stream):
    """Events of blocks that are dealt to the ranks; their order depends on seed, epoch and blocks alone.

    Args:
        source: Where they come from.
        more: As of :class:`Stream`.
    """

    def __init__(self, source: EventSource, width: int, limit: int, **more: Any) -> None:
        super().__init__(width, limit, **more)
        self._source = source
        self._deal = Deal((), [], np.empty(0, np.int64), 0)
        self._cursor: Cursor = Cursor.start(0)
        self._wanted = 0  # blocks that were dealt to this rank, or left to it in windows

    @property
    def ended(self) -> bool:
        """Whether nothing comes after those: the same wherever the epoch was begun, or gone on with."""
        return not self._waiting and self._blocks_in(self._windows) == self._wanted

    def start(self, cursor: Cursor) -> None:
        """Begin an epoch, or go on in the middle of one; all ranks at the same place.

        Args:
            cursor: What :meth:`cursor` or :meth:`following` gave, in this process or another.
        """
        if self._restarted(cursor):
            return
        blocks = self._source.blocks(cursor.source)
        self._deal = cursor.deal(blocks, self._group.rank, self._group.size)
        groups, rest = self._asked
        self._wanted = sum(map(len, groups)) + len(rest)

    def read_ahead(self) -> None:
        """Begin to fill the memory for the epoch that was started, if that was not begun."""
        if self._loader is None:
            groups, rest = self._asked
            self._loader = Loader(self._tables(groups, rest), groups, rest, self._buffers)

    def everything(self) -> OrderedEvents:
        """Return the events of this rank in the first epoch, the same in any number of passes.

        What was read ahead is let go of: windows hold what fits into them, and would not be read so again.
        """
        if not self._windows:
            self.close()
        return OrderedEvents(self._source, self._limit, group=self._group, alike=True)

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
        self._kept = following = joined(epoch, self._cursor.source, (), unseen)
        return following

    @property
    def _asked(self) -> tuple[list[tuple[int, ...]], list[int]]:
        """Blocks of windows that must be as they were, and the others."""
        return [part.blocks for part in self._deal.parts], self._deal.blocks[self._deal.taken :].tolist()

    def _tables(self, groups: Sequence[tuple[int, ...]], rest: Sequence[int]) -> Iterator[Any]:
        blocks = [*(index for group in groups for index in group), *rest]
        return self._source.tables(self._cursor.source, blocks)

    @property
    def _position(self) -> Position:
        # windows that are used up are wanted again in the next epoch if no more come than memory is for
        few = len(self._windows) <= BUFFERS
        there = [window.part for window in self._windows if few or window.left]
        coming = self._deal.parts[len(self._windows) :]
        own = self._windows[len(self._deal.parts) :]
        return Position(self._deal.taken + self._blocks_in(own), (*there, *coming))

    @property
    def _is_whole(self) -> bool:
        """Whether all blocks of the epoch that were dealt to this rank are in memory.

        It depends on the blocks alone, as the next epoch's order depends on it: not on how many buffers there
        are by now, nor on how far the thread is that fills them.
        """
        there = self._blocks_in(self._windows) == len(self._deal.blocks)
        return there and self.ended and not self._deal.before and len(self._windows) <= BUFFERS

    @staticmethod
    def _blocks_in(windows: Sequence[Window]) -> int:
        return sum(len(window.blocks) for window in windows)

    def _next(self) -> Window:
        if self._waiting:
            return self._waiting.popleft()
        assert self._loader is not None
        window = self._loader.next()
        assert window is not None  # the blocks tell which is the last
        number = len(self._windows)
        part: Part | None = self._deal.parts[number] if number < len(self._deal.parts) else None
        if part is not None and part.size != window.size:
            raise _changed(f"{len(part.blocks)} blocks", part.size, window.size)
        window.begin(self._seed, self._cursor.epoch, part.seen if part else 0)
        self._windows.append(window)
        return window


class OrderedEvents:
    """One rank's events of the first epoch in their order, a batch a block; kept in memory when they fit.

    Args:
        source: Where they come from.
        limit: Memory for keeping them, in bytes.
        group: The ranks.
        alike: Whether it is an error when a block is read again and is not what it was, to the last bit.
    """

    def __init__(self, source: EventSource, limit: int, *, group: Group, alike: bool = False) -> None:
        self._source = source
        self._limit = limit
        self._group = group
        self._alike = alike
        self._kept: list[Batch] | None = None
        self._known: dict[int, tuple[int, int]] = {}  # by block: events, and their checksum

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        own = range(self._group.rank, self._source.blocks(0), self._group.size)
        kept: list[Batch] | None = []
        size = 0
        tables = self._source.tables(0, own)
        for block, table in zip(own, tables, strict=True):
            parts = list(batches(table))
            if self._alike:
                self._check(block, parts)
            if not parts:
                continue
            events = Batch.joined(parts)
            yield events
            size += events.x.nbytes + events.y.nbytes + events.weight.nbytes
            if kept is not None and size <= self._limit:
                # copies: the originals lie in memory that the next blocks need
                kept.append(Batch(events.x.copy(), events.y.copy(), events.weight.copy()))
            else:
                kept = None
        self._kept = kept

    def _check(self, block: int, parts: Sequence[Batch]) -> None:
        """Compare a block with what it was when it was read first."""
        checksum = 0
        for name in ("x", "y", "weight"):  # each over all parts: how a table is cut is not what it holds
            for part in parts:
                checksum = zlib.crc32(np.ascontiguousarray(getattr(part, name)).data, checksum)
        found = sum(map(len, parts)), checksum
        known = self._known.setdefault(block, found)
        if known != found:
            raise _changed(f"block {block}", known[0], found[0])


def _changed(what: str, before: int, now: int) -> DataError:
    found = f"{now:,} now" if now != before else "others now"
    return DataError(
        f"{what} held {before:,} events before, and {found}",
        "Train anew: the files, or what can be read of them, have changed",
    )
