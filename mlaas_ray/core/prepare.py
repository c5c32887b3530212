"""Preparation of events: what is defined, which events are selected, which objects are kept in which order.

The same in training and in serving. Expressions see the branches as they are in the file, and what was
defined before; the rules of ``objects`` shape only what the model sees.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.columns import Column, Columns, Jagged, Kind
from mlaas_ray.core.errors import FeatureError, JobError, nearest
from mlaas_ray.core.expressions import Expression, Scope
from mlaas_ray.core.functions import CONSTANTS
from mlaas_ray.core.values import (
    CountsDifferError,
    Value,
    Whole,
    aligned,
    kept_offsets,
    same_objects,
    sorted_index,
)

Mask = npt.NDArray[np.bool_]


class ObjectsRule(Protocol):
    """What is done to the objects of one collection or branch."""

    @property
    def where(self) -> str | None:
        """Expression over the objects: those for which it is true are kept."""

    @property
    def sort_by(self) -> str | None:
        """Branch or expression; the largest come first."""

    @property
    def ascending(self) -> bool:
        """Whether the smallest come first."""


class Rules(Protocol):
    """What is done to events; a FeatureSpec and a user's Inputs are such rules."""

    @property
    def define(self) -> Mapping[str, str]:
        """New branches by name."""

    @property
    def select(self) -> str | None:
        """Which events are kept."""

    @property
    def objects(self) -> Mapping[str, Any]:
        """An ObjectsRule by collection (``Jet`` for every jagged ``Jet_*``) or branch."""


def check_syntax(define: Mapping[str, str], select: str | None, objects: Mapping[str, ObjectsRule]) -> None:
    """Check all expressions of a job, before any file is known.

    Raises:
        JobError: For the first that is wrong: it names the key, and shows the place.
    """
    later = list(define)
    for name, text in define.items():
        if not name or name in CONSTANTS:
            raise JobError(f"define.{name}: this name means something else in expressions", "Choose another")
        for used in Expression.parse(text, f"define.{name}").names:
            if used in later:
                why = "itself" if used == name else f"{used!r}, which is defined after it"
                raise JobError(
                    f"define.{name} refers to {why}", "Order definitions so that each uses earlier ones"
                )
        later.remove(name)
    if select is not None:
        Expression.parse(select, "select")
    for name in objects:
        _expressions(name, objects[name])


def check(rules: Rules, available: Mapping[str, Kind]) -> dict[str, Kind]:
    """Check the rules against the branches that the files have, before an event is read.

    Args:
        rules: What is to be done.
        available: Kind of each branch of the files.

    Returns:
        Kind of each branch, and of what is defined.

    Raises:
        BranchMissingError: When an expression names a branch that is not there.
        JobError: When an expression is wrong, defines a branch that is there, gives objects where one value
            an event is due, or when a rule of ``objects`` names no collection.
    """
    check_syntax(rules.define, rules.select, rules.objects)
    for name in rules.define:
        if name in available:
            raise JobError(f"define.{name}: the files have a branch of this name", "Choose another name")
    # No events, but of the right kinds: what cannot be computed of them cannot be computed of any.
    empty: dict[str, Column] = {
        name: Jagged(np.zeros(1, np.int64), np.zeros(0, np.int64))
        if kind != "flat"
        else np.zeros(0, np.int64)
        for name, kind in available.items()
    }
    try:
        scope = _defined(Scope(empty), rules, rules.define)
        _selected(scope, rules)
        for name in rules.objects:
            _Shaper(scope, name, rules.objects[name]).shape(np.zeros(1, np.int64))
    except FeatureError as error:
        raise JobError(error.message, error.remedy) from None
    kinds: dict[str, Kind] = {**available, **{name: scope[name].kind or "flat" for name in rules.define}}
    jagged = {name for name, kind in kinds.items() if kind == "jagged"}
    for name in rules.objects:
        if not any(_belongs(branch, name) for branch in jagged):
            collections = {branch.partition("_")[0] for branch in jagged} | jagged
            raise JobError(
                f"inputs.objects.{name}: there is no jagged branch {name!r} or '{name}_*'",
                nearest(name, collections),
            )
    return kinds


