"""What to send to a model: the branches of the files that its rows are made of, and an event of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlaas_ray.core.errors import EventError
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.flatten import flatten_events

# Values of each list whose length nobody noted.
_OBJECTS = 2


def branches_to_send(spec: FeatureSpec) -> dict[str, dict[str, Any]]:
    """Return the branches of an event as a program has it, with what is defined traced to the file's.

    Returns:
        By name: ``kind``, None where nobody noted it; and ``length``: the values that an event must have
        (``fixed``) or that are used of it (``jagged``), None where any number are.
    """
    lengths = {feature.name: feature.length for feature in spec.features}
    return {
        name: {"kind": kind, "length": 1 if kind == "flat" else lengths.get(name)}
        for name, kind in spec.raw.items()
    }


def example_event(spec: FeatureSpec) -> dict[str, Any]:
    """Return an event that the model takes, with every branch it needs: what users are shown to send.

    Values are medians where the first pass saw some, else small numbers; true where an expression wants a
    condition. Not each is plausible, but it is tried here whether the event becomes a row.
    """
    fixed = {feature.length for feature in spec.features if feature.kind == "fixed"}
    first = _event(spec, _OBJECTS)
    for event in (first, *(_event(spec, length) for length in sorted(fixed))):
        if _is_taken(event, spec):
            return event
        conditions = {name: _as_conditions(value) for name, value in event.items()}
        if _is_taken(conditions, spec):
            return _with_numbers(conditions, event, list(event), spec)
    return first


def _event(spec: FeatureSpec, length: int) -> dict[str, Any]:
    event: dict[str, Any] = {}
    for number, (name, branch) in enumerate(branches_to_send(spec).items(), start=1):
        feature = spec.by_name.get(name)
        seen = feature.statistics.quantiles if feature and feature.statistics else {}
        high, low = (_short(seen.get(share, other)) for share, other in ((0.5, number + 1), (0.25, number)))
        count = branch["length"] if branch["kind"] == "fixed" and branch["length"] is not None else length
        event[name] = high if branch["kind"] in ("flat", None) else [high, *[low] * (count - 1)][:count]
    return event


def _with_numbers(
    taken: dict[str, Any], numbers: dict[str, Any], names: list[str], spec: FeatureSpec
) -> dict[str, Any]:
    """Give these branches of an event numbers again, where they will do; in halves, since few will not."""
    changed = taken | {name: numbers[name] for name in names}
    if _is_taken(changed, spec):
        return changed
    if len(names) == 1:
        return taken
    half = len(names) // 2
    return _with_numbers(_with_numbers(taken, numbers, names[:half], spec), numbers, names[half:], spec)


def _short(value: float) -> float:
    """Return a number of three digits; a whole one as such, since expressions may want its bits."""
    rounded = float(f"{value:.3g}")
    return int(rounded) if rounded.is_integer() else rounded


def _as_conditions(value: Any) -> Any:
    return [True] * len(value) if isinstance(value, list) else True


def _is_taken(event: dict[str, Any], spec: FeatureSpec) -> bool:
    try:
        return not np.isinf(flatten_events([event], spec)).any()
    except EventError:
        return False
