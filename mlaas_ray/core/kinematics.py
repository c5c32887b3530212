"""Four-vectors of expressions: arrays of doubles in, arrays out; the physics is the vector library's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.values import Whole, reduced

Doubles = npt.NDArray[np.float64]


def delta_phi(phi1: Doubles, phi2: Doubles) -> Doubles:
    """Return phi1 - phi2 as an angle from -pi to pi."""
    ones = np.ones_like(phi1)
    return _array(_vectors(rho=ones, phi=phi1).deltaphi(_vectors(rho=ones, phi=phi2)))


def delta_r(eta1: Doubles, phi1: Doubles, eta2: Doubles, phi2: Doubles) -> Doubles:
    """Return the distance of two directions, sqrt(delta eta squared + delta phi squared)."""
    ones = np.ones_like(phi1)
    one = _vectors(rho=ones, phi=phi1, eta=eta1)
    return _array(one.deltaR(_vectors(rho=ones, phi=phi2, eta=eta2)))


def mass_of_pairs(*values: Doubles) -> Doubles:
    """Return the mass of two objects together: pt, eta, phi and mass of one, and of the other."""
    return _array((_momenta(*values[:4]) + _momenta(*values[4:])).mass)


def mass_of_events(offsets: Whole, least: int, *values: Doubles) -> Doubles:
    """Return the mass of all objects of each event together; NaN of fewer than ``least``.

    Args:
        offsets: Of the objects, ``(events + 1,)``.
        least: Objects that it takes.
        values: pt, eta, phi and mass, each ``(objects,)``.
    """
    momenta = _momenta(*values)
    sums = {
        name: reduced(np.add, _array(getattr(momenta, name)), offsets, 0, np.float64)
        for name in ("px", "py", "pz", "E")
    }
    mass = _array(_vectors(**sums).mass)
    mass[np.diff(offsets) < least] = np.nan
    return mass


def component(name: str, coordinates: Mapping[str, Doubles]) -> Doubles:
    """Return a component of vectors, such as ``pt`` of ``px``, ``py`` and ``pz``."""
    return _array(getattr(_vectors(**coordinates), name))


def _momenta(pt: Doubles, eta: Doubles, phi: Doubles, mass: Doubles) -> Any:
    return _vectors(pt=pt, eta=eta, phi=phi, mass=mass)


def _vectors(**coordinates: Doubles) -> Any:
    import vector  # half a second, which only those pay who ask for four-vectors

    return vector.array(coordinates)


def _array(values: Any) -> Doubles:
    return np.array(values, dtype=np.float64)
