"""Tables of events as programs hold them - pandas, Arrow, awkward, arrays by name - as Arrow streams to send.

Numbers keep their type, None and masked values become null, and lists of any length stay lists. A record of
several values, such as an awkward ``Jet`` with ``pt`` and ``eta``, becomes the columns ``Jet_pt`` and
``Jet_eta``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa

from mlaas_ray.core.errors import EventError

_REMEDY = "Send columns of numbers, or of lists of numbers"


def table_of(data: Any) -> pa.Table:
    """Return a table of events as Arrow has it.

    Args:
        data: A pandas (or polars) DataFrame, an Arrow table or batch, awkward records, a structured numpy
            array, or columns by name: numpy arrays, masked ones, awkward arrays, Arrow arrays, lists.

    Raises:
        EventError: For what cannot be columns, naming the column.
    """
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for name, values in _named(data):
        for own, column in _columns(name, values):
            if own in columns:
                raise EventError(f"the column {own!r} is there twice", "Send each once")
            columns[own] = column
    if not columns:
        raise EventError("the table has no columns", "Send the branches, or the model's columns")
    lengths = {name: len(column) for name, column in columns.items()}
    first = next(iter(lengths))
    for name, length in lengths.items():
        if length != lengths[first]:
            raise EventError(
                f"{name!r} has {length} entries, but {first!r} has {lengths[first]}",
                "Send one for each event",
            )
    return pa.table(columns)


def write_table(table: pa.Table) -> bytes:
    """Write a table, or a slice of one, as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream


def _named(data: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(data, ak.Array):
        yield from ((name, data[name]) for name in data.fields)
    elif isinstance(data, np.ndarray):
        yield from ((name, data[name]) for name in data.dtype.names or ())
    elif isinstance(data, Mapping):
        yield from ((str(name), values) for name, values in data.items())
    elif hasattr(data, "iloc"):  # of pandas, which need not be there
        # by number: two may have one name, which is said later
        yield from ((str(name), data.iloc[:, number]) for number, name in enumerate(data.columns))
    else:
        table = data if isinstance(data, pa.Table) else pa.table(data)
        yield from zip(table.column_names, table.columns, strict=True)


def _columns(name: str, values: Any) -> Iterator[tuple[str, Any]]:
    """Return the column of some values, or those of the records that they are."""
    try:
        if not isinstance(values, ak.Array):
            values = _arrow(values)
            if not _is_of_records(values.type):
                yield name, _plain(values)
                return
            values = ak.from_arrow(values)
        if values.fields:
            for field in values.fields:
                yield from _columns(f"{name}_{field}", values[field])
        else:
            yield name, _plain(ak.to_arrow(ak.to_packed(values), extensionarray=False))
    except (pa.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, EventError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EventError(f"the column {name!r} cannot be sent: {reason[:200]}", _REMEDY) from None


def _arrow(values: Any) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    own = getattr(values, "dtype", None)
    if isinstance(own, np.dtype) and own.kind in "biuf":
        mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
        numbers = np.asarray(values, own.newbyteorder("="))
        if numbers.ndim == 1:
            return pa.array(numbers, mask=mask)
        if numbers.ndim == 2 and numbers.shape[1]:
            flat = pa.array(numbers.ravel(), mask=None if mask is None else mask.ravel())
            return pa.FixedSizeListArray.from_arrays(flat, numbers.shape[1])
        if numbers.ndim == 2:
            return pa.array([[]] * len(numbers), pa.list_(pa.float32()))
        raise ValueError(f"it has {numbers.ndim} axes")
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise TypeError("one value was given, where one for each event is due")
    if hasattr(values, "__arrow_c_stream__"):
        return pa.chunked_array(values)
    if hasattr(values, "__array__") and not isinstance(values, np.ndarray):  # of torch, jax, h5py
        return _arrow(np.asarray(values))
    return pa.array(values, from_pandas=True)


def _is_of_records(kind: pa.DataType) -> bool:
    """Tell whether awkward must take it apart: records, or what awkward wrote with a type of its own."""
    while hasattr(kind, "value_type") and not isinstance(kind, pa.ExtensionType):
        kind = kind.value_type
    return bool(pa.types.is_struct(kind)) or getattr(kind, "extension_name", "") == "awkward"


def _plain(values: Any) -> Any:
    """Return a column without what a service does not read: dictionaries, and types of other libraries."""
    kind = values.type
    if isinstance(kind, pa.ExtensionType) and not isinstance(kind, pa.FixedShapeTensorType):
        return _plain(values.cast(kind.storage_type))
    sent = _sent(kind)
    return values if sent == kind else values.cast(sent)


def _sent(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _sent(kind.value_type)
    if pa.types.is_null(kind):  # nothing is known of what it lacks
        return pa.float32()
    if pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_sent(kind.value_type), kind.list_size)
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        inner = _sent(kind.value_type)
        if inner == kind.value_type:
            return kind
        return pa.list_(inner) if pa.types.is_list(kind) else pa.large_list(inner)
    return kind
