"""Operators of expressions: arithmetic, comparisons and logic of values."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import numpy as np

from mlaas_ray.core.errors import FeatureError
from mlaas_ray.core.values import Value, aligned, elementwise, python_number, typed

Operator = Callable[[Value, Value], Value]


def arithmetic(function: Callable[[Any, Any], Any]) -> Operator:
    """Return an operator of numbers."""

    def apply(one: Value, other: Value) -> Value:
        if one.kind is None and other.kind is None:
            return Value(_constant(function, one.content, other.content))
        return elementwise(function, one, other)

    return apply


def comparison(function: np.ufunc) -> Operator:
    """Return a comparison; it is false where one side has no value, also ``!=``."""

    def apply(one: Value, other: Value) -> Value:
        same, offsets = aligned([one, other])
        result = function(*(value.content for value in same))
        for value in same:
            if value.missing is not None:
                result = result & ~value.missing
            elif function is np.not_equal and value.type == "f":
                result = result & (value.content == value.content)
        return Value(python_number(result), offsets)

    return apply


def logical(function: np.ufunc) -> Operator:
    """Return an operator of conditions: what is not zero is true, and what is missing false."""

    def apply(one: Value, other: Value) -> Value:
        same, offsets = aligned([one, other])
        return Value(python_number(function(*(value.truth for value in same))), offsets)

    return apply


def exclusive(one: Value, other: Value) -> Value:
    """Return ``one ^ other`` of conditions; who writes it of numbers means a power, as ROOT's TFormula."""
    if {one.type, other.type} != {"b"}:
        raise FeatureError(
            "^ is for two conditions, one or the other of them, and this is a number",
            "Use ** for a power: x**2; compare first for conditions: (x > 1) ^ (y > 2)",
        )
    return logical(np.logical_xor)(one, other)


def bitwise(function: np.ufunc, of_conditions: np.ufunc) -> Operator:
    """Return an operator of the bits of whole numbers; with a condition on one side, of conditions."""

    def apply(one: Value, other: Value) -> Value:
        one, other = typed(one), typed(other)
        one, other = _alike(one, other), _alike(other, one)
        types = {one.type, other.type}
        if "f" in types:
            raise FeatureError(_NEITHER, "Compare first: (x > 1) & (y > 2)")
        if "b" in types:
            return logical(of_conditions)(one, other)
        same, offsets = aligned([one, other])
        content = python_number(function(*(_bits(value.content) for value in same)))
        lacking = [value.missing for value in same if value.missing is not None]
        return Value(content, offsets, np.logical_or.reduce(lacking) if lacking else None)

    return apply


_NEITHER = "& | ~ are for conditions and whole numbers"


def negated(x: Value) -> Value:
    """Return ``not x``."""
    return Value(python_number(np.logical_not(x.truth)), x.offsets)


def inverted(x: Value) -> Value:
    """Return ``~x``: the opposite of a condition, or all bits turned of whole numbers."""
    x = typed(x)
    if x.type == "f":
        raise FeatureError(_NEITHER, "Compare first: ~(x > 1)")
    if x.type == "b":
        return negated(x)
    return Value(python_number(np.invert(_bits(x.content))), x.offsets, x.missing)


def _alike(x: Value, other: Value) -> Value:
    """Return a value that is nowhere known as a whole number, beside one."""
    if other.type != "i" or x.type != "b" or x.missing is None or not x.missing.all():
        return x
    return Value(np.zeros(len(x.content), np.int64), x.offsets, x.missing)


def _bits(numbers: Any) -> Any:
    """Return whole numbers as 64 bits with a sign; what is beyond (of 64 bits without) keeps its bits."""
    if isinstance(numbers, np.ndarray):
        return numbers.astype(np.int64, copy=False)
    return (int(numbers) + 2**63) % 2**64 - 2**63


def _constant(function: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
    """Compute with constants as doubles: Python's own whole numbers grow without end (9**9**9)."""
    result = np.asarray(function(np.float64(one), np.float64(other))).item()
    whole = not isinstance(one, float) and not isinstance(other, float) and function is not np.true_divide
    return int(result) if whole and result.is_integer() and abs(result) < 2**53 else result


def _divider(function: np.ufunc) -> Callable[[Any, Any], Any]:
    def divide(one: Any, other: Any) -> Any:
        if np.asarray(other).dtype.kind != "f" and not np.all(other):
            one = np.asarray(one, np.float64)  # numpy's whole numbers divided by zero are 0
        return function(one, other)

    return divide


def _power(one: Any, other: Any) -> Any:
    if np.asarray(one).dtype.kind != "f" and np.asarray(other).dtype.kind != "f":
        one = np.asarray(one, np.float64)
    # numpy has NaN**0 and 1**NaN be 1
    return np.where(np.isnan(one) | np.isnan(other), np.nan, one**other)[()]


BINARY: dict[type[ast.operator], Operator] = {
    ast.Add: arithmetic(np.add),
    ast.Sub: arithmetic(np.subtract),
    ast.Mult: arithmetic(np.multiply),
    ast.Div: arithmetic(np.true_divide),
    ast.FloorDiv: arithmetic(_divider(np.floor_divide)),
    ast.Mod: arithmetic(_divider(np.remainder)),
    ast.Pow: arithmetic(_power),
    ast.BitAnd: bitwise(np.bitwise_and, np.logical_and),
    ast.BitOr: bitwise(np.bitwise_or, np.logical_or),
    ast.BitXor: exclusive,
}
COMPARISONS: dict[type[ast.cmpop], Operator] = {
    ast.Lt: comparison(np.less),
    ast.LtE: comparison(np.less_equal),
    ast.Gt: comparison(np.greater),
    ast.GtE: comparison(np.greater_equal),
    ast.Eq: comparison(np.equal),
    ast.NotEq: comparison(np.not_equal),
}
BOOLEAN: dict[type[ast.boolop], Operator] = {
    ast.And: logical(np.logical_and),
    ast.Or: logical(np.logical_or),
}
UNARY: dict[type[ast.unaryop], Callable[[Value], Value]] = {
    ast.UAdd: lambda x: x,
    ast.USub: lambda x: elementwise(np.negative, x),
    ast.Not: negated,
    ast.Invert: inverted,
}
