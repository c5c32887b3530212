"""Jagged events to NaN-padded rows ``(events, features)`` float32: the one kernel of training and serving."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import EventError, FeatureError, nearest
from mlaas_ray.core.features import Feature, FeatureSpec

Rows = npt.NDArray[np.float32]


@np.errstate(over="ignore")  # what is beyond float32 is infinite
def flatten(arrays: Mapping[str, Any], spec: FeatureSpec, out: Rows | None = None) -> Rows:
    """Put the arrays of some events into the columns of a spec.

    Values beyond a jagged branch's length are left out; slots without a value are NaN.

    Args:
        arrays: By branch name: a flat array ``(events,)``, or a jagged ``(events, var)`` awkward array.
        spec: The columns.
        out: Rows to fill, ``(events, features)`` float32 and C-contiguous; made when not given.

    Returns:
        ``(events, features)`` float32.

    Raises:
        FeatureError: When a branch is missing, of the wrong kind or number of events, or not numeric.
    """
    missing = [feature.name for feature in spec.features if feature.name not in arrays]
    if missing:
        raise FeatureError(f"no values for {missing[0]!r}", nearest(missing[0], arrays))
    events = len(arrays[spec.features[0].name])
    if out is None:
        out = np.empty((events, spec.width), dtype=np.float32)
    elif out.shape != (events, spec.width) or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise FeatureError(f"out must be C-contiguous float32 of shape ({events}, {spec.width})")
    out.fill(np.nan)
    cells = out.reshape(-1)
    offsets: npt.NDArray[np.int64] | None = None
    for feature in spec.features:
        start = spec.starts[feature.name]
        if feature.kind == "flat":
            values = _flat(arrays[feature.name], feature)
            _check_events(feature, len(values), spec.features[0], events)
            out[:, start] = values
            continue
        own, content = _jagged(arrays[feature.name], feature)
        _check_events(feature, len(own) - 1, spec.features[0], events)
        # Branches of one collection follow each other and share their offsets: index them once.
        if offsets is None or not np.array_equal(own, offsets):
            offsets = own
            counts = np.diff(own)
            event = np.repeat(np.arange(events, dtype=np.int64), counts)
            slot = np.arange(len(event), dtype=np.int64) - np.repeat(own[:-1], counts)
        keep = slot < feature.length
        if keep.all():
            cells[event * spec.width + (start + slot)] = content
        else:
            cells[event[keep] * spec.width + (start + slot[keep])] = content[keep]
    return out


@np.errstate(over="ignore")
def flatten_events(events: Sequence[Mapping[str, Any]], spec: FeatureSpec) -> Rows:
    """Put events as a program sends them, ``{"MET_pt": 31.2, "Jet_pt": [52.1, 33.0]}``, into rows.

    A branch that is left out, or None, has no value. Objects beyond a branch's length are left out.

    Returns:
        ``(events, features)`` float32, the same as :func:`flatten` gives for the same values.

    Raises:
        EventError: For a branch the spec does not know, a list where one value is due or the reverse, and
            values that are not numbers.
    """
    rows = np.full((len(events), spec.width), np.nan, dtype=np.float32)
    for row, event in zip(rows, events, strict=True):
        for name, value in event.items():
            feature = spec.by_name.get(name)
            if feature is None:
                raise EventError(f"the model knows no branch {name!r}", nearest(name, spec.by_name))
            if value is not None:
                _fill(row, spec.starts[name], feature, value)
    return rows


def _fill(row: Rows, start: int, feature: Feature, value: Any) -> None:
    """Put the value or values of one branch into its columns of one row ``(features,)``."""
    name = feature.name
    if feature.kind == "flat":
        row[start] = _number(value, name)
        return
    if not _is_list(value):
        raise EventError(f"{name!r} is jagged, but {value!r} is no list", f'Send "{name}": [{value}]')
    for slot in range(min(len(value), feature.length)):
        item = value[slot]
        row[start + slot] = np.nan if item is None else _number(item, name)


def _is_list(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _number(value: Any, name: str) -> float:
    if type(value) is float:  # nearly always, and quicker to tell
        return value
    if isinstance(value, bool | int | float | np.integer | np.floating | np.bool_):
        try:
            return float(value)
        except OverflowError:  # an integer of more than 308 digits
            return math.inf if value > 0 else -math.inf
    if _is_list(value):
        raise EventError(f"{name!r} has one value an event, but a list was sent", f'Send "{name}": number')
    raise EventError(f"{name!r}: {value!r} is not a number", "Send numbers, or null for no value")


def _check_events(feature: Feature, found: int, first: Feature, events: int) -> None:
    if found != events:
        raise FeatureError(f"{feature.name!r} has values for {found} events, {first.name!r} for {events}")


def _flat(values: Any, feature: Feature) -> npt.NDArray[Any]:
    if isinstance(values, ak.Array):
        if values.ndim != 1:
            raise FeatureError(f"{feature.name!r} is jagged in these events, but flat in the FeatureSpec")
        values = ak.to_numpy(ak.fill_none(values, np.nan))
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise FeatureError(f"{feature.name!r} is no flat numeric branch in these events ({array.dtype})")
    return array


def _jagged(values: Any, feature: Feature) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Return offsets ``(events + 1,)`` from zero, and the content they index."""
    array = values if isinstance(values, ak.Array) else ak.Array(values)
    if array.ndim != 2:
        raise FeatureError(f"{feature.name!r} is jagged in the FeatureSpec, but has {array.ndim} axes here")
    if array.layout.is_option:  # a list that is missing is an empty one
        array = ak.fill_none(array, [], axis=0)
    layout = array.layout
    if not isinstance(layout, ak.contents.ListOffsetArray) or layout.offsets[0] != 0:
        layout = ak.to_packed(ak.from_regular(array, axis=1)).layout.to_ListOffsetArray64(True)
    offsets = np.asarray(layout.offsets, dtype=np.int64)
    content = layout.content[: offsets[-1]]
    if content.is_option:
        content = ak.fill_none(content, np.nan, highlevel=False)
    numbers = ak.to_numpy(content)
    if numbers.dtype.kind not in "biuf":
        raise FeatureError(f"{feature.name!r} is not numeric ({numbers.dtype})")
    return offsets, numbers
