"""RootDatasource: a plan as a Ray Data source: one read task, one block of events, or one row of the plan."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from mlaas_ray.streaming.blocks import block_schema
from mlaas_ray.streaming.plan import Piece, Plan
from mlaas_ray.streaming.reading import Block, Reader, planned_entries
from mlaas_ray.streaming.split import WHOLE, Part

# y, weight, dataset, file, entry
_OTHER_COLUMNS_BYTES = 4 + 4 + 4 + 4 + 8

Mode = Literal["block", "plan"]

# A row of the plan. Its columns are ours alone: who gets such rows hands them to Reading.tables.
_PIECES = pa.list_(pa.struct({"file": pa.int32(), "start": pa.int64(), "stop": pa.int64()}))
PLAN_SCHEMA = pa.schema(
    {
        "reading": pa.string(),
        "epoch": pa.int32(),
        "block": pa.int32(),
        "pieces": _PIECES,
        "low": pa.float64(),
        "high": pa.float64(),
        "shuffle": pa.bool_(),
    }
)


class RootDatasource(Datasource):
    """Events of files as rows of fixed size, or the plan of reading them.

    Columns in block mode: ``x`` float32 tensor ``(features,)`` with NaN where there is no value; ``y``
    float32, the label; ``weight`` float32; and the identifiers ``dataset`` and ``file`` int32 (indices of the
    plan) and ``entry`` int64 (of the tree). In plan mode: what :class:`PlanReader` turns into such tables.

    Each time Ray runs the dataset again is an epoch, with an order of its own when the plan shuffles.

    Args:
        plan: What to read, in which blocks.
        reader: How.
        mode: ``block`` reads in Ray's tasks; ``plan`` only tells what to read.
        name: Of this reading in the record.
        part: Which part of the events, an interval of [0, 1), as in :mod:`.split`.
    """

    def __init__(
        self, plan: Plan, reader: Reader, *, mode: Mode = "block", name: str = "events", part: Part = WHOLE
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._plan = plan
        self._width = reader.features.width
        self._paths = [file.source.path for file in reader.files]
        self._record = reader.record
        self._mode = mode
        self._name = name
        self._part = part
        # Sent once, not with every task: it knows every file.
        self._reader = ray.put(reader) if mode == "block" else None

    def get_name(self) -> str:
        """Return the name Ray shows."""
        return "Root"

    def estimate_inmemory_data_size(self) -> int | None:
        """Return the bytes of all blocks."""
        low, high = self._part
        return int(sum(self._plan.planned.values()) * (high - low) * self._plan.row_bytes)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Make one task a block, whatever parallelism Ray would like: the plan's blocks are good ones."""
        epoch = getattr(data_context, "_execution_idx", 0)
        blocks = [
            Block(self._name, epoch, index, pieces, self._part, self._plan.shuffle)
            for index, pieces in enumerate(self._plan.epoch(epoch))
        ]
        if self._record is not None:
            self._record.plan(self._name, epoch, planned_entries(blocks))
        return [self._task(block, per_task_row_limit) for block in blocks]

    def _task(self, block: Block, limit: int | None) -> ReadTask:
        # The number of rows is not known before the selection and the split; in a plan it is.
        rows: int | None = None
        if self._mode == "plan":
            rows, size = 1, 200
            function = functools.partial(_plan_row, block)
            schema = PLAN_SCHEMA
        else:
            low, high = self._part
            entries = sum(piece.entries for piece in block.pieces)
            size = int(entries * (high - low) * self._plan.row_bytes)
            function = functools.partial(_read_block, block, self._reader)
            schema = block_schema(self._width)
        files = tuple(self._paths[piece.file] for piece in block.pieces)
        metadata = BlockMetadata(num_rows=rows, size_bytes=size, exec_stats=None, input_files=files)
        return ReadTask(function, metadata, schema=schema, per_task_row_limit=limit)


def row_bytes(width: int) -> int:
    """Return the bytes of one event in a block."""
    return 4 * width + _OTHER_COLUMNS_BYTES


def _read_block(block: Block, reader: Any) -> Iterator[pa.Table]:
    yield from _fetched(reader).tables([block])


@functools.lru_cache(maxsize=4)
def _fetched(reader: Any) -> Reader:
    """Return a reader from the object store, once per process."""
    found: Reader = ray.get(reader)
    return found


def _plan_row(block: Block) -> Iterator[pa.Table]:
    low, high = block.part
    pieces = [{"file": piece.file, "start": piece.start, "stop": piece.stop} for piece in block.pieces]
    yield pa.Table.from_pylist(
        [
            {
                "reading": block.reading,
                "epoch": block.epoch,
                "block": block.index,
                "pieces": pieces,
                "low": low,
                "high": high,
                "shuffle": block.shuffle,
            }
        ],
        schema=PLAN_SCHEMA,
    )


@dataclass(frozen=True)
class PlanReader:
    """Turns rows of a plan into tables of events, where they are used.

    Args:
        reader: How to read.
    """

    reader: Reader

    def prepare(self) -> None:
        """Load what must be loaded first: XRootD before TensorFlow, or the process dies.

        Call it in the reading process before it imports a framework.
        """
        from mlaas_ray.streaming.xrootd import load_xrootd

        if any(url.startswith(("root", "xroot")) for file in self.reader.files for url in file.source.urls):
            load_xrootd()

    def tables(self, rows: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Read the blocks that rows tell of, in their order.

        Args:
            rows: Tables of ``PLAN_SCHEMA``, of one row or more.

        Raises:
            DataError: Naming the file, tree and branch that cannot be read, where that is not skipped.
        """
        return self.reader.tables(_block(row) for table in rows for row in table.to_pylist())


def _block(row: dict[str, Any]) -> Block:
    pieces = tuple(Piece(piece["file"], piece["start"], piece["stop"]) for piece in row["pieces"])
    part = (row["low"], row["high"])
    return Block(row["reading"], row["epoch"], row["block"], pieces, part, row["shuffle"])
