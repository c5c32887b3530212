"""PlannedEvents: one reading of a plan, block by block, in the process that asks for them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from mlaas_ray.streaming.plan import Plan
from mlaas_ray.streaming.reading import Block, Reader, planned_entries
from mlaas_ray.streaming.split import WHOLE, Part

# Each thread holds a block.
_MOST_THREADS = 8


@dataclass
class PlannedEvents:
    """The events of one reading, in blocks: the same ones in the same order, whoever asks for them.

    It pickles, and holds no event: what the blocks of an epoch are is worked out from the plan, where it is
    needed.

    Attributes:
        plan: Which entries of which files make each block.
        reader: What reads them.
        name: Of this reading in the record.
        part: Part of the events; the others are of another reading.
    """

    plan: Plan
    reader: Reader
    name: str = "events"
    part: Part = WHOLE

    def __post_init__(self) -> None:
        self._epoch: tuple[int, list[Block]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_epoch": None}

    def prepare(self) -> None:
        """Load what must be loaded first: XRootD before TensorFlow, or the process dies.

        Call it in the process that asks for blocks before it imports a framework.
        """
        from mlaas_ray.streaming.xrootd import load_xrootd

        urls = (url for file in self.reader.files for url in file.source.urls)
        if any(url.startswith(("root", "xroot")) for url in urls):
            load_xrootd()

    def blocks(self, epoch: int) -> int:
        """Return how many blocks an epoch (from 0) has."""
        return len(self.planned(epoch))

    def tables(self, epoch: int, blocks: Sequence[int]) -> Iterator[pa.Table]:
        """Read some blocks of an epoch: one table each, in the order asked for, the next ones meanwhile.

        Args:
            epoch: Number of the pass over the events, from 0.
            blocks: Indices of blocks, less than :meth:`blocks`.

        Raises:
            DataError: Naming the file, tree and branch that cannot be read, where that is not skipped.
        """
        planned = self.planned(epoch)
        self.note(epoch)
        chosen = [planned[index] for index in blocks]
        return self.reader.tables(chosen, threads=self.reader.settings.threads or _cpus_here())

    def note(self, epoch: int, used: Collection[int] = ()) -> None:
        """Write into the record what an epoch is to read; twice is as good as once.

        Args:
            epoch: The epoch.
            used: Blocks that were used before, and are not read again.
        """
        if self.reader.record is not None:
            blocks = self.planned(epoch)
            before = {block: planned_entries([blocks[block]]) for block in used}
            self.reader.record.plan(self.name, epoch, planned_entries(blocks), before)

    def planned(self, epoch: int) -> list[Block]:
        """Return the blocks of an epoch."""
        if self._epoch is None or self._epoch[0] != epoch:
            blocks = [
                Block(self.name, epoch, index, pieces, self.part, self.plan.shuffle)
                for index, pieces in enumerate(self.plan.epoch(epoch))
            ]
            self._epoch = (epoch, blocks)
        return self._epoch[1]


def _cpus_here() -> int:
    """Return how many whole CPUs this process has: what Ray gave it, or else the machine's."""
    if ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        assigned: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
        cpus = assigned.get("CPU", 1.0)
    else:
        cpus = len(os.sched_getaffinity(0))
    return max(1, min(_MOST_THREADS, int(cpus)))
