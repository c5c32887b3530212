"""Shards: how the events of a Dataset come to the workers, all of them, and evenly."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
from ray.data import DataIterator, Dataset
from ray.train import DataConfig

from mlaas_ray.training.batches import Batch, ShufflePool, blocks
from mlaas_ray.training.group import Group

T = TypeVar("T")

MIN_BLOCK = 1 << 20
BLOCKS_PER_WORKER = 8


class TableReader(Protocol):
    """Makes tables of events of what a Dataset holds, when that is not events but where to read them.

    It pickles. The workers use it, each for its own shard.
    """

    def prepare(self) -> None:
        """Load what must be loaded before any framework is; called first in every worker."""

    def tables(self, rows: Iterable[Any]) -> Iterator[Any]:
        """Turn the Dataset's Arrow tables into tables of events, in their order."""


class WholeShards(DataConfig):
    """Splits every dataset among the workers without dropping a row.

    Ray's own choice makes the shards equal by dropping up to one row per worker. Here each block goes to
    the worker with the fewest rows so far; unequal shards are no harm, because the workers agree on every
    step's events (:func:`mlaas_ray.training.batches.share_out`). So that a small dataset, which would be
    one or two blocks, reaches all workers, its blocks are made smaller: about eight for each worker. Blocks
    that lie in memory already stay as they are.

    The order of blocks is kept, for the same seed is to give the same training.
    """

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        """Return the shards by name for each worker."""
        shards: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            own = dataset.copy(dataset)
            own.context.execution_options = copy.deepcopy(own.context.execution_options)
            own.context.execution_options.preserve_order = True
            own.context.enable_progress_bars = False
            own.context.print_on_execution_start = False
            if world_size > 1:
                own.context.target_max_block_size = block_size(
                    estimated_bytes(own._logical_plan.dag),
                    world_size,
                    own.context.target_max_block_size,
                )
            for rank, shard in enumerate(own.streaming_split(world_size, equal=False)):
                shards[rank][name] = shard
        return shards


def estimated_bytes(operator: Any) -> int | None:
    """Return what a dataset may come to in bytes, without running it.

    Ray Data knows the size of what is read or lies in memory, but not of what a function makes of it: then
    it is that of the inputs.

    Args:
        operator: The last operator of the dataset's logical plan.
    """
    size: int | None = operator.infer_metadata().size_bytes
    if size is not None:
        return size
    inputs = [estimated_bytes(source) for source in operator.input_dependencies]
    known = [size for size in inputs if size is not None]
    return sum(known) if known else None


def block_size(total: int | None, workers: int, usual: int | None) -> int | None:
    """Return the size of blocks in bytes that gives each worker several, but never over the usual size.

    Args:
        total: Bytes of the dataset; None when not known.
        workers: Workers to share it.
        usual: Ray Data's block size; None for no limit.
    """
    if not total:
        return usual
    size = max(MIN_BLOCK, total // (workers * BLOCKS_PER_WORKER))
    return size if usual is None else min(size, usual)


def tables(shard: DataIterator) -> Iterator[Any]:
    """Give a shard's blocks as Arrow tables, the next one fetched meanwhile."""
    # batch_size None: whole blocks, which Ray's own annotation has forgotten
    options: Any = {"batch_size": None, "batch_format": "pyarrow", "prefetch_batches": 2}
    return iter(shard.iter_batches(**options))


def read_tables(shard: DataIterator, reader: TableReader | None) -> Iterator[Any]:
    """Give a shard's events as Arrow tables: as they come, or read here by a reader, one table ahead."""
    return tables(shard) if reader is None else one_ahead(reader.tables(tables(shard)))


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Give items on, while the next is being made in a thread.

    What making one raises is raised where it would have come. The thread ends with the iteration.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def work() -> None:
        try:
            for item in items:
                if not _put(ready, (True, item), stop):
                    return
            _put(ready, (False, None), stop)
        except BaseException as error:
            _put(ready, (False, error), stop)

    thread = threading.Thread(target=work, name="one-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if not more:
                if item is not None:
                    raise item
                return
            yield item
            del item
    finally:
        stop.set()
        thread.join()


def _put(ready: queue.Queue[tuple[bool, Any]], item: tuple[bool, Any], stop: threading.Event) -> bool:
    """Put an item into a queue that may be full; False when nobody waits for it any more."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False


class TrainingEvents:
    """One worker's training events, shuffled anew each epoch.

    Args:
        read: Begins to read the shard's tables from the start.
        width: Columns of ``x``.
        limit: Memory for the pool in bytes.
        batch_size: Events of a step over all workers.
        group: The workers; they read anew or none does, since Ray Data starts a split for all at once.
        seed: Of the run.
    """

    def __init__(
        self,
        read: Callable[[], Iterator[Any]],
        width: int,
        limit: int,
        *,
        batch_size: int,
        group: Group,
        seed: int,
    ) -> None:
        self._read = read
        self._group = group
        self._seed = seed
        self._begun = False
        self.pool = ShufflePool(width, limit, least=2 * batch_size)

    def start(self, epoch: int) -> None:
        """Begin an epoch: from memory if all workers can, else by reading the shards again."""
        random = np.random.default_rng([self._seed, epoch, self._group.rank])
        kept = self._begun and self.pool.whole
        if self._group.gather([kept]).all():
            self.pool.restart(random)
        else:
            self.pool.start(blocks(self._read()), random)
        self._begun = True


class ValidationEvents:
    """One worker's validation events, in their order; kept in memory when all workers' fit.

    Args:
        read: Begins to read the shard's tables from the start.
        limit: Memory for keeping them, in bytes.
        group: The workers; see :class:`TrainingEvents`.
    """

    def __init__(self, read: Callable[[], Iterator[Any]], limit: int, *, group: Group) -> None:
        self._read = read
        self._limit = limit
        self._group = group
        self._kept: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._group.gather([self._kept is not None]).all():
            yield from self._kept or ()
            return
        kept: list[Batch] | None = []
        size = 0
        for block in blocks(self._read()):
            yield block
            size += block.x.nbytes + block.y.nbytes + block.weight.nbytes
            if kept is not None and size <= self._limit:
                # Copies: the originals lie in the object store, which others need.
                kept.append(Batch(block.x.copy(), block.y.copy(), block.weight.copy()))
            else:
                kept = None
        self._kept = kept
