"""RootDatasource: a reading of a plan as a Ray Data source; one task reads a few blocks in a row.

:class:`ClusterEvents` is such a reading for the workers of a training, who say what each pass is to read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from mlaas_ray.streaming.blocks import PLACE, block_schema, placed
from mlaas_ray.streaming.planned import PlannedEvents
from mlaas_ray.streaming.reading import Block, Reader
from mlaas_ray.streaming.record import Record
from mlaas_ray.streaming.tasks import ensure_ray

# Ray Data looks at its tasks ten times a second, and a block takes about as long: a task of one block waits
# as long as it reads. In stated order a task's blocks are held until those of all tasks before it are there.
_TASK_BLOCKS = 8
_ORDERED_TASK_BLOCKS = 2
# Tasks there should be for each CPU, so that they end together.
_TASKS_PER_CPU = 4
# Of the object store, what the blocks of one task for each CPU may come to: Ray Data starts no more tasks
# than it has room for all that they may give.
_STORE_SHARE = 0.25


class RootDatasource(Datasource):
    """Events of files as rows of fixed size.

    Columns: ``x`` float32 tensor ``(features,)`` with NaN where there is no value; ``y`` float32, the label;
    ``weight`` float32; and the identifiers ``dataset`` and ``file`` int32 (indices of the plan) and ``entry``
    int64 (of the tree).

    Each time Ray runs the dataset again is an epoch, with an order of its own when the plan shuffles.

    Args:
        events: What to read, in which blocks.
        agenda: A record that says which epoch to read, and which of its blocks not; the rows then have the
            columns of :data:`~mlaas_ray.streaming.blocks.PLACE`, too.
    """

    def __init__(self, events: PlannedEvents, agenda: Record | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._events = events
        self._agenda = agenda
        self._schema = block_schema(events.reader.features.width, events.reader.truths[0].targets)
        for name in PLACE if agenda else ():
            self._schema = self._schema.append(pa.field(name, pa.int32()))
        self._paths = [file.source.path for file in events.reader.files]
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._cpus = max(1.0, resources.get("CPU", 1.0))
        self._store = resources.get("object_store_memory", 0.0)
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
        epoch, left_out = getattr(data_context, "_execution_idx", 0), set[int]()
        if self._agenda is not None:
            epoch, done = self._agenda.wanted(self._events.name)
            left_out = {block for first, last in done for block in range(first, last + 1)}
        blocks = [block for block in self._events.planned(epoch) if block.index not in left_out]
        self._events.note(epoch, left_out)
        options = getattr(data_context, "execution_options", None)
        ordered = getattr(options, "preserve_order", False)
        most = _ORDERED_TASK_BLOCKS if ordered else _TASK_BLOCKS
        room = _STORE_SHARE * self._store / self._cpus / max(1, self.block_bytes)
        each = max(1, int(min(most, room, len(blocks) / (self._cpus * _TASKS_PER_CPU))))
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
        function = functools.partial(_read, self._reader, blocks, self._agenda is not None)
        return ReadTask(function, metadata, schema=self._schema, per_task_row_limit=limit)


@functools.lru_cache(maxsize=4)
def _shared(reader: ray.ObjectRef[Reader]) -> Reader:
    """Return a reader from the object store, once per process: it knows every file."""
    found: Reader = ray.get(reader)
    return found


def _read(reader: ray.ObjectRef[Reader], blocks: list[Block], places: bool) -> Iterator[pa.Table]:
    for block, table in zip(blocks, _shared(reader).tables(blocks), strict=True):
        yield placed(table, block.index) if places else table


def dataset_of(events: PlannedEvents, agenda: Record | None = None) -> ray.data.Dataset:
    """Return a reading as a Ray Dataset; arguments as of :class:`RootDatasource`."""
    ensure_ray()
    source = RootDatasource(events, agenda)
    # Without a number Ray would split the blocks into about 200.
    dataset: ray.data.Dataset = ray.data.read_datasource(source, override_num_blocks=1)
    # A task gives block after block as the plan has them: Ray would put smaller ones together, and cut those
    # half as large again.
    dataset.context.target_max_block_size = max(1, int(source.block_bytes * 0.75))
    if not source.shuffles and agenda is None:  # else Ray gives on whatever is read first
        dataset.context.execution_options.preserve_order = True
    return dataset


class ClusterEvents:
    """A reading of a plan by Ray Data, on whichever CPUs of the cluster are free, for a training's workers.

    Args:
        events: What to read, in which blocks.
        record: Of the run.

    Attributes:
        dataset: The events, with the columns of :data:`~mlaas_ray.streaming.blocks.PLACE`.
        begin: Called with an epoch and the numbers (first and last) of blocks that were seen, before the
            workers iterate over their shards.
    """

    def __init__(self, events: PlannedEvents, record: Record) -> None:
        self.dataset = dataset_of(events, record)
        self.begin: Callable[[int, Sequence[tuple[int, int]]], None]
        self.begin = functools.partial(record.want, events.name)