def needed_branches(rules: Rules, names: Iterable[str] | None = None, *, select: bool = True) -> set[str]:
    """Return the branches of the file that must be read.

    Args:
        rules: What is to be done.
        names: What is wanted, of the file or defined; left out, the features of a FeatureSpec.
        select: Whether events are selected.
    """
    return _used(rules, _wanted(rules, names) or (), select) - set(rules.define)


def prepare(
    columns: Columns,
    rules: Rules,
    names: Iterable[str] | None = None,
    *,
    select: bool = True,
    absent: Mapping[str, str] | None = None,
) -> tuple[Columns, Mask | None]:
    """Define, select, and shape the objects of some events.

    Args:
        columns: What was read, by branch; :func:`needed_branches` says what must be there.
        rules: What is to be done.
        names: What is wanted, of the file or defined; left out, the features of a FeatureSpec, or all there
            is.
        select: Whether events are selected.
        absent: Columns that stand for branches that the file lacks, with the branches' numpy types.

    Returns:
        The wanted columns of all events, and which events are kept ``(events,)``; None for all of them.

    Raises:
        BranchMissingError: When an expression names a branch that is not there.
        FeatureError: When the branches do not fit what is to be done.
    """
    selecting = select and rules.select is not None
    if not selecting and not shapes(rules):
        return columns, None
    wanted = _wanted(rules, names)
    if wanted is None:
        wanted = [*columns, *rules.define]
    scope = _defined(Scope(columns, absent), rules, _used(rules, wanted, select))
    keep = _selected(scope, rules) if selecting else None
    result = {
        name: scope[name].column(scope.events) if name in rules.define else columns[name] for name in wanted
    }
    return _shaped(result, scope, rules), keep


