"""Events as a program sends them, one mapping each, turned into the columns that a reader would give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.columns import Column, Jagged, Kind
from mlaas_ray.core.errors import EventError, nearest
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.prepare import needed_branches, rule_of
from mlaas_ray.core.values import Whole, from_counts

Event = Mapping[str, Any]


def columns_of(
    events: Sequence[Event],
    spec: FeatureSpec,
    *,
    complete: bool = True,
    floats: type[np.floating[Any]] = np.float32,
) -> dict[str, Column]:
    """Return the branches of some events as columns, those of ``spec.raw``.

    Args:
        events: By branch: a number, a list of them, or None.
        spec: The branches.
        complete: Whether a jagged branch that an event leaves out is NaN for as many objects as the event's
            other branches of the collection have; else it has no objects. A flat one is NaN.
        floats: See :func:`numbers`.

    Raises:
        EventError: For a branch the spec does not know, a list where one value is due or the reverse, and
            values that are not numbers.
    """
    further = set(chain.from_iterable(events)) - spec.raw.keys()
    for name in further - needed_branches(spec) if further else ():  # the selection's are known, not needed
        raise unknown_branch(name, spec)
    sent = {name: [event.get(name) for event in events] for name in spec.raw}
    kinds = {name: kind or _kind(name, sent[name]) for name, kind in spec.raw.items()}
    lists = {name: _listed(name, sent[name]) for name, kind in kinds.items() if kind == "jagged"}
    for values in lists.values() if not complete else ():
        values[:] = [() if value is None else value for value in values]
    _complete(lists, spec)
    columns: dict[str, Column] = {}
    shared: dict[tuple[int, ...], Whole] = {}  # a collection's branches share their offsets
    for name, values in sent.items():
        if kinds[name] == "jagged":
            counts = tuple(map(len, lists[name]))
            if counts not in shared:
                shared[counts] = from_counts(np.array(counts))
            columns[name] = Jagged(
                shared[counts], numbers(list(chain.from_iterable(lists[name])), name, floats)
            )
        elif kinds[name] == "fixed":
            columns[name] = _fixed(name, values, spec, floats)
        else:
            columns[name] = numbers(values, name, floats)
    return columns


def numbers(
    values: Sequence[Any], name: str, floats: type[np.floating[Any]] = np.float32
) -> npt.NDArray[Any]:
    """Return what was sent as ``(values,)``: booleans, whole numbers, or floats with NaN for None.

    Float32 is what files hold: a cut must fall on the same side as it did in training. Float64 is for models
    that hold more.

    Raises:
        EventError: For what is no number.
    """
    types = set(map(type, values))
    if types == {bool}:
        return np.array(values)
    for whole in (np.int64, np.uint64) if types == {int} else ():
        try:
            return np.array(values, dtype=whole)
        except OverflowError:  # beyond 64 bits
            pass
    if not types <= {float}:
        values = [np.nan if value is None else number(value, name) for value in values]
    # whole numbers beside None stay exact
    dtype = np.float64 if int in types and types <= {int, type(None)} else floats
    with np.errstate(over="ignore"):
        return np.array(values, dtype=dtype)


def number(value: Any, name: str) -> float:
    """Return one number that was sent: whole ones as they are, of which floats would round some.

    Raises:
        EventError: When it is none.
    """
    if type(value) is float:  # nearly always, and quicker to tell
        return value
    if isinstance(value, bool | int | float | np.integer | np.floating | np.bool_):
        try:
            rounded = float(value)
        except OverflowError:  # an integer of more than 308 digits
            return math.inf if value > 0 else -math.inf
        return int(value) if isinstance(value, int | np.integer) else rounded
    if is_list(value):
        raise EventError(f"{name!r} has one value an event, but a list was sent", f'Send "{name}": number')
    raise EventError(f"{name!r}: {value!r} is not a number", "Send numbers, or null for no value")


def is_list(value: Any) -> bool:
    """Tell whether several values were sent."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def unknown_branch(name: str, spec: FeatureSpec) -> EventError:
    """Return what is said of a name that is no branch of the files that the model was trained on.

    What is defined is traced to the branches of the files: others the sender does not have.
    """
    if name in spec.define:
        made_of = sorted(needed_branches(spec, [name], select=False))
        remedy = f"Send what it is made of: {', '.join(made_of)}" if made_of else "Leave it out"
        return EventError(f"{name!r} is computed by the model", remedy)
    return EventError(f"the model knows no branch {name!r}", nearest(name, spec.raw))


def _kind(name: str, values: list[Any]) -> Kind:
    """Tell the kind of a branch from what was sent."""
    some = next((value for value in values if value is not None), None)
    if some is None:
        raise EventError(f"the model computes with {name!r}, which was not sent", "Send it")
    return "jagged" if is_list(some) else "flat"


def _listed(name: str, values: list[Any]) -> list[Any]:
    for value in values:
        if value is not None and not is_list(value):
            raise EventError(f"{name!r} is jagged, but {value!r} is no list", f'Send "{name}": [{value}]')
    return values


def _complete(lists: dict[str, list[Any]], spec: FeatureSpec) -> None:
    """Replace lists that were not sent by as many missing values as the others of the collection have."""
    collections: dict[str, list[str]] = {}
    for name in lists:
        collections.setdefault(rule_of(name, spec.objects) or name.partition("_")[0], []).append(name)
    for name, values in lists.items():
        if None not in (value if value is None else 0 for value in values):
            continue
        family = collections[rule_of(name, spec.objects) or name.partition("_")[0]]
        for event, value in enumerate(values):
            if value is None:
                counts = {len(lists[one][event]) for one in family if lists[one][event] is not None}
                values[event] = [None] * (counts.pop() if len(counts) == 1 else 0)


def _fixed(
    name: str, values: list[Any], spec: FeatureSpec, floats: type[np.floating[Any]]
) -> npt.NDArray[Any]:
    feature = spec.by_name.get(name)
    given = [value for value in values if value is not None]
    for value in given:
        if not is_list(value):
            raise EventError(f"{name!r} is fixed, but {value!r} is no list", f'Send "{name}": [{value}]')
    lengths = {len(value) for value in given}
    length = feature.length if feature else max(lengths, default=0)
    if lengths - {length}:
        raise EventError(
            f"{name!r} has {length} values an event, but {min(lengths - {length})} were sent", "Send all"
        )
    rows = [[None] * length if value is None else value for value in values]
    return numbers(list(chain.from_iterable(rows)), name, floats).reshape(len(values), length)
