"""Vectors: which columns together are physics vectors, and what the vector library computes of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from mlaas_ray.core.columns import Column, Columns, Jagged
from mlaas_ray.core.kinematics import component

_CLASS = re.compile(
    r"((std::)?vector<)?\s*(TLorentzVector|TVector[23]|ROOT::Math::(Lorentz|Displacement|Position)Vector([23]D)?)\b"
)
# What ROOT's classes call their coordinates, and the vector library.
_COORDINATES = {
    **{"fX": "px", "fY": "py", "fZ": "pz", "fE": "E", "fT": "E", "fM": "mass"},
    **{"fPt": "pt", "fRho": "pt", "fEta": "eta", "fTheta": "theta", "fPhi": "phi"},
}
# Coordinates of which one is needed for each further dimension, and what can be computed then.
_PLANE = ({"px", "py"}, {"pt", "phi"})
_ALONG = {"pz", "eta", "theta"}
_FOURTH = {"E", "mass"}


def is_vector(typename: str) -> bool:
    """Tell whether a C++ class is one of ROOT's vectors, or a std::vector of one."""
    return bool(_CLASS.match(typename))


@dataclass(frozen=True)
class Component:
    """A component of vectors that is not stored.

    Attributes:
        name: As the vector library calls it.
        coordinates: The columns it is computed of, by what they are.
    """

    name: str
    coordinates: Mapping[str, str]

    def column(self, columns: Columns) -> Column:
        """Compute it of the coordinates' columns.

        Raises:
            ValueError: When these have other numbers of objects.
        """
        own = {what: columns[name] for what, name in self.coordinates.items()}
        first = next(iter(own.values()))
        if not isinstance(first, Jagged):
            return component(
                self.name, {what: np.asarray(column, np.float64) for what, column in own.items()}
            )
        contents = {}
        for what, column in own.items():
            if not isinstance(column, Jagged) or not np.array_equal(column.offsets, first.offsets):
                raise ValueError(
                    f"{self.coordinates[what]!r} has not as many objects as its other coordinates"
                )
            contents[what] = np.asarray(column.content, np.float64)
        return Jagged(first.offsets, component(self.name, contents))


def components(vector: str, stored: Iterable[str]) -> dict[str, Component]:
    """Return what can be computed of vectors, as ``jet.pt``.

    Args:
        vector: Name of the vectors.
        stored: The columns of their members.
    """
    coordinates: dict[str, str] = {}
    for name in stored:
        what = _COORDINATES.get(re.split(r"[./]", name)[-1])
        if what is not None:
            coordinates.setdefault(what, name)
    there = set(coordinates)
    names: list[str] = []
    if any(plane <= there for plane in _PLANE):
        names = ["pt", "phi"]
        if there & _ALONG:
            names = ["pt", "eta", "phi"]
            if there & _FOURTH:
                names += ["mass", "energy"]
    return {f"{vector}.{name}": Component(name, coordinates) for name in names}
