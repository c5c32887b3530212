"""Events: where a worker gets them from: block by block, or as its share of what Ray Data reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import ray
import ray.train
from ray.data import Dataset

# Blocks that a stored dataset is cut into for each worker, so that all get some of each class.
_BLOCKS_PER_WORKER = 8


class EventSource(Protocol):
    """One reading of events, block by block. It pickles; each worker asks it for blocks of its own.

    Tables hold ``x`` (Arrow fixed-shape tensor of float32, ``(features,)``, NaN where there is no value),
    ``y`` (float32: a class's number, a target, or a tensor of several targets), ``weight`` (float32), and the
    identifiers ``dataset``, ``file`` (int32) and ``entry`` (int64).
    """

    def prepare(self) -> None:
        """Load what must be loaded before any framework is; called first in every worker."""

    def blocks(self, epoch: int) -> int:
        """Return how many blocks an epoch (from 0) has."""

    def tables(self, epoch: int, blocks: Sequence[int]) -> Iterator[Any]:
        """Give the tables of some blocks, one each, in the order asked for, the next ones read meanwhile.

        Args:
            epoch: Each may have blocks of its own; all of them together hold every event once.
            blocks: Indices of blocks.
        """


# Called with an epoch (from 0), and blocks from and to some numbers that were seen of it.
Begin = Callable[[int, Sequence[tuple[int, int]]], None]


@runtime_checkable
class DatasetSource(Protocol):
    """Events that Ray Data reads, and that know their places.

    Attributes:
        dataset: With the columns of :class:`EventSource`, and of each row the number of its block in the
            epoch, its own in the block, and how many rows that has (``block``, ``row``, ``rows``: int32).
        begin: Says what the next pass over the dataset is to read; pickles.
    """

    dataset: Dataset
    begin: Begin


@dataclass(frozen=True)
class Shards:
    """What a worker is told of a dataset that Ray Data deals out.

    Attributes:
        name: By which Ray Train knows it.
        begin: See :class:`DatasetSource`; None for a user's own dataset, whose rows have no places.
    """

    name: str
    begin: Begin | None = None

    def prepare(self) -> None:
        """Let the process that deals them out start, while a framework is loaded here."""
        ray.train.get_dataset_shard(self.name)


class StoredEvents:
    """A Ray Dataset as a source: it is run once, and its blocks are kept in the object store.

    It is for networks that must see the same batches again and again, which no second run of it would give.

    Args:
        dataset: With the columns of :class:`EventSource`.
        workers: How many will read.
    """

    def __init__(self, dataset: Dataset, workers: int) -> None:
        tables = dataset.to_arrow_refs()
        count = ray.remote(num_cpus=0)(_rows)
        rows = ray.get([count.remote(table) for table in tables])
        most = max(1, -(-sum(rows) // (workers * _BLOCKS_PER_WORKER)))
        self._slices = [
            (table, start, min(most, length - start))
            for table, length in zip(tables, rows, strict=True)
            for start in range(0, length, most)
        ]

    def prepare(self) -> None:
        """Load nothing."""

    def blocks(self, epoch: int) -> int:
        """Return how many blocks there are, the same in every epoch."""
        return len(self._slices)

    def tables(self, epoch: int, blocks: Sequence[int]) -> Iterator[Any]:
        """Give the tables of some blocks."""
        for index in blocks:
            table, start, length = self._slices[index]
            yield ray.get(table).slice(start, length)


def _rows(table: Any) -> int:
    return int(table.num_rows)
