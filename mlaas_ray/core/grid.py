"""Grids: an event as images of where its objects lie, folded into one row like any other."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlaas_ray.core.features import FeatureSpec, Statistics

Doubles = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

_FLOAT32_TINY = float(np.finfo(np.float32).tiny)


class Axis(BaseModel):
    """One side of a view, cut into equal bins; the last contains its right edge, as numpy.histogram's.

    Attributes:
        name: Field or branch.
        bins: Cells.
        low: Left edge of the first.
        high: Right edge of the last.
        periodic: Whether ``high`` is ``low`` again; then every finite value lies in a bin.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bins: int = Field(ge=1)
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    periodic: bool = False

    @model_validator(mode="after")
    def _check(self) -> Axis:
        if self.low >= self.high:
            raise ValueError(f"the axis {self.name!r} goes from {self.low} to {self.high}")
        return self

    @cached_property
    def edges(self) -> Doubles:
        """Edges of the bins ``(bins + 1,)``."""
        return np.linspace(self.low, self.high, self.bins + 1)

    def index(self, values: npt.NDArray[Any]) -> Whole:
        """Return the bin of each value; -1 for those outside, and for NaN."""
        values = values.astype(np.float64)
        if self.periodic:
            with np.errstate(invalid="ignore"):  # infinity has no place on a circle
                turned = values - np.floor((values - self.low) / (self.high - self.low)) * (
                    self.high - self.low
                )
            # what rounding leaves beyond an edge is on it
            turned[(turned < self.low) | (turned >= self.high)] = self.low
            values = np.where((values >= self.low) & (values < self.high), values, turned)
        index = np.searchsorted(self.edges, values, side="right") - 1
        index[values == self.high] = self.bins - 1
        index[index >= self.bins] = -1
        return index


class Channel(BaseModel):
    """One image of a view.

    Attributes:
        name: What it is called.
        x: Branch of the objects' positions along the columns.
        y: The same along the rows.
        weight: Branch of what an object adds to its cell; None for 1.
        length: Objects of an event that are looked at; None for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    x: str
    y: str
    weight: str | None = None
    length: int | None = Field(default=None, ge=1)

    @property
    def branches(self) -> tuple[str, ...]:
        """What it is made of."""
        return (self.x, self.y) if self.weight is None else (self.x, self.y, self.weight)


class View(BaseModel):
    """Images ``(channels, rows, columns)`` over the same two axes: y along the rows, x along the columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    x: Axis
    y: Axis
    channels: tuple[Channel, ...] = Field(min_length=1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns."""
        return len(self.channels), self.y.bins, self.x.bins


class Plane(NamedTuple):
    """One channel's image in a row: its view, and the position of its first cell."""

    view: View
    channel: Channel
    start: int

    @property
    def name(self) -> str:
        """``<view>/<channel>``."""
        return f"{self.view.name}/{self.channel.name}"

    @property
    def cells(self) -> int:
        """Cells of the image."""
        return self.view.y.bins * self.view.x.bins


class GridSpec(FeatureSpec):
    """A FeatureSpec whose row ``(features,)`` is some scalars, then images laid out cell by cell.

    The images of a view follow each other, and so do the views: ``fold`` gives them back their shape. A cell
    holds the sum of the weights of its objects (their number, where they have no weight) and 0 when there is
    none: only a scalar can be NaN. A column is called ``<view>/<channel>/<row>/<column>``.

    Attributes:
        features: The branches that are read: those of the scalars, and those the images are made of.
        scalars: Flat and fixed branches that come first, as in a vector, sorted.
        views: The images.
    """

    representation: Literal["grid"] = "grid"  # type: ignore[assignment]
    scalars: tuple[str, ...] = ()
    views: tuple[View, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> GridSpec:
        names = Counter(view.name for view in self.views) + Counter(plane.name for plane in self.planes)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"two views or channels are called {twice[0]!r}: give them names")
        absent = {branch for plane in self.planes for branch in plane.channel.branches} - set(self.by_name)
        if absent or set(self.scalars) - set(self.by_name):
            raise ValueError(
                f"no feature for the branch {min(absent | set(self.scalars) - set(self.by_name))!r}"
            )
        if any(self.by_name[name].kind == "jagged" for name in self.scalars):
            raise ValueError("a scalar is a flat or fixed branch")
        return self

    @cached_property
    def vector(self) -> FeatureSpec | None:
        """The scalars alone; None without any."""
        own = [self.by_name[name] for name in self.scalars]
        return FeatureSpec.of(own, normalisation=self.normalisation) if own else None

    @cached_property
    def planes(self) -> tuple[Plane, ...]:
        """The images, in the order of the columns."""
        planes, start = [], self.vector.width if self.vector else 0
        for view in self.views:
            for channel in view.channels:
                planes.append(Plane(view, channel, start))
                start += planes[-1].cells
        return tuple(planes)

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.planes[-1].start + self.planes[-1].cells

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        scalars = self.vector.columns if self.vector else ()
        return scalars + tuple(
            f"{plane.name}/{row}/{column}"
            for plane in self.planes
            for row in range(plane.view.y.bins)
            for column in range(plane.view.x.bins)
        )

    @cached_property
    def starts(self) -> dict[str, int]:
        """Position of each scalar's first column; other branches have no columns of their own."""
        return self.vector.starts if self.vector else {}

    def fold(self, x: Any) -> dict[str, Any]:
        """Give the images their shape.

        Args:
            x: ``(events, features)``, of numpy, torch or anything else that slices and reshapes.

        Returns:
            By view, ``(events, channels, rows, columns)``; no copies where the library needs none.
        """
        firsts = {plane.view.name: plane.start for plane in reversed(self.planes)}
        return {
            view.name: x[:, firsts[view.name] : firsts[view.name] + int(np.prod(view.shape))].reshape(
                (x.shape[0], *view.shape)
            )
            for view in self.views
        }

    def affine(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return ``offset`` and ``scale``, each ``(features,)``: normalised = (x - offset) * scale.

        Scalars are scaled as in a vector. An image has one scale and no offset, so that an empty cell
        stays 0: it is divided by the size of an object's weight, that is the largest (``minmax``), the root
        mean square (``standard``), or the larger of the quartiles (``robust``, ``softclip``). One that
        counts is left as it is.
        """
        offset = np.zeros(self.width, np.float32)
        scale = np.ones(self.width, np.float32)
        if self.vector:
            offset[: self.vector.width], scale[: self.vector.width] = self.vector.affine()
        for plane in self.planes:
            if plane.channel.weight is None or self.normalisation == "none":
                continue
            size = _size(self.by_name[plane.channel.weight].statistics, self.normalisation)
            if size > _FLOAT32_TINY:
                scale[plane.start : plane.start + plane.cells] = 1.0 / size
        return offset, scale


def _size(seen: Statistics | None, normalisation: str) -> float:
    """Return how large the weights are; 0 when none was seen."""
    if seen is None or seen.min is None or seen.max is None:
        return 0.0
    if normalisation == "minmax":
        return max(-seen.min, seen.max)
    root_mean_square = float(np.hypot(seen.mean, seen.std))
    if normalisation == "standard" or not seen.quantiles:
        return root_mean_square
    return max(abs(seen.quantiles[0.25]), abs(seen.quantiles[0.75])) or root_mean_square
