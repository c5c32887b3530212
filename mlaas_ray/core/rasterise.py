"""Objects to images: the events of a GridSpec as rows ``(events, features)`` float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.columns import Jagged, from_awkward
from mlaas_ray.core.errors import FeatureError, nearest
from mlaas_ray.core.features import Feature
from mlaas_ray.core.grid import Doubles, GridSpec, Plane, Whole

Rows = npt.NDArray[np.float32]
Singles = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Counts:
    """What became of the objects of each image; those beyond a channel's length were not looked at.

    Attributes:
        planes: ``<view>/<channel>``.
        numbers: ``(planes, 3)``: objects inside; outside the ranges, or NaN or infinite in position or
            weight; and collisions: those inside that came to a cell that had one of the same event.
    """

    planes: tuple[str, ...]
    numbers: Whole

    def __add__(self, other: Counts) -> Counts:
        """Add those of other events of the same spec."""
        if self.planes != other.planes:
            raise FeatureError("counts of different grids cannot be added")
        return Counts(self.planes, self.numbers + other.numbers)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Return ``{"eta_phi/Jet": {"inside": 9, "outside": 1, "collisions": 0}}``."""
        words = ("inside", "outside", "collisions")
        return {
            plane: dict(zip(words, map(int, row), strict=True))
            for plane, row in zip(self.planes, self.numbers, strict=True)
        }

    def flat(self) -> dict[str, int]:
        """Return ``{"eta_phi/Jet inside": 9, …}``, for records that add up numbers by name."""
        return {f"{plane} {word}": n for plane, row in self.as_dict().items() for word, n in row.items()}


class Objects(NamedTuple):
    """The objects of one channel, of all events: event ``i`` has ``x[offsets[i]:offsets[i + 1]]``.

    They are float32 whatever the file's type, so that a value that a client sends falls on the same side of
    an edge as it did in training.
    """

    offsets: Whole
    x: Singles
    y: Singles
    weight: Singles | None


def rasterise(
    columns: Mapping[str, Any], spec: GridSpec, out: Rows, rows: npt.ArrayLike | None = None
) -> Counts:
    """Put events into the rows of a spec; the reference of the streaming layer's compiled kernel.

    Args:
        columns: By branch name: a column, or an awkward array.
        spec: The scalars and images.
        out: ``(rows, features)`` float32, C-contiguous; rows that are written are written whole.
        rows: ``(events,)``: row of each event, each at most once; -1 leaves it out. None for row ``i``.

    Returns:
        What became of the objects of the events that were not left out.

    Raises:
        FeatureError: When a branch is missing, or does not fit the spec or the others.
    """
    target = targets(columns, spec, out, rows)
    out[target[target >= 0]] = 0.0
    put_scalars(columns, spec, out, target)
    numbers = np.zeros((len(spec.planes), 3), np.int64)
    cells = out.reshape(-1)
    for objects, plane, counts in zip(
        planes_of(columns, spec, len(target)), spec.planes, numbers, strict=True
    ):
        event, cell, weight = _placed(objects, plane)
        read = target[event] >= 0
        inside = read & (cell >= 0)
        place = target[event[inside]] * spec.width + plane.start + cell[inside]
        # one after the other, in float32: what the kernel does, to the last bit
        np.add.at(cells, place, weight[inside])
        counts[:] = len(place), read.sum() - len(place), len(place) - len(np.unique(place))
    return Counts(tuple(plane.name for plane in spec.planes), numbers)


def mean_image(columns: Mapping[str, Any], spec: GridSpec) -> dict[str, Doubles]:
    """Return the mean over all events of each view's images ``(channels, rows, columns)``."""
    events = len(columns[spec.planes[0].channel.x])
    images: dict[str, list[Doubles]] = {view.name: [] for view in spec.views}
    for objects, plane in zip(planes_of(columns, spec, events), spec.planes, strict=True):
        _, cell, weight = _placed(objects, plane)
        inside = cell >= 0
        sums = np.bincount(cell[inside], weight[inside], plane.cells) / max(events, 1)
        images[plane.view.name].append(sums.reshape(plane.view.y.bins, plane.view.x.bins))
    return {name: np.stack(channels) for name, channels in images.items()}


