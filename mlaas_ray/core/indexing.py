"""Indices of expressions: one object of each event, a range of them, or those a condition picks."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from mlaas_ray.core.errors import FeatureError
from mlaas_ray.core.values import Value, aligned, event_of, from_counts, same_objects, typed


def at(x: Value, position: Value) -> Value:
    """Return the object at a position of each event, and no value where there is none.

    Args:
        x: Objects.
        position: A constant, which counts from the end when below 0, or a whole number an event.
    """
    position = typed(position)
    if _is_unknown(position):
        position = replace(position, content=position.content.astype(np.int64))
    if position.type != "i" or position.kind == "jagged":
        raise FeatureError("the position of an object is one whole number an event", "Write x[:, 0]")
    counts, index = x.counts, position.content
    if position.kind is None and index < 0:
        index = counts + index
    there = (index >= 0) & (index < counts)
    if position.missing is not None:
        there &= ~position.missing
    return x.take(x.objects[:-1] + np.where(there, index, 0).astype(np.int64), None, there)


def picked(x: Value, index: Value) -> Value:
    """Return the objects for which a condition is true, or those at positions within their events.

    A position that an event does not have, such as -1 of a NanoAOD index, gives no value.
    """
    offsets = x.objects
    if index.offsets is None:
        raise FeatureError(
            "an index without a colon picks objects, and this has one value an event",
            "Write x[:, 0] for one object; conditions on events belong into select",
        )
    index = typed(index)
    # no condition on these objects, but positions
    if _is_unknown(index) and not same_objects(offsets, index.objects):
        index = replace(index, content=index.content.astype(np.int64))
    if index.type == "b":
        (x, index), _ = aligned([x, index])
        return x.keep(index.truth)
    if index.type == "f":
        raise FeatureError("an index is a condition or whole numbers", "Compare: x[x > 30]")
    event, content = event_of(index.objects), index.content
    there = (content >= 0) & (content < x.counts[event])
    if index.missing is not None:
        there &= ~index.missing
    places = offsets[event] + np.where(there, content, 0).astype(np.int64)
    return x.take(places, index.offsets, there).of_as_many(index)


def _is_unknown(x: Value) -> bool:
    """Tell whether no value is there that would say what they are: conditions or positions."""
    return x.missing is not None and bool(x.missing.all())


def sliced(x: Value, start: int | None, stop: int | None, step: int | None) -> Value:
    """Return a range of the objects of each event, by Python's rules; ``step`` is above 0."""
    offsets, counts, step = x.objects, x.counts, step or 1

    def bound(edge: int) -> np.ndarray:
        return np.clip(counts + edge if edge < 0 else np.full(len(counts), edge), 0, counts)

    first = bound(start or 0)
    last = counts if stop is None else bound(stop)
    kept = from_counts(np.maximum(0, -((first - last) // step)))  # rounded up
    event = event_of(kept)
    slots = np.arange(kept[-1]) - kept[event]
    # of the longest list that can be: ends that lie at its two ends leave no number
    most = len(range(sys.maxsize)[start:stop:step])
    asked = most if most < sys.maxsize // (2 * step) else 0
    return replace(x.take(offsets[event] + first[event] + slots * step, kept), asked=asked)