def computed(
    columns: Columns,
    rules: Rules,
    texts: Mapping[str, str],
    constants: Mapping[str, float],
    absent: Mapping[str, str] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Compute expressions over some events, each to one number an event ``(events,)``.

    Args:
        columns: The branches they need, by name.
        rules: What is defined.
        texts: The expressions, by what they are for.
        constants: Numbers they may name.
        absent: As for :func:`prepare`.

    Raises:
        BranchMissingError: When one names a branch that is not there.
        FeatureError: When one gives objects where one number an event is due.
    """
    if not texts:
        return {}
    expressions = {what: Expression.parse(text, what) for what, text in texts.items()}
    wanted = {name for expression in expressions.values() for name in expression.names}
    used = _used(rules, wanted - set(constants), select=False)
    scope = _defined(Scope(columns, absent), rules, used)
    for name, number in constants.items():
        scope.define(name, Value(float(number)))
    result = {}
    for what, expression in expressions.items():
        column = expression.value(scope).column(scope.events)
        if isinstance(column, Jagged) or column.ndim != 1:
            raise FeatureError(
                f"{what}: {expression.text!r} gives one value for each object, not for each event",
                "Reduce it to one number, as in sum(…) or x[:, 0]",
            )
        result[what] = column
    return result


def shapes(rules: Rules) -> bool:
    """Tell whether events must be prepared before they become rows, other than selected."""
    return bool(rules.define) or bool(_shaping(rules))


def rule_of(branch: str, names: Collection[str]) -> str | None:
    """Return which of the names of ``objects`` a branch comes under: the longest that fits."""
    return max((name for name in names if _belongs(branch, name)), key=len, default=None)


def _belongs(branch: str, name: str) -> bool:
    return branch == name or branch.startswith(f"{name}_")


def _shaping(rules: Rules) -> dict[str, ObjectsRule]:
    """Return the rules of objects that say more than a length."""
    return {
        name: rule
        for name, rule in rules.objects.items()
        if rule.where is not None or rule.sort_by is not None
    }


def _wanted(rules: Rules, names: Iterable[str] | None) -> list[str] | None:
    if names is not None:
        return list(names)
    features = getattr(rules, "features", None)
    return None if features is None else [feature.name for feature in features]


def _expressions(name: str, rule: ObjectsRule) -> list[Expression]:
    """Return the expressions of a rule of objects."""
    texts = {"where": rule.where, "sort_by": rule.sort_by}
    return [
        Expression.parse(text, f"inputs.objects.{name}.{key}")
        for key, text in texts.items()
        if text is not None
    ]


def _used(rules: Rules, wanted: Iterable[str], select: bool) -> set[str]:
    """Return all that is wanted, of the file and defined, and what that is made of."""
    used = set(wanted)
    for name in {rule_of(branch, rules.objects) for branch in used} - {None}:
        for expression in _expressions(str(name), rules.objects[str(name)]):
            used.update(expression.names)
    if select and rules.select is not None:
        used.update(Expression.parse(rules.select, "select").names)
    for name, text in reversed(list(rules.define.items())):  # each uses earlier ones only
        if name in used:
            used.update(Expression.parse(text, f"define.{name}").names)
    return used


def _defined(scope: Scope, rules: Rules, used: Collection[str]) -> Scope:
    """Add the definitions that are used."""
    for name, text in rules.define.items():
        if name in used:
            scope.define(name, Expression.parse(text, f"define.{name}").value(scope))
    return scope


def _selected(scope: Scope, rules: Rules) -> Mask | None:
    """Return the events for which the selection is true."""
    if rules.select is None:
        return None
    value = Expression.parse(rules.select, "select").value(scope)
    if value.kind == "jagged":
        raise FeatureError(
            f"select: {rules.select!r} gives one value for each object, not for each event",
            "Write any(…) or all(…) round it",
        )
    truth: Mask = np.broadcast_to(value.truth, (scope.events,))
    return truth


def _shaped(result: dict[str, Column], scope: Scope, rules: Rules) -> dict[str, Column]:
    """Shape the objects of each collection alike."""
    shapers = {name: _Shaper(scope, name, rule) for name, rule in _shaping(rules).items()}
    for name, column in result.items():
        own = rule_of(name, rules.objects)  # also one without a wish, which exempts its branch
        # a branch without a single object has nothing to shape, such as one that a file lacks
        if own in shapers and isinstance(column, Jagged) and len(column.content):
            result[name] = shapers[own].apply(name, column)
    return result


class _Shaper:
    """Keeps and orders the objects of one collection; what it found for one branch serves the others."""

    def __init__(self, scope: Scope, name: str, rule: ObjectsRule) -> None:
        self.scope = scope
        self.name = name
        self.rule = rule
        self._first = ""
        self._before: Whole | None = None
        self._index: Whole | None = None
        self._after: Whole | None = None

    def apply(self, branch: str, column: Jagged) -> Jagged:
        """Shape one branch."""
        if self._before is None:
            self._first, self._before = branch, column.offsets
            self._index, self._after = self.shape(column.offsets)
        if not same_objects(self._before, column.offsets):
            raise FeatureError(
                f"inputs.objects.{self.name}: {self._first!r} and {branch!r} have other numbers of objects",
                f"Give one of them a rule of its own, as in 'objects: {{{branch}: {{}}}}'",
            )
        if self._index is None or self._after is None:
            return column
        return Jagged(self._after, column.content[self._index])

    def shape(self, offsets: Whole) -> tuple[Whole | None, Whole | None]:
        """Return the objects that are kept, in order, and their offsets; None when nothing changes."""
        index: Whole | None = None
        objects = Value(np.zeros(offsets[-1], np.bool_), offsets)
        if self.rule.where is not None:
            mask = self._evaluate("where", self.rule.where, objects).truth
            if not mask.all():
                index, offsets = np.flatnonzero(mask), kept_offsets(offsets, mask)
        if self.rule.sort_by is not None:
            keys = self._evaluate("sort_by", self.rule.sort_by, objects).numbers
            order = sorted_index(
                keys if index is None else keys[index], offsets, ascending=self.rule.ascending
            )
            if order is not None:
                index = order if index is None else index[order]
        return (None, None) if index is None else (index, offsets)

    def _evaluate(self, key: str, text: str, objects: Value) -> Value:
        """Evaluate an expression for each object."""
        what = f"inputs.objects.{self.name}.{key}"
        value = Expression.parse(text, what).value(self.scope)
        try:
            value = aligned([objects, value])[0][1]
        except CountsDifferError:
            raise FeatureError(
                f"{what}: {text!r} has other numbers of objects than {self._first or self.name!r}",
                "Use branches of this collection, or values of the event",
            ) from None
        if value.kind is None:
            return Value(np.full(len(objects.content), value.content), objects.offsets)
        return value
