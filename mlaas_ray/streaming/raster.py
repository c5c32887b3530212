"""Rasterise: :func:`mlaas_ray.core.rasterise` compiled, for whole blocks of events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.columns import Jagged
from mlaas_ray.core.grid import GridSpec
from mlaas_ray.core.rasterise import Counts, Rows, planes_of, put_scalars, targets
from mlaas_ray.streaming.kernels import compiled, part

_NOTHING = np.empty(0, np.float32)


def rasterise(
    columns: Mapping[str, Any], spec: GridSpec, out: Rows, rows: npt.ArrayLike | None = None
) -> Counts:
    """Put events into the rows of a spec; equal to the reference to the last bit.

    Args:
        columns: By branch name, of either byte order.
        spec: The scalars and images.
        out: ``(rows, features)`` float32, C-contiguous; rows that are written are written whole.
        rows: ``(events,)``: row of each event, each at most once; -1 leaves it out. None for row ``i``.

    Returns:
        What became of the objects of the events that were not left out.

    Raises:
        FeatureError: When a branch is missing, or does not fit the spec or the others.
    """
    target = targets(columns, spec, out, rows)
    put_scalars(columns, spec, out, target)
    numbers = np.zeros((len(spec.planes), 3), np.int64)
    for objects, plane, counts in zip(
        planes_of(columns, spec, len(target)), spec.planes, numbers, strict=True
    ):
        x, y = plane.view.x, plane.view.y
        _draw(
            objects.offsets,
            objects.x,
            objects.y,
            _NOTHING if objects.weight is None else objects.weight,
            objects.weight is not None,
            np.iinfo(np.int64).max if plane.channel.length is None else plane.channel.length,
            x.edges,
            x.periodic,
            y.edges,
            y.periodic,
            target,
            out,
            plane.start,
            np.full(plane.cells, -1, np.int64),
            counts,
        )
    return Counts(tuple(plane.name for plane in spec.planes), numbers)


def out_of_bounds(
    columns: Mapping[str, Any], spec: GridSpec, bounds: tuple[npt.NDArray[Any], npt.NDArray[Any]]
) -> npt.NDArray[np.int64]:
    """Count the finite values of each branch beyond what is expected of it, as ``scatter`` does.

    Args:
        columns: By branch name.
        spec: Whose ``features`` are compared.
        bounds: Least and greatest value ``(branches,)`` each, float32.

    Returns:
        ``(branches,)``.
    """
    found = np.zeros(len(spec.features), np.int64)
    for i, feature in enumerate(spec.features):
        column = columns[feature.name]
        values = column.content if isinstance(column, Jagged) else column
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        found[i] = (((values < bounds[0][i]) | (values > bounds[1][i])) & np.isfinite(values)).sum()
    return found


@part
def _bin(value, edges, scale, periodic):  # type: ignore[no-untyped-def]
    """Return the bin of a value, or -1: what ``Axis.index`` gives; ``scale`` is bins per unit."""
    bins = len(edges) - 1
    low, high = edges[0], edges[bins]
    if periodic and not (low <= value < high):
        value -= np.floor((value - low) / (high - low)) * (high - low)
        if value < low or value >= high:
            value = low
    if not (low <= value <= high):  # NaN too
        return -1
    index = min(int((value - low) * scale), bins - 1)
    # rounding can be one off: the edges decide
    if value < edges[index]:
        return index - 1
    if index < bins - 1 and value >= edges[index + 1]:
        return index + 1
    return index


@compiled
def _draw(  # type: ignore[no-untyped-def]
    offsets,
    x,
    y,
    weights,
    weighted,
    length,
    x_edges,
    x_turns,
    y_edges,
    y_turns,
    rows,
    out,
    start,
    last,
    counts,
):
    """Draw one plane: clear each event's image, and add its objects.

    ``last`` ``(cells,)`` keeps the event that came to each cell last. ``counts`` ``(3,)`` are objects inside,
    outside, and come to a cell that had one.
    """
    columns = len(x_edges) - 1
    x_scale = columns / (x_edges[-1] - x_edges[0])
    y_scale = (len(y_edges) - 1) / (y_edges[-1] - y_edges[0])
    inside = outside = collisions = 0
    for event in range(len(rows)):
        if rows[event] < 0:
            continue
        image = out[rows[event], start : start + len(last)]
        image[:] = np.float32(0.0)
        first = offsets[event]
        for i in range(first, first + min(offsets[event + 1] - first, length)):
            column = _bin(np.float64(x[i]), x_edges, x_scale, x_turns)
            row = _bin(np.float64(y[i]), y_edges, y_scale, y_turns)
            weight = weights[i] if weighted else np.float32(1.0)
            if column < 0 or row < 0 or not np.isfinite(weight):
                outside += 1
                continue
            cell = row * columns + column
            image[cell] += weight
            inside += 1
            if last[cell] == event:
                collisions += 1
            last[cell] = event
    counts[0], counts[1], counts[2] = inside, outside, collisions
