"""Columns: the values of one branch for some events, as plain numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import awkward as ak
import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import FeatureError

# flat: one value an event; fixed: as many for every event; jagged: any number of values an event.
Kind = Literal["flat", "fixed", "jagged"]


@dataclass(frozen=True, slots=True)
class Jagged:
    """Any number of values an event.

    Attributes:
        offsets: ``(events + 1,)`` int64 from 0: event ``i`` has ``content[offsets[i]:offsets[i + 1]]``.
        content: ``(values,)``, numeric, of either byte order.
    """

    offsets: npt.NDArray[np.int64]
    content: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Values of each event ``(events,)``."""
        return np.diff(self.offsets)


# (events,) for flat, (events, length) for fixed
Column = npt.NDArray[Any] | Jagged
Columns = Mapping[str, Column]


def true_or_false(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return booleans as the bytes 0 and 1, other numbers as they are.

    C++ takes every byte but 0 for true, and one that was never initialised may be any; numpy, which takes
    booleans for 0 or 1, would compute with 145.
    """
    return values.view(np.uint8) != 0 if values.dtype.kind == "b" else values


def to_awkward(column: Column) -> ak.Array:
    """Return a column as an awkward array, of the machine's byte order."""
    if isinstance(column, Jagged):
        content = ak.contents.NumpyArray(_native(column.content))
        return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(column.offsets), content))
    return ak.Array(_native(column))


def from_awkward(array: Any, name: str) -> Column:
    """Return an awkward (or numpy) array of numbers as a column; a value that is None becomes NaN.

    Args:
        array: ``(events,)``, ``(events, length)`` or ``(events, var)``.
        name: What it is, for messages.

    Raises:
        FeatureError: When it is not numeric, or has more axes.
    """
    if isinstance(array, np.ndarray) and array.ndim in (1, 2):  # of either byte order, which awkward refuses
        return _numbers(array, name)
    array = ak.Array(array)
    if array.ndim == 1:
        return _numbers(ak.fill_none(array, np.nan), name)
    if array.ndim != 2:
        raise FeatureError(f"{name!r} has {array.ndim} axes", "Reduce it to one list an event")
    layout = array.layout
    if isinstance(layout, ak.contents.NumpyArray) or (layout.is_regular and not layout.content.is_option):
        return _numbers(array, name)
    if layout.is_option:  # a list that is missing is an empty one
        layout = ak.fill_none(array, [], axis=0).layout
    if not isinstance(layout, ak.contents.ListOffsetArray) or layout.offsets[0] != 0:
        layout = ak.to_packed(ak.from_regular(ak.Array(layout), axis=1)).layout.to_ListOffsetArray64(True)
    offsets = np.asarray(layout.offsets, dtype=np.int64)
    content = layout.content[: offsets[-1]]
    if content.is_option:
        content = ak.fill_none(content, np.nan, highlevel=False)
    return Jagged(offsets, _numbers(content, name))


def _numbers(array: Any, name: str) -> npt.NDArray[Any]:
    try:
        numbers: npt.NDArray[Any] = array if isinstance(array, np.ndarray) else ak.to_numpy(array)
    except (ValueError, TypeError):
        raise FeatureError(f"{name!r} is not numeric ({ak.type(array)})") from None
    if numbers.dtype.kind not in "biuf":
        raise FeatureError(f"{name!r} is not numeric ({numbers.dtype})")
    return true_or_false(numbers)


def _native(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
