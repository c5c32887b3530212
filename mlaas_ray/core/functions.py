"""Functions of expressions: the one table of them; a name that is not in it cannot be called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlaas_ray.core import kinematics
from mlaas_ray.core.errors import FeatureError
from mlaas_ray.core.indexing import at
from mlaas_ray.core.values import (
    Array,
    Value,
    Whole,
    aligned,
    elementwise,
    event_of,
    reduced,
    sorted_index,
    widened,
    without,
)

CONSTANTS = {"pi": np.pi, "e": np.e, "inf": np.inf, "nan": np.nan}


@dataclass(frozen=True)
class Function:
    """What may be called.

    Attributes:
        name: As it is written.
        group: ``numbers``, ``objects`` or ``kinematics``, for the documentation.
        summary: One sentence.
        parameters: What it takes; those annotated ``Value`` are expressions, others Python constants.
        call: What computes it.
    """

    name: str
    group: str
    summary: str
    parameters: inspect.Signature
    call: Callable[..., Value]

    @property
    def signature(self) -> str:
        """How it is called: ``sum(x, axis=1)``."""
        shown = [
            parameter.name
            + ("" if parameter.default in (parameter.empty, None) else f"={parameter.default!r}")
            for parameter in self.parameters.parameters.values()
        ]
        return f"{self.name}({', '.join(shown)})"


FUNCTIONS: dict[str, Function] = {}


def _function(group: str, summary: str) -> Callable[[Callable[..., Value]], Callable[..., Value]]:
    """Put a function into the table, under its name without the underscore."""

    def add(call: Callable[..., Value]) -> Callable[..., Value]:
        name = call.__name__[1:]
        FUNCTIONS[name] = Function(name, group, summary, inspect.signature(call), call)
        return call

    return add


def _numpy(name: str, function: Callable[..., Any], summary: str, names: str = "x") -> None:
    """Put one of numpy's element-wise functions into the table."""
    parameters = [
        inspect.Parameter(one, inspect.Parameter.POSITIONAL_ONLY, annotation="Value") for one in names.split()
    ]
    FUNCTIONS[name] = Function(
        name,
        "numbers",
        summary,
        inspect.Signature(parameters),
        lambda *values: elementwise(function, *values),
    )


_ONE_NUMBER: list[tuple[str, Callable[..., Any], str]] = [
    ("abs", np.abs, "Absolute value."),
    ("sign", np.sign, "-1, 0 or 1."),
    ("sqrt", np.sqrt, "Square root."),
    ("cbrt", np.cbrt, "Cube root."),
    ("square", np.square, "x * x."),
    ("exp", np.exp, "e to the power of x."),
    ("expm1", np.expm1, "exp(x) - 1, exact for small x."),
    ("log", np.log, "Natural logarithm."),
    ("log2", np.log2, "Logarithm to base 2."),
    ("log10", np.log10, "Logarithm to base 10."),
    ("log1p", np.log1p, "log(1 + x), exact for small x."),
    ("sin", np.sin, "Sine."),
    ("cos", np.cos, "Cosine."),
    ("tan", np.tan, "Tangent."),
    ("arcsin", np.arcsin, "Inverse sine."),
    ("arccos", np.arccos, "Inverse cosine."),
    ("arctan", np.arctan, "Inverse tangent."),
    ("sinh", np.sinh, "Hyperbolic sine."),
    ("cosh", np.cosh, "Hyperbolic cosine."),
    ("tanh", np.tanh, "Hyperbolic tangent."),
    ("arcsinh", np.arcsinh, "Inverse hyperbolic sine."),
    ("arccosh", np.arccosh, "Inverse hyperbolic cosine."),
    ("arctanh", np.arctanh, "Inverse hyperbolic tangent."),
    ("floor", np.floor, "Largest whole number not above x."),
    ("ceil", np.ceil, "Smallest whole number not below x."),
    ("trunc", np.trunc, "Whole number next to x on the side of zero."),
    ("round", np.round, "Nearest whole number; halves go to the even one."),
    ("degrees", np.degrees, "Radians to degrees."),
    ("radians", np.radians, "Degrees to radians."),
    ("isnan", np.isnan, "Whether there is no value."),
    ("isinf", np.isinf, "Whether the value is infinite."),
    ("isfinite", np.isfinite, "Whether there is a value, and it is finite."),
]
for _row in _ONE_NUMBER:
    _numpy(*_row)

