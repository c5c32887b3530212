"""Shards: a worker's events as Ray Data deals them out, pass by pass.

Every pass of all workers over their shards is over all events, each once. Who gets which is Ray Data's
choice, and another one in the next pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray.train
from ray.data import Dataset
from ray.train import DataConfig

from mlaas_ray.core.errors import ModelError
from mlaas_ray.training.batches import Batch, batches, block_arrays
from mlaas_ray.training.events import Shards
from mlaas_ray.training.group import Group
from mlaas_ray.training.seen import Places, Seen, ShardCursor
from mlaas_ray.training.stream import OrderedEvents, Stream
from mlaas_ray.training.windows import BUFFERS, Buffer, ClosedError, Loader, Window

_PLACE = ("block", "row", "rows")


class WholeShards(DataConfig):
    """Deals out every event: Ray Train's own way drops some, so that all workers get equally many."""

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **more: Any,
    ) -> list[dict[str, Any]]:
        """Return each worker's shards by name; arguments are Ray Train's."""
        shards = {
            name: dataset.streaming_split(world_size, equal=False, locality_hints=worker_node_ids)
            for name, dataset in datasets.items()
        }
        return [{name: own[rank] for name, own in shards.items()} for rank in range(world_size)]


def tables(shards: Shards, group: Group, epoch: int = 0, seen: Seen | None = None) -> Iterator[Any]:
    """Give this rank's tables of one pass; all ranks must ask, and none may ask for two passes at once.

    Args:
        shards: The dataset.
        group: The ranks.
        epoch: Whose blocks are read.
        seen: Rows that are not wanted: blocks of which all were seen are not read.
    """
    if shards.begin is not None and group.rank == 0:  # the pass begins when all have asked
        shards.begin(epoch, seen.ranges if seen is not None else [])
    shard = ray.train.get_dataset_shard(shards.name)
    yield from shard.iter_batches(batch_size=None, batch_format="pyarrow")


class ShardStream(Stream):
    """Events of a shard; the order within what lies in memory is drawn from the seed.

    Args:
        shards: Where they come from.
        width: Columns of ``x``.
        limit: Memory in bytes.
        more: As of :class:`~mlaas_ray.training.stream.Stream`.
    """

    def __init__(self, shards: Shards, width: int, limit: int, **more: Any) -> None:
        super().__init__(width, limit, **more)
        self._shards = shards
        self._cursor: ShardCursor = ShardCursor.start(0)
        self._before = Seen()  # by all ranks, when the epoch was gone on with
        self._seen = Seen()
        self._exhausted = False

    @property
    def ended(self) -> bool:
        """Whether nothing comes after those."""
        return self._exhausted and not self._waiting

    def start(self, cursor: ShardCursor) -> None:
        """Begin an epoch, or go on in the middle of one; all ranks at the same place.

        Args:
            cursor: What :meth:`cursor` or :meth:`following` gave, in this process or another.
        """
        self._before, self._seen = Seen.of(cursor.seen), Seen()
        if not self._restarted(cursor):
            self._exhausted = False

    def read_ahead(self) -> None:
        """Begin to fill the memory for the epoch that was started, if that was not begun."""
        if self._loader is None:
            given = tables(self._shards, self._group, self._cursor.source, self._before)
            self._loader = _Loader(given, self._buffers, self._before, self._shards.begin is not None)

    def everything(self) -> OrderedEvents:
        """Refuse: no second pass would give the same events.

        Raises:
            ModelError: Always; who needs the same batches again says so beforehand, and gets stored events.
        """
        raise ModelError(
            "the framework asks for all events at once, and these come in steps", "Say by_steps = False in it"
        )

    def cursor(self) -> ShardCursor:
        """Return how far all ranks have come in the epoch; all must ask together."""
        for window in self._windows:
            self._mark(window)
        ranks = self._group.gather_objects(self._seen)
        return ShardCursor.joined(self._cursor.epoch, self._cursor.source, [self._before, *ranks])

    def following(self) -> ShardCursor:
        """Return the beginning of the next epoch, when this one is over; all ranks must ask together.

        It is that of the same events if all ranks have theirs in memory.
        """
        whole = not (self._before.done or self._before.some) and len(self._windows) <= BUFFERS
        cursor = ShardCursor.start(self._cursor.epoch + 1)
        if self._group.gather([int(whole)]).all():
            cursor = self._kept = ShardCursor(cursor.epoch, self._cursor.source)
        return cursor

    def _next(self) -> Window | None:
        if self._waiting:
            return self._waiting.popleft()
        assert self._loader is not None
        window = self._loader.next()
        if window is None:
            self._exhausted = True
        else:
            window.begin(self._seed, self._cursor.epoch)
            self._windows.append(window)
        return window

    def _give_back(self) -> None:
        for window in self._used:
            self._mark(window)
        super()._give_back()

    def _mark(self, window: Window) -> None:
        """Note what was given out of a window since this was last done."""
        assert isinstance(window, _Window)
        places = window.given_out()
        if places.shape[1]:
            self._seen.add(places)


