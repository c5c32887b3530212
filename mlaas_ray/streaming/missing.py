"""Missing branches: what stands in for a branch that a file lacks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlaas_ray.core.columns import Column, Columns, Jagged
from mlaas_ray.streaming.events import Branch


def filled(branches: Sequence[Branch], present: Columns, entries: int) -> dict[str, Column]:
    """Return branches without a value: NaN everywhere.

    A jagged one has as many values in an event as the others of its collection (``Jet`` of ``Jet_pt``), so
    that expressions over both still hold; without others, none.

    Args:
        branches: What the file lacks.
        present: What it has.
        entries: Events.
    """
    return {branch.name: _nothing(branch, present, entries) for branch in branches}


def _nothing(branch: Branch, present: Columns, entries: int) -> Column:
    if branch.kind != "jagged":
        shape = entries if branch.kind == "flat" else (entries, branch.length)
        return np.full(shape, np.nan, np.float32)
    collection = branch.name.partition("_")[0]
    for name, column in present.items():
        if isinstance(column, Jagged) and name.partition("_")[0] == collection:
            return Jagged(column.offsets, np.full(len(column.content), np.nan, np.float32))
    return Jagged(np.zeros(entries + 1, np.int64), np.empty(0, np.float32))
