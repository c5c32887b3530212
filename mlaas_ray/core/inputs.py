"""Inputs: what a model is to see of the events, as a user asks for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

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


class InputSettings(Settings):
    """What the model sees.

    Attributes:
        representation: ``vector``: one row of numbers an event, NaN where there is no value.
        include: Branch names or globs; left out, every numeric branch.
        exclude: Branch names or globs to leave out.
        objects: By collection (``Jet`` for every jagged ``Jet_*``) or branch.
        normalise: How the model's first layer scales: ``minmax`` | ``standard`` | ``robust`` | ``none``.
    """

    representation: Literal["vector"] = "vector"
    include: Names | None = None
    exclude: Names = ()
    objects: dict[str, ObjectSettings] = Field(default_factory=dict)
    normalise: Normalisation = "minmax"


class Inputs(InputSettings):
    """The same, with what the events are made to hold.

    Attributes:
        define: New branches by name: expressions over the file's, and over those defined before.
        select: Expression: only events for which it is true are read.
    """

    define: dict[str, str] = Field(default_factory=dict)
    select: str | None = None
