"""Blocks as tables: the agreement between the streaming and the training layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def block_schema(width: int, targets: int = 1) -> pa.Schema:
    """Return the schema of every block: the agreement between the streaming and the training layer.

    Args:
        width: Columns of ``x``.
        targets: Numbers that are to be learnt of an event; several make a tensor.
    """
    return pa.schema(
        {
            "x": pa.fixed_shape_tensor(pa.float32(), (width,)),
            "y": pa.float32() if targets == 1 else pa.fixed_shape_tensor(pa.float32(), (targets,)),
            "weight": pa.float32(),
            "dataset": pa.int32(),
            "file": pa.int32(),
            "entry": pa.int64(),
        }
    )


# Where a row lies in its plan: the block's number, the row's number in it, and how many rows the block has.
PLACE = ("block", "row", "rows")


def placed(table: pa.Table, block: int) -> pa.Table:
    """Give the rows of a block the columns of :data:`PLACE`: Ray Data cuts blocks, and puts them together."""
    count = table.num_rows
    values = (np.full(count, block), np.arange(count), np.full(count, count))
    for name, column in zip(PLACE, values, strict=True):
        table = table.append_column(name, pa.array(column.astype(np.int32)))
    return table


def row_bytes(width: int) -> int:
    """Return the bytes of one event in a block."""
    others = (field.type for field in block_schema(width) if field.name != "x")
    return 4 * width + int(sum(kind.bit_width // 8 for kind in others))


def table_of(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], *others: npt.NDArray[Any]) -> pa.Table:
    """Make the table of a block, over the same memory.

    Args:
        x: Rows ``(events, features)``.
        y: Labels ``(events,)``, or targets ``(events, targets)``.
        others: ``weight``, ``dataset``, ``file`` and ``entry``, ``(events,)`` each.
    """
    targets = y.shape[1] if y.ndim == 2 else 1
    schema = block_schema(x.shape[1], targets)
    labels = pa.array(y) if targets == 1 else _tensor(y, schema.field("y").type)
    arrays = [_tensor(x, schema.field("x").type), labels, *(pa.array(values) for values in others)]
    return pa.table(arrays, schema=schema)


def _tensor(rows: npt.NDArray[np.float32], kind: Any) -> pa.Array:
    # Arrow's own tensor type over the same memory: measured a fifth cheaper than Ray's, without a copy.
    storage = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    return pa.ExtensionArray.from_storage(kind, storage)
