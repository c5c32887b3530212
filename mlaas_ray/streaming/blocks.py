"""Blocks as tables: the agreement between the streaming and the training layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def block_schema(width: int) -> pa.Schema:
    """Return the schema of every block: the agreement between the streaming and the training layer."""
    return pa.schema(
        {
            "x": pa.fixed_shape_tensor(pa.float32(), (width,)),
            "y": pa.float32(),
            "weight": pa.float32(),
            "dataset": pa.int32(),
            "file": pa.int32(),
            "entry": pa.int64(),
        }
    )


def table_of(x: npt.NDArray[np.float32], *others: npt.NDArray[Any]) -> pa.Table:
    """Make the table of a block, over the same memory.

    Args:
        x: Rows ``(events, features)``.
        others: ``y``, ``weight``, ``dataset``, ``file`` and ``entry``, ``(events,)`` each.
    """
    schema = block_schema(x.shape[1])
    # Arrow's own tensor type over the same memory: measured a fifth cheaper than Ray's, without a copy.
    storage = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    tensor = pa.ExtensionArray.from_storage(schema.field("x").type, storage)
    return pa.table([tensor, *(pa.array(values) for values in others)], schema=schema)
