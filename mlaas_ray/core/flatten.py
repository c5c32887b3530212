"""Jagged events to NaN-padded rows ``(events, features)`` float32: the one kernel of training and serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.columns import Column, Jagged, from_awkward
from mlaas_ray.core.errors import EventError, FeatureError, nearest
from mlaas_ray.core.features import Feature, FeatureSpec
from mlaas_ray.core.grid import GridSpec
from mlaas_ray.core.prepare import prepare
from mlaas_ray.core.rasterise import rasterise
from mlaas_ray.core.sent import columns_of, is_list, number

Rows = npt.NDArray[np.float32]


@np.errstate(over="ignore")  # what is beyond float32 is infinite
def flatten(
    arrays: Mapping[str, Any],
    spec: FeatureSpec,
    out: Rows | None = None,
    dtype: npt.DTypeLike = np.float32,
) -> Rows:
    """Put the arrays of some events into the columns of a spec.

    Values beyond a jagged branch's length are left out; slots without a value are NaN. The images of a
    GridSpec are drawn by :func:`mlaas_ray.core.rasterise`.

    Args:
        arrays: By branch name: a column, or an awkward array: ``(events,)``, ``(events, length)`` or
            ``(events, var)``.
        spec: The columns.
        out: Rows to fill, ``(events, features)`` float32 and C-contiguous; made when not given.
        dtype: Of the rows that are made: a wider float for a model that holds more; images are float32.

    Returns:
        ``(events, features)`` float32, or of that type.

    Raises:
        FeatureError: When a branch is missing, of the wrong kind or number of events, or not numeric.
    """
    missing = [feature.name for feature in spec.features if feature.name not in arrays]
    if missing:
        raise FeatureError(f"no values for {missing[0]!r}", nearest(missing[0], arrays))
    events = len(arrays[spec.features[0].name])
    if out is None:
        out = np.empty((events, spec.width), np.float32 if isinstance(spec, GridSpec) else dtype)
    elif out.shape != (events, spec.width) or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise FeatureError(f"out must be C-contiguous float32 of shape ({events}, {spec.width})")
    if isinstance(spec, GridSpec):
        rasterise(arrays, spec, out)
        return out
    out.fill(np.nan)
    cells = out.reshape(-1)
    offsets: npt.NDArray[np.int64] | None = None
    for feature in spec.features:
        start = spec.starts[feature.name]
        column = as_column(arrays[feature.name], feature)
        if len(column) != events:
            first = spec.features[0].name
            raise FeatureError(
                f"{feature.name!r} has values for {len(column)} events, {first!r} for {events}"
            )
        if not isinstance(column, Jagged):
            out[:, start : start + feature.length] = column.reshape(events, feature.length)
            continue
        own, content = column.offsets, column.content
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
def flatten_events(
    events: Sequence[Mapping[str, Any]], spec: FeatureSpec, dtype: npt.DTypeLike = np.float32
) -> Rows:
    """Put events as a program sends them, ``{"MET_pt": 31.2, "Jet_pt": [52.1, 33.0]}``, into rows.

    They are the file's branches, ``spec.raw``: what is defined of them is computed, and objects are kept and
    sorted as in training. A branch that is left out, or None, has no value. Objects beyond a branch's length
    are left out, and ``spec.select`` is not applied. ``dtype`` is as in :func:`flatten`.

    Returns:
        ``(events, features)`` float32 or of that type, the same as :func:`flatten` gives for the same values.

    Raises:
        EventError: For a branch the spec does not know, a list where one value is due or the reverse, and
            values that are not numbers.
    """
    if spec.is_prepared or isinstance(spec, GridSpec):
        return _prepared_rows(events, spec, dtype)
    rows: Rows = np.full((len(events), spec.width), np.nan, dtype=dtype)
    for row, event in zip(rows, events, strict=True):
        for name, value in event.items():
            feature = spec.by_name.get(name)
            if feature is None:
                raise EventError(f"the model knows no branch {name!r}", nearest(name, spec.by_name))
            if value is not None:
                _fill(row, spec.starts[name], feature, value)
    return rows


def _prepared_rows(events: Sequence[Mapping[str, Any]], spec: FeatureSpec, dtype: npt.DTypeLike) -> Rows:
    """Put events into rows the way of training: as columns, prepared, then flattened or drawn."""
    if not events:
        return np.empty((0, spec.width), dtype=dtype)
    # An object without a weight would vanish from an image unseen, where in a vector it is a missing value.
    floats = np.float32 if np.dtype(dtype) == np.float32 else np.float64
    columns = columns_of(events, spec, complete=not isinstance(spec, GridSpec), floats=floats)
    try:
        return flatten(prepare(columns, spec, select=False)[0], spec, dtype=dtype)
    except FeatureError as error:  # here it is the events that do not fit, such as 3 Jet_pt and 2 Jet_eta
        raise EventError(error.message, error.remedy) from None


def _fill(row: Rows, start: int, feature: Feature, value: Any) -> None:
    """Put the value or values of one branch into its columns of one row ``(features,)``."""
    name = feature.name
    if feature.kind == "flat":
        row[start] = number(value, name)
        return
    if not is_list(value):
        raise EventError(f"{name!r} is {feature.kind}, but {value!r} is no list", f'Send "{name}": [{value}]')
    if feature.kind == "fixed" and len(value) != feature.length:
        raise EventError(
            f"{name!r} has {feature.length} values an event, but {len(value)} were sent", "Send all"
        )
    for slot in range(min(len(value), feature.length)):
        item = value[slot]
        row[start + slot] = np.nan if item is None else number(item, name)


def as_column(values: Any, feature: Feature) -> Column:
    """Return the values of a feature's branch as the column that its kind says.

    Raises:
        FeatureError: When they are of another kind, or not numeric.
    """
    name = feature.name
    column = values if isinstance(values, Jagged) else from_awkward(values, name)
    if feature.kind == "jagged" and not isinstance(column, Jagged):
        if column.ndim == 2:  # equally many in every event
            events, length = column.shape
            return Jagged(
                np.arange(0, (events + 1) * length, length, dtype=np.int64)[: events + 1], column.ravel()
            )
        raise FeatureError(f"{name!r} is jagged in the FeatureSpec, but has 1 axes here")
    if feature.kind != "jagged" and isinstance(column, Jagged):
        raise FeatureError(f"{name!r} is jagged in these events, but {feature.kind} in the FeatureSpec")
    if not isinstance(column, Jagged):
        shape = (len(column),) if feature.kind == "flat" else (len(column), feature.length)
        if column.shape != shape:
            raise FeatureError(f"{name!r} has the shape {column.shape} in these events, but {shape} is due")
    return column
