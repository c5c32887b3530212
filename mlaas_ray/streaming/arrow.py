"""Arrow arrays, which tables are read into, to columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlaas_ray.core.columns import Column, Jagged, Kind
from mlaas_ray.streaming.events import Branch, Nested


def branch_of(name: str, kind: pa.DataType, nested: Nested, size: int) -> Branch | None:
    """Describe a column by its Arrow type; None for one that is not numeric.

    Args:
        name: Its name.
        kind: Its type.
        nested: What becomes of lists of lists.
        size: Uncompressed bytes of all entries.
    """
    shape = _shape(kind, nested)
    if shape is None:
        return None
    return Branch(name, shape[0], str(kind), length=shape[1], bytes=size, dtype=_dtype(kind))


def _shape(kind: pa.DataType, nested: Nested) -> tuple[Kind, int] | None:
    """Return the kind of column that a type becomes, and the values of an event if that is fixed."""
    kind = _stored(kind)
    if _is_number(kind):
        return "flat", 1
    if pa.types.is_fixed_size_list(kind):
        inner = _shape(kind.value_type, nested)
        if inner is None or inner[0] == "jagged":
            return inner and (("jagged", 1) if nested == "flatten" else None)
        length = kind.list_size * inner[1]
        return ("fixed", length) if length else None
    if _is_list(kind):
        inner = _shape(kind.value_type, nested)
        return ("jagged", 1) if inner and (inner[0] == "flat" or nested == "flatten") else None
    return None


def members(kind: pa.DataType) -> Iterator[tuple[tuple[str, ...], pa.DataType]]:
    """Give the members of the structs in a type, each as names and the type that it has by itself.

    Of ``list<struct<pt: float>>`` it is ``("pt",)``, which is ``list<float>``; what holds no struct is the
    only member of its own, without a name.
    """
    stored = _stored(kind)
    if pa.types.is_struct(stored) and stored.num_fields:
        for field in stored:
            for path, inner in members(field.type):
                yield (field.name, *path), inner
    elif _is_list(stored) or pa.types.is_fixed_size_list(stored):
        size = stored.list_size if pa.types.is_fixed_size_list(stored) else -1
        for path, inner in members(stored.value_type):
            yield path, pa.list_(inner, size) if path else kind
    else:
        yield (), kind


def member_of(array: pa.Array, path: Sequence[str]) -> pa.Array:
    """Return a member of the structs in an array, as an array by itself; what is null stays so.

    Args:
        array: Of a type that :func:`members` finds it in.
        path: Its names.
    """
    if not path:
        return array
    array = _unwrapped(array)
    if pa.types.is_struct(array.type):
        return member_of(pc.struct_field(array, [path[0]]), path[1:])
    missing = array.is_null() if array.null_count else None
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        values = array.values.slice(array.offset * size, len(array) * size)
        return pa.FixedSizeListArray.from_arrays(member_of(values, path), size, mask=missing)
    offsets = pa.array(array.offsets.to_numpy(), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, member_of(array.values, path), mask=missing)


def column_of(values: pa.ChunkedArray | pa.Array, kind: Kind) -> Column:
    """Make a column of an array of a type that :func:`branch_of` accepts.

    What is null becomes NaN, and a list that is null an empty one.

    Args:
        values: ``(events,)``.
        kind: What :func:`branch_of` said of its type.
    """
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    array = _unwrapped(array)
    if kind == "flat":
        return _numbers(array)
    if kind == "fixed":
        return _rows(array)
    offsets: npt.NDArray[np.int64] | None = None
    while not _is_number(array.type):
        counts = pc.fill_null(pc.list_value_length(array), 0)
        ends = np.zeros(len(array) + 1, np.int64)
        np.cumsum(counts.to_numpy(zero_copy_only=False), out=ends[1:])
        offsets = ends if offsets is None else ends[offsets]
        array = _unwrapped(array.flatten())  # which leaves out what lies under a null
    assert offsets is not None
    return Jagged(offsets, _numbers(array))


def _rows(array: pa.Array) -> npt.NDArray[Any]:
    """Return an array of lists of one length as ``(events, length)``; a list that is null as NaNs."""
    content = _unwrapped(array.flatten())
    numbers = _numbers(content) if _is_number(content.type) else _rows(content)
    valid = len(array) - array.null_count
    present = numbers.reshape(valid, -1 if valid else _length(array.type))
    if not array.null_count:
        return present
    rows = np.full((len(array), _length(array.type)), np.nan, np.result_type(present, np.float32))
    rows[array.is_valid().to_numpy(zero_copy_only=False)] = present
    return rows


def _length(kind: pa.DataType) -> int:
    kind = _stored(kind)
    return kind.list_size * _length(kind.value_type) if pa.types.is_fixed_size_list(kind) else 1


def _numbers(array: pa.Array) -> npt.NDArray[Any]:
    if array.type == pa.float16():  # which the kernels do not know
        array = array.cast(pa.float32())
    if array.null_count:
        if not pa.types.is_floating(array.type):  # by the width, expressions tell conditions from numbers
            array = array.cast(pa.float32() if pa.types.is_boolean(array.type) else pa.float64())
        array = array.fill_null(np.nan)
    numbers: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return numbers


def _dtype(kind: pa.DataType) -> str:
    """Return the type of the numbers in a type, as numpy calls it."""
    kind = _stored(kind)
    return str(np.dtype(kind.to_pandas_dtype())) if _is_number(kind) else _dtype(kind.value_type)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _stored(kind: pa.DataType) -> pa.DataType:
    """Return what an extension type, such as a tensor or awkward's, is stored as."""
    return _stored(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _unwrapped(array: pa.Array) -> pa.Array:
    return _unwrapped(array.storage) if isinstance(array, pa.ExtensionArray) else array
