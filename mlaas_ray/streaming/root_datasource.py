"""RootDatasource: a reading of a plan as a Ray Data source; one task reads a few blocks in a row."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from mlaas_ray.streaming.blocks import block_schema
from mlaas_ray.streaming.planned import PlannedEvents, shared_reader
from mlaas_ray.streaming.reading import Block

# Ray Data looks at its tasks ten times a second, and a block takes about as long: a task of one block waits
# as long as it reads. In stated order a task's blocks are held until those of all tasks before it are there.
_TASK_BLOCKS = 8
_ORDERED_TASK_BLOCKS = 2
# Tasks there should be for each CPU, so that they end together.
_TASKS_PER_CPU = 4


class RootDatasource(Datasource):
    """Events of files as rows of fixed size.

    Columns: ``x`` float32 tensor ``(features,)`` with NaN where there is no value; ``y`` float32, the label;
    ``weight`` float32; and the identifiers ``dataset`` and ``file`` int32 (indices of the plan) and ``entry``
    int64 (of the tree).

    Each time Ray runs the dataset again is an epoch, with an order of its own when the plan shuffles.

    Args:
        events: What to read, in which blocks.
    """

    def __init__(self, events: PlannedEvents) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._events = events
        self._schema = block_schema(events.reader.features.width, events.reader.truths[0].targets)
        self._paths = [file.source.path for file in events.reader.files]
        self._cpus = float(ray.cluster_resources().get("CPU", 1.0))  # type: ignore[no-untyped-call]
        # Sent once, not with every task: it knows every file.
        self._reader = ray.put(events.reader)

    def get_name(self) -> str:
        """Return the name Ray shows."""
        return "Root"

    def estimate_inmemory_data_size(self) -> int | None:
        """Return the bytes of all blocks."""
        low, high = self._events.part
        plan = self._events.plan
        return int(sum(plan.planned.values()) * (high - low) * plan.row_bytes)

    @property
    def shuffles(self) -> bool:
        """Whether each epoch has an order of its own, drawn from the seed."""
        return self._events.plan.shuffle

    @property
    def block_bytes(self) -> int:
        """Bytes of a usual block."""
        return (self.estimate_inmemory_data_size() or 0) // self._events.plan.blocks

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Make tasks of some blocks each, whatever parallelism Ray would like."""
        epoch = getattr(data_context, "_execution_idx", 0)
        blocks = self._events.planned(epoch)
        self._events.note(epoch)
        options = getattr(data_context, "execution_options", None)
        ordered = getattr(options, "preserve_order", False)
        most = _ORDERED_TASK_BLOCKS if ordered else _TASK_BLOCKS
        each = max(1, min(most, int(len(blocks) / (self._cpus * _TASKS_PER_CPU))))
        if not (ordered or self.shuffles):
            each = max(1, len(blocks))  # Ray gives on the tasks' blocks as they come, but one task's in order
        return [
            self._task(blocks[start : start + each], per_task_row_limit)
            for start in range(0, len(blocks), each)
        ]

    def _task(self, blocks: list[Block], limit: int | None) -> ReadTask:
        pieces = [piece for block in blocks for piece in block.pieces]
        metadata = BlockMetadata(
            num_rows=None,  # not known before the selection and the split
            size_bytes=self.block_bytes * len(blocks),
            exec_stats=None,
            input_files=tuple(self._paths[piece.file] for piece in pieces),
        )
        function = functools.partial(_read, self._reader, blocks)
        return ReadTask(function, metadata, schema=self._schema, per_task_row_limit=limit)


def _read(reader: Any, blocks: list[Block]) -> Iterator[pa.Table]:
    yield from shared_reader(reader).tables(blocks)