_numpy("arctan2", np.arctan2, "Angle of the point (x, y), from -pi to pi.", "y x")
_numpy("hypot", np.hypot, "sqrt(a**2 + b**2).", "a b")
_numpy("minimum", np.minimum, "The smaller of two.", "a b")
_numpy("maximum", np.maximum, "The larger of two.", "a b")
_numpy("clip", lambda x, low, high: np.minimum(np.maximum(x, low), high), "x kept in a range.", "x low high")


@_function("numbers", "a where the condition is true, else b; also written `a if condition else b`.")
def _where(condition: Value, a: Value, b: Value) -> Value:
    (chosen, one, other), offsets = aligned([condition, a, b])
    content = np.where(chosen.truth, one.numbers, other.numbers)
    return Value(content if content.ndim else content.item(), offsets).of_as_many(condition, a, b)


@_function("numbers", "x with `nan` (0 when not given) where there is no value.")
def _nan_to_num(x: Value, nan: Value | None = None) -> Value:
    return _where(elementwise(np.isnan, x), nan or Value(0), x)


@_function(
    "numbers", "Whether an event's file lacks the branch x (`missing: fill`), or it has no value of it."
)
def _is_missing(x: Value) -> Value:
    if x.offsets is not None:
        return Value((x.counts > 0) & (_there(x).counts == 0) | x.absent)
    return Value(np.isnan(x.numbers) | x.absent)


@_function("objects", "Sum, in double precision; 0 of no objects.")
def _sum(x: Value, axis: int = 1) -> Value:
    x = _there(x)
    content = widened(x.content)
    exact = np.float64 if content.dtype.kind == "f" else np.int64
    return Value(reduced(np.add, content, x.objects, 0, exact))


@_function("objects", "Product, in double precision; 1 of no objects.")
def _prod(x: Value, axis: int = 1) -> Value:
    x = _there(x)
    return Value(reduced(np.multiply, x.content, x.objects, 1, np.float64))


@_function("objects", "Smallest; no value of no objects.")
def _min(x: Value, axis: int = 1) -> Value:
    return _extreme(np.minimum, x)


@_function("objects", "Largest; no value of no objects.")
def _max(x: Value, axis: int = 1) -> Value:
    return _extreme(np.maximum, x)


@_function("objects", "Mean; no value of no objects.")
def _mean(x: Value, axis: int = 1) -> Value:
    x = _there(x)
    return Value(_means(x.content, x.objects))


@_function("objects", "Variance (of the population: divided by n); no value of no objects.")
def _var(x: Value, axis: int = 1) -> Value:
    x = _there(x)
    means = np.repeat(_means(x.content, x.objects), x.counts)
    return Value(_means((x.content - means) ** 2, x.objects))


@_function("objects", "Standard deviation (of the population: divided by n); no value of no objects.")
def _std(x: Value, axis: int = 1) -> Value:
    return elementwise(np.sqrt, _var(x))


@_function("objects", "Whether it is true (not zero) for an object.")
def _any(x: Value, axis: int = 1) -> Value:
    return Value(reduced(np.logical_or, x.truth, x.objects, False))


@_function("objects", "Whether it is true (not zero) for every object, also when there is none.")
def _all(x: Value, axis: int = 1) -> Value:
    return Value(reduced(np.logical_and, x.truth, x.objects, True))


@_function("objects", "How many objects there are.")
def _num(x: Value, axis: int = 1) -> Value:
    return Value(x.counts)


@_function("objects", "How many objects have a value.")
def _count(x: Value, axis: int = 1) -> Value:
    return Value(_there(x).counts)


@_function("objects", "Position of the smallest, for `y[:, argmin(x)]`; no value of no objects.")
def _argmin(x: Value, axis: int = 1) -> Value:
    return _position(x, _min(x))


@_function("objects", "Position of the largest, for `y[:, argmax(x)]`; no value of no objects.")
def _argmax(x: Value, axis: int = 1) -> Value:
    return _position(x, _max(x))


@_function("objects", "The objects' values in order; those without a value come last.")
def _sort(x: Value, axis: int = 1, ascending: bool = True) -> Value:
    index = sorted_index(_keys(x), x.objects, ascending=ascending)
    return x if index is None else x.take(index, x.objects).of_as_many(x)


