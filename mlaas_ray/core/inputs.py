"""Inputs: what a model is to see of the events, as a user asks for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mlaas_ray.core.features import Normalisation
from mlaas_ray.core.settings import Settings


def _listed(value: Any) -> Any:
    """Let one name stand for a list of one."""
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class ObjectSettings(Settings):
    """One collection of objects, such as ``Jet`` (every jagged ``Jet_*``), or one jagged branch.

    Attributes:
        length: Objects to keep of each event; left out, the largest multiplicity seen.
        where: Expression over the objects: those for which it is true are kept.
        sort_by: Jagged branch or expression; the largest come first.
        ascending: Whether the smallest come first.
    """

    length: int | None = Field(default=None, ge=1)
    where: str | None = None
    sort_by: str | None = None
    ascending: bool = False


# The name of a collection's field or of a branch, or 1: every object counts the same.
Weight = Literal[1] | str
Range = tuple[float, float]


def _channel(value: Any) -> Any:
    """Let the name of a collection stand for a channel: ``Jet``."""
    return {"collection": value} if isinstance(value, str) else value


class ChannelSettings(Settings):
    """One image of a view: the objects of one collection.

    Attributes:
        collection: Its name, as in ``Jet`` for ``Jet_eta`` and ``Jet_phi``.
        weight: What an object adds to its cell; left out, the view's weight.
        name: What to call the channel; left out, the collection's name.
        x: Branch of its positions, where it is not ``<collection>_<axis>``.
        y: The same along the other axis.
    """

    collection: str = Field(min_length=1)
    weight: Weight | None = None
    name: str | None = Field(default=None, min_length=1)
    x: str | None = None
    y: str | None = None


def _view(value: Any) -> Any:
    """Let two axes stand for a view: ``eta-phi``."""
    if not isinstance(value, str):
        return value
    x, dash, y = value.partition("-")
    if not (x and dash and y):
        raise ValueError("a view is two axes, such as eta-phi")
    return {"x": x.strip(), "y": y.strip()}


class ViewSettings(Settings):
    """A plane in which objects lie, divided into cells.

    Attributes:
        x: Field of the collections along the columns, such as ``eta``, or a branch.
        y: The same along the rows.
        name: What to call the view; left out, ``<x>_<y>``.
        x_bins: Cells along x.
        y_bins: Cells along y.
        x_range: From where to where; left out, one turn for phi, at most -5 to 5 for eta, and else from the
            smallest to the largest value of the first pass.
        y_range: The same along y.
        periodic: Axes that close on themselves; left out, phi where its range is one turn.
        channels: Collections, one image each; left out, every collection that has both fields.
        weight: What an object adds to its cell: 1, a field such as ``pt``, or a branch.
    """

    x: str = Field(min_length=1)
    y: str = Field(min_length=1)
    name: str | None = Field(default=None, min_length=1)
    x_bins: int = Field(default=32, ge=1, le=4096)
    y_bins: int = Field(default=32, ge=1, le=4096)
    x_range: Range | None = None
    y_range: Range | None = None
    periodic: Names | None = None
    channels: tuple[Annotated[ChannelSettings, BeforeValidator(_channel)], ...] | None = None
    weight: Weight = 1

    @model_validator(mode="after")
    def _check(self) -> ViewSettings:
        for name, limits in (("x_range", self.x_range), ("y_range", self.y_range)):
            if limits and not (math.isfinite(limits[0]) and limits[0] < limits[1] < math.inf):
                raise ValueError(f"{name} must go from a smaller to a larger number")
        strange = sorted(set(self.periodic or ()) - {self.x, self.y})
        if strange:
            raise ValueError(f"periodic names {strange[0]!r}, but the axes are {self.x!r} and {self.y!r}")
        if self.channels == ():
            raise ValueError("channels is empty: name collections, or leave it out")
        return self


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str | Mapping) else value


Views = Annotated[tuple[Annotated[ViewSettings, BeforeValidator(_view)], ...], BeforeValidator(_one_or_more)]


class InputSettings(Settings):
    """What the model sees.

    Attributes:
        representation: ``vector``: one row of numbers an event, NaN where there is no value; ``grid``:
            images of where an event's objects lie, 0 where there is none.
        views: The images of ``grid``: ``eta-phi``, ``[x-y, z-x]``, or with their bins, ranges and channels.
        scalars: With ``grid``: flat branches, names or globs, that come before the images.
        include: Branch names or globs; left out, every numeric branch.
        exclude: Branch names or globs to leave out.
        objects: By collection (``Jet`` for every jagged ``Jet_*``) or branch.
        normalise: How the model's first layer scales: ``softclip`` | ``standard`` | ``robust`` | ``minmax`` |
            ``none``.
    """

    representation: Literal["vector", "grid"] = "vector"
    views: Views = ()
    scalars: Names = ()
    include: Names | None = None
    exclude: Names = ()
    objects: dict[str, ObjectSettings] = Field(default_factory=dict)
    normalise: Normalisation = "softclip"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.representation == "grid" and not self.views:
            raise ValueError("representation grid needs views, such as eta-phi")
        if self.representation == "vector" and (self.views or self.scalars):
            raise ValueError("views and scalars are for representation: grid")
        return self


class Inputs(InputSettings):
    """The same, with what the events are made to hold.

    Attributes:
        define: New branches by name: expressions over the file's, and over those defined before.
        select: Expression: only events for which it is true are read.
    """

    define: dict[str, str] = Field(default_factory=dict)
    select: str | None = None