def _placed(objects: Objects, plane: Plane) -> tuple[Whole, Whole, Singles]:
    """Return the event, cell (-1: outside) and weight of each object that is looked at."""
    counts = np.diff(objects.offsets)
    event = np.repeat(np.arange(len(counts)), counts)
    weight = np.ones(len(event), np.float32) if objects.weight is None else objects.weight
    column, row = plane.view.x.index(objects.x), plane.view.y.index(objects.y)
    outside = (column < 0) | (row < 0) | ~np.isfinite(weight)
    cell = np.where(outside, -1, row * plane.view.x.bins + column)
    if plane.channel.length is None:
        return event, cell, weight
    slot = np.arange(len(event)) - np.repeat(objects.offsets[:-1], counts)
    kept = slot < plane.channel.length
    return event[kept], cell[kept], weight[kept]


def targets(columns: Mapping[str, Any], spec: GridSpec, out: Rows, rows: npt.ArrayLike | None) -> Whole:
    """Return the row of each event, after checking that ``out`` has it.

    Raises:
        FeatureError: When a branch is missing, or ``out`` or ``rows`` is not what it should be.
    """
    missing = [feature.name for feature in spec.features if feature.name not in columns]
    if missing:
        raise FeatureError(f"no values for {missing[0]!r}", nearest(missing[0], columns))
    events = len(columns[spec.features[0].name])
    if out.ndim != 2 or out.shape[1] != spec.width or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise FeatureError(f"out must be C-contiguous float32 of shape (rows, {spec.width})")
    target = np.arange(events, dtype=np.int64) if rows is None else np.asarray(rows, dtype=np.int64)
    if target.shape != (events,):
        raise FeatureError(f"rows has the shape {target.shape}, for {events} events")
    if events and not -1 <= target.min() <= target.max() < len(out):
        raise FeatureError(f"rows go from {target.min()} to {target.max()}, but out has {len(out)}")
    return target


@np.errstate(over="ignore")  # what is beyond float32 is infinite
def put_scalars(columns: Mapping[str, Any], spec: GridSpec, out: Rows, target: Whole) -> None:
    """Write the scalars of the events that have a row."""
    written = target >= 0
    for name, start in spec.starts.items():
        length = spec.by_name[name].length
        values = columns[name] if isinstance(columns[name], Jagged) else from_awkward(columns[name], name)
        if isinstance(values, Jagged) or values.size != len(target) * length:
            raise FeatureError(f"{name!r} is no branch of {length} value(s) an event in these events")
        out[target[written], start : start + length] = values.reshape(-1, length)[written]


def planes_of(columns: Mapping[str, Any], spec: GridSpec, events: int) -> Iterator[Objects]:
    """Yield the objects of each plane; a branch that several planes share is converted once.

    Raises:
        FeatureError: When the branches of a channel have not the same objects.
    """
    known: dict[str, tuple[Whole, Singles]] = {}
    for plane in spec.planes:
        for name in plane.channel.branches:
            if name not in known:
                known[name] = _objects(columns[name], spec.by_name[name])
        offsets, x = known[plane.channel.x]
        for name in plane.channel.branches:
            own = known[name][0]
            if own is not offsets and not np.array_equal(own, offsets):
                raise FeatureError(
                    f"{plane.channel.x!r} and {name!r} differ in how many objects the events have",
                    f"Give the channel {plane.name!r} branches of one collection",
                )
        if len(offsets) != events + 1:
            raise FeatureError(f"{plane.channel.x!r} has values for {len(offsets) - 1} events, not {events}")
        weight = None if plane.channel.weight is None else known[plane.channel.weight][1]
        yield Objects(offsets, x, known[plane.channel.y][1], weight)


@np.errstate(over="ignore")
def _objects(values: Any, feature: Feature) -> tuple[Whole, Singles]:
    """Return offsets and values of a branch of any kind: a flat one has one object an event."""
    column = values if isinstance(values, Jagged) else from_awkward(values, feature.name)
    kinds = (
        {"jagged"} if isinstance(column, Jagged) else {"flat"} if column.ndim == 1 else {"fixed", "jagged"}
    )
    if feature.kind not in kinds:
        raise FeatureError(
            f"{feature.name!r} is {min(kinds)} in these events, but {feature.kind} in the FeatureSpec"
        )
    if isinstance(column, Jagged):
        offsets, content = column.offsets, column.content
        # a damaged file may say anything, and the compiled kernel follows it anywhere
        if offsets[0] != 0 or offsets[-1] != len(content) or (offsets[1:] < offsets[:-1]).any():
            raise FeatureError(f"the offsets of {feature.name!r} do not rise from 0 to {len(content)}")
    else:
        length = 1 if column.ndim == 1 else column.shape[1]
        offsets, content = np.arange(len(column) + 1, dtype=np.int64) * length, column.reshape(-1)
    return offsets, np.ascontiguousarray(content, dtype=np.float32)