@_function("objects", "Positions that put the objects in order, for `y[argsort(x)]`.")
def _argsort(x: Value, axis: int = 1, ascending: bool = True) -> Value:
    index = sorted_index(_keys(x), x.objects, ascending=ascending)
    if index is None:
        index = np.arange(len(x.content))
    return Value(index - np.repeat(x.objects[:-1], x.counts), x.objects).of_as_many(x)


@_function("objects", "The first object's value, as `x[:, 0]`; no value of no objects.")
def _first(x: Value) -> Value:
    return at(x, Value(0))


@_function("objects", "The value of the object for which `by` is largest, as `x[:, argmax(by)]`.")
def _leading(x: Value, by: Value) -> Value:
    position = _argmax(by)
    return at(aligned([x, by])[0][0], position)


@_function("kinematics", "Angle phi1 - phi2, from -pi to pi.")
def _delta_phi(phi1: Value, phi2: Value) -> Value:
    return _doubles(kinematics.delta_phi, phi1, phi2)


@_function("kinematics", "Distance sqrt(delta eta squared + delta phi squared).")
def _delta_r(eta1: Value, phi1: Value, eta2: Value, phi2: Value) -> Value:
    return _doubles(kinematics.delta_r, eta1, phi1, eta2, phi2)


@_function(
    "kinematics",
    "Mass of all objects of an event together; no value of fewer than two, or than `x[:, :4]` asks for. "
    "Of eight values, of each pair.",
)
def _invariant_mass(
    pt: Value,
    eta: Value,
    phi: Value,
    mass: Value,
    pt2: Value | None = None,
    eta2: Value | None = None,
    phi2: Value | None = None,
    mass2: Value | None = None,
) -> Value:
    if pt2 is not None and eta2 is not None and phi2 is not None and mass2 is not None:
        return _doubles(kinematics.mass_of_pairs, pt, eta, phi, mass, pt2, eta2, phi2, mass2)
    same, offsets = aligned([pt, eta, phi, mass])
    if offsets is None:
        raise FeatureError(
            "the mass of all objects of an event needs branches with objects",
            "For two of them give eight values: pt, eta, phi and mass of each",
        )
    arrays = [np.broadcast_to(np.asarray(one.numbers, np.float64), (offsets[-1],)) for one in same]
    least = max(value.asked for value in (pt, eta, phi, mass)) or 2
    return Value(kinematics.mass_of_events(offsets, least, *arrays))


# How many values a function takes, where it is not all from the least to the most.
TAKES = {"invariant_mass": (4, 8)}


def _keys(x: Value) -> Array:
    """Return what objects are sorted by: NaN where there is no value."""
    offsets = x.objects  # refuses what has none
    return np.broadcast_to(x.numbers, (offsets[-1],))


def _there(x: Value) -> Value:
    """Leave out the objects without a value."""
    x.objects  # noqa: B018  # refuses what has none
    if x.missing is not None:
        lacking = x.missing
    elif x.type == "f":
        lacking = np.isnan(x.content)
    else:
        return x
    return x.keep(~lacking) if lacking.any() else Value(x.content, x.offsets)


def _extreme(function: np.ufunc, x: Value) -> Value:
    x = _there(x)
    content = reduced(function, x.content, x.objects, 0)
    return without(content, x.counts == 0)


def _means(content: Array, offsets: Whole) -> Array:
    counts = np.diff(offsets)
    means: Array = np.full(len(counts), np.nan)
    np.divide(reduced(np.add, content, offsets, 0, np.float64), counts, out=means, where=counts > 0)
    return means


def _position(x: Value, extreme: Value) -> Value:
    """Return the position of the first object that equals the event's extreme."""
    offsets = x.objects
    slots = np.arange(len(x.content)) - offsets[:-1][event_of(offsets)]
    found = x.content == np.repeat(extreme.content, x.counts)
    if x.missing is not None:
        found &= ~x.missing
    nowhere = np.iinfo(np.int64).max
    first = reduced(np.minimum, np.where(found, slots, nowhere), offsets, nowhere)
    missing = first == nowhere
    return Value(np.where(missing, 0, first), None, missing if missing.any() else None)


def _doubles(function: Callable[..., Array], *values: Value) -> Value:
    """Apply a function of arrays of doubles of one length."""
    same, offsets = aligned(values)
    arrays = np.broadcast_arrays(*(np.asarray(value.numbers, np.float64) for value in same))
    result = function(*map(np.atleast_1d, arrays))
    return Value(result if arrays[0].ndim else result[0].item(), offsets).of_as_many(*values)