class ShardEvents:
    """One rank's events of a shard, a batch a table; kept in memory when those of all ranks fit.

    Args:
        shards: Where they come from.
        limit: Memory for keeping them, in bytes.
        group: The ranks.
    """

    def __init__(self, shards: Shards, limit: int, *, group: Group) -> None:
        self._shards = shards
        self._limit = limit
        self._group = group
        self._kept: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] = []
        size = 0
        for table in tables(self._shards, self._group):
            for events in batches(table):
                yield events
                size += events.x.nbytes + events.y.nbytes + events.weight.nbytes
                if size <= self._limit:
                    # copies: the originals lie in the object store
                    kept.append(Batch(events.x.copy(), events.y.copy(), events.weight.copy()))
                else:
                    kept.clear()
        # whoever reads again does so together with all others
        if self._group.gather([int(size <= self._limit)]).all():
            self._kept = kept


class _Window(Window):
    """A window that knows its rows' places."""

    def __init__(self, number: int, buffer: Buffer, size: int, places: Sequence[Places]) -> None:
        super().__init__((number,), buffer, size)
        self._places = np.concatenate(places, axis=1) if places else np.empty((3, 0), np.int32)
        self._told = 0

    def begin(self, seed: int, epoch: int, seen: int = 0) -> None:
        """Draw the order of an epoch."""
        super().begin(seed, epoch, seen)
        self._told = seen

    def given_out(self) -> Places:
        """Return the places of the rows that were given out since this was last asked."""
        rows = self._order[self._told : self.seen]
        self._told = self.seen
        return self._places[:, rows] if self._places.shape[1] else self._places


class _Loader(Loader):
    """Fills windows with the tables of a pass, as they come.

    Args:
        tables: Of the pass.
        buffers: Free memory.
        seen: Rows that are not wanted.
        placed: Whether rows have places.
    """

    def __init__(self, tables: Iterator[Any], buffers: Sequence[Buffer], seen: Seen, placed: bool) -> None:
        self._seen = seen
        self._placed = placed
        super().__init__(tables, (), (), buffers)

    def _windows(self) -> Iterator[Window]:
        buffer: Buffer | None = None
        places: list[Places] = []
        size = number = 0
        try:
            for events, where in self._events():
                if buffer is not None and size + len(events) > buffer.capacity:
                    yield _Window(number, buffer, size, places)
                    buffer, number = None, number + 1
                if buffer is None:
                    buffer, size, places = self._buffer(), 0, []
                buffer.put(size, events)
                size += len(events)
                places += where
            if buffer is not None:
                yield _Window(number, buffer, size, places)
        finally:
            self._tables.close()  # type: ignore[attr-defined]  # so that Ray Data stops reading

    def _events(self) -> Iterator[tuple[Batch, list[Places]]]:
        """Give the rows that are wanted, with their places."""
        for table in self._tables:
            if self._stop.is_set():
                raise ClosedError
            for arrays in block_arrays(table, ("x", "y", "weight", *(_PLACE if self._placed else ()))):
                rows = [arrays["x"], arrays["y"], arrays["weight"]]
                if not self._placed:
                    yield Batch(*rows), []
                    continue
                places = np.stack([arrays[name] for name in _PLACE])
                wanted = self._seen.unseen(places)
                if wanted is not None:
                    rows, places = [array[wanted] for array in rows], places[:, wanted]
                yield Batch(*rows), [places]
