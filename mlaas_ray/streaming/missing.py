"""Missing branches: what stands in for a branch that a file lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.columns import Column, Columns, Jagged
from mlaas_ray.core.errors import JobError
from mlaas_ray.streaming.events import Branch

Fill = Mapping[str, bool | int | float]


def filled(branches: Sequence[Branch], present: Columns, entries: int, fill: Fill) -> dict[str, Column]:
    """Return branches that a file lacks, with one value everywhere: NaN for none.

    A jagged one has as many values in an event as the others of its collection (``Jet`` of ``Jet_pt``), so
    that expressions over both still hold; without others, none.

    Args:
        branches: What the file lacks.
        present: What it has.
        entries: Events.
        fill: ``reading.fill``.
    """
    return {branch.name: _column(branch, present, entries, fill) for branch in branches}


def fill_value(branch: Branch, fill: Fill) -> bool | int | float:
    """Return what a branch is filled with; NaN for no value.

    Args:
        branch: The branch, as files have it that do not lack it.
        fill: ``reading.fill``: a name goes before a glob, and a glob before those after it.

    Raises:
        JobError: When that is no value of the branch's type.
    """
    kind = np.dtype(branch.dtype).kind
    globs = (value for name, value in fill.items() if fnmatchcase(branch.name, name))
    value = fill.get(branch.name, next(globs, False if kind == "b" else math.nan))
    if not math.isnan(value) and not (kind == "f" or value == _whole(branch, value)):
        raise JobError(
            f"reading.fill: {branch.name!r} is {branch.type}, which is never {value}",
            "Give false or true" if kind == "b" else "Give a whole number of its type, or .nan for no value",
        )
    return value


def valued(branches: Sequence[Branch], fill: Fill) -> set[str]:
    """Return the names of those branches that are filled with a value."""
    return {branch.name for branch in branches if not math.isnan(fill_value(branch, fill))}


def _whole(branch: Branch, value: float) -> float:
    """Return the nearest value that the branch's type has."""
    if branch.dtype == "bool":
        return bool(value)
    limits = np.iinfo(branch.dtype)
    return int(min(max(value, limits.min), limits.max))


def _column(branch: Branch, present: Columns, entries: int, fill: Fill) -> Column:
    value = fill_value(branch, fill)

    def constant(shape: int | tuple[int, ...]) -> npt.NDArray[np.generic]:
        return np.full(shape, value, np.float32 if math.isnan(value) else branch.dtype)

    if branch.kind != "jagged":
        return constant(entries if branch.kind == "flat" else (entries, branch.length))
    collection = branch.name.partition("_")[0]
    for name, column in present.items():
        if isinstance(column, Jagged) and name.partition("_")[0] == collection:
            return Jagged(column.offsets, constant(len(column.content)))
    return Jagged(np.zeros(entries + 1, np.int64), constant(0))
