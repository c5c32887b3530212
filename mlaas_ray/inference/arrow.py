"""Arrow IPC streams as a program sends them, turned into the rows a model takes, and predictions as such.

A stream has, decided by the names of its columns:

- one column of lists of a fixed size, or of tensors: the rows themselves, without a copy;
- the model's columns, in any order: numbers, null where there is no value; what is not sent is missing;
- the file's branches, jagged ones as lists, prepared and flattened by the model's own FeatureSpec as in
  training; also where each is a column too, if nothing that the model computes with is left out;
- for a model that knows no columns: as many columns as it takes values, in its order.

What a stream may hold is bounded, because a small one can stand for a large table: no compression, no
dictionaries, no columns without data.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlaas_ray.core.columns import Column, Jagged, Kind
from mlaas_ray.core.errors import EventError, FeatureError, nearest
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.flatten import Rows, flatten, flatten_events
from mlaas_ray.core.prepare import needed_branches, prepare
from mlaas_ray.core.sent import unknown_branch
from mlaas_ray.inference.body import BodyTooLargeError
from mlaas_ray.inference.rows import FLOAT32, Table, carrier, positions_of, scatter

_FLOAT32 = pa.float32()
_REMEDY = "Write it with pyarrow.ipc.new_stream, without compression"


def read_stream(
    body: bytes, spec: FeatureSpec | None, width: int, limit: int, dtype: np.dtype[Any] = FLOAT32
) -> npt.NDArray[Any]:
    """Turn a stream into a model's rows.

    Args:
        body: The stream.
        spec: The model's columns; None in a model that came from elsewhere.
        width: Values a row has.
        limit: Most bytes of rows it may become.
        dtype: Type of the model's values.

    Returns:
        ``(events, features)`` of that type.

    Raises:
        EventError: For a stream that is damaged, or does not fit the model.
        BodyTooLargeError: For more rows.
    """
    batch = _open(body)
    wide = np.dtype(carrier(dtype))
    if batch.num_rows * width * wide.itemsize > limit:
        raise BodyTooLargeError(f"{batch.num_rows} rows take more than {limit} bytes", "Send less at once")
    names = batch.schema.names
    known = {*spec.columns, *spec.raw} if spec is not None else set()
    if len(names) == 1 and _list_size(batch.schema.types[0]) and names[0] not in known:
        rows = _lists(batch.column(0), wide)
    elif spec is None:
        rows = _matrix(batch, wide)
    elif spec.index.keys() >= set(names) and not _are_all_branches(set(names), spec):
        rows = _by_columns(batch, spec, wide)
    else:
        rows = _by_branches(batch, spec, wide)
    return Table(rows).rows(spec, width, dtype)[0]


def write_stream(answers: npt.NDArray[Any]) -> bytes:
    """Write predictions ``(events, outputs)`` as a stream with one column ``prediction``."""
    outputs = answers.shape[1]
    column = pa.array(answers.ravel())
    if outputs != 1:
        column = pa.FixedSizeListArray.from_arrays(column, outputs)
    batch = pa.record_batch([column], names=["prediction"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream


def _open(body: bytes) -> pa.RecordBatch:
    """Read a stream, after what it is made of is known to be bounded, as one batch of some rows."""
    buffer = pa.py_buffer(body)
    try:
        for message in pa.ipc.MessageReader.open_stream(buffer):
            if message.type == "dictionary batch":
                raise EventError("the Arrow stream has dictionaries", "Send numbers")
            if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
                raise EventError("the Arrow stream is compressed", _REMEDY)
        with pa.ipc.open_stream(buffer) as reader:
            _check(reader.schema)
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, struct.error, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EventError(f"the body is no Arrow stream: {reason[:200]}", _REMEDY) from None
    if not table.num_rows:
        raise EventError("there are no rows", "Send one at least")
    batches = table.to_batches()
    return batches[0] if len(batches) == 1 else table.combine_chunks().to_batches()[0]


def _is_compressed(metadata: bytes) -> bool:
    """Tell whether a record batch's buffers are compressed: https://arrow.apache.org/docs/format/Columnar.html."""

    def field(table: int, number: int) -> int:
        """Return where a field of a FlatBuffers table is; 0 when it is left out."""
        vtable = table - struct.unpack_from("<i", metadata, table)[0]
        if 4 + 2 * number >= struct.unpack_from("<H", metadata, vtable)[0]:
            return 0
        place: int = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)[0]
        return table + place if place else 0

    # Message: version, header type, header, …; RecordBatch: length, nodes, buffers, compression
    header = field(struct.unpack_from("<I", metadata, 0)[0], 2)
    return bool(header and field(header + struct.unpack_from("<I", metadata, header)[0], 3))


def _check(schema: pa.Schema) -> None:
    names = schema.names
    if not names:
        raise EventError("the Arrow stream has no columns", "Send the model's columns")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise EventError(f"the column {twice!r} is there twice", "Send each once")
    types = schema.types
    for kind in set(types):
        stored = _storage(kind)
        fixed = pa.types.is_fixed_size_list(stored) and stored.list_size > 0
        if fixed or pa.types.is_list(stored) or pa.types.is_large_list(stored):
            stored = stored.value_type
        if not _is_numeric(stored):
            name = names[types.index(kind)]
            raise EventError(
                f"the column {name!r} is of {kind}, not of numbers or lists of them", "Send numbers"
            )


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.FixedShapeTensorType) else kind


def _list_size(kind: pa.DataType) -> int:
    """Return how many values each entry of a column has; 0 when that is not fixed."""
    kind = _storage(kind)
    return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else 0


def _lists(array: pa.Array, wide: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return a column of lists of a fixed size as ``(events, values)``."""
    if array.null_count:
        raise EventError("a row is null", "Leave it out")
    return _floats(_values(array), wide).reshape(len(array), -1)


def _values(array: pa.Array) -> pa.Array:
    """Return what is in the lists, or tensors, of a column without null."""
    return (array.storage if isinstance(array, pa.ExtensionArray) else array).flatten()


def _matrix(batch: pa.RecordBatch, wide: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return columns of numbers as ``(events, columns)``, NaN where null is."""
    types = batch.schema.types
    if any(kind != _FLOAT32 for kind in types):
        for name, kind in zip(batch.schema.names, types, strict=True):
            if not _is_numeric(kind):
                raise EventError(f"the column {name!r} is of lists, but has one value a row", "Send numbers")
        if wide != FLOAT32:
            return np.stack([_floats(column, wide) for column in batch.columns], axis=1)
        batch = pa.record_batch(list(map(_float32, batch.columns)), names=batch.schema.names)
    matrix: Rows = batch.to_tensor(null_to_nan=True).to_numpy()
    return matrix


def _floats(array: pa.Array, wide: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return numbers in a wide type, NaN where null is."""
    if wide == FLOAT32:
        array = _float32(array)
    elif not pa.types.is_integer(array.type):
        array = array.cast(pa.float64())
    elif array.null_count:  # as float64, which is what to_numpy makes of them, some would be rounded
        missing = array.is_null().to_numpy(zero_copy_only=False)
        whole: npt.NDArray[Any] = array.fill_null(0).to_numpy()
        return np.where(missing, wide.type(np.nan), whole)
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return np.asarray(values, wide)


def _float32(array: pa.Array) -> pa.Array:
    # what float32 cannot hold becomes infinite, which is refused later
    return array if array.type == _FLOAT32 else array.cast(_FLOAT32, safe=False)


def _are_all_branches(names: set[str], spec: FeatureSpec) -> bool:
    """Tell whether the columns are all that a model computes its own from, some of which have these names."""
    return spec.is_prepared and spec.raw.keys() <= names <= spec.raw.keys() | needed_branches(spec)


def _by_columns(batch: pa.RecordBatch, spec: FeatureSpec, wide: np.dtype[Any]) -> npt.NDArray[Any]:
    if batch.num_columns == spec.width:
        return _matrix(batch.select(list(spec.columns)), wide)
    return scatter(_matrix(batch, wide), positions_of(batch.schema.names, spec), spec.width)


def _by_branches(batch: pa.RecordBatch, spec: FeatureSpec, wide: np.dtype[Any]) -> npt.NDArray[Any]:
    known = spec.raw.keys() | needed_branches(spec)
    for name in batch.schema.names:
        if name not in known and name not in spec.index:
            if name in spec.define:
                raise unknown_branch(name, spec)
            raise EventError(
                f"the model knows no column or branch {name!r}", nearest(name, {*spec.columns, *known})
            )
    column = next((name for name in batch.schema.names if name not in known), None)
    if column is not None:
        other = next(name for name in batch.schema.names if name not in spec.index)
        raise EventError(
            f"{column!r} is a column of the model, but {other!r} a branch of its files",
            unknown_branch(column, spec).remedy if column in spec.define else "Send one kind",
        )
    columns: dict[str, Column] = {}
    for name, kind in spec.raw.items():
        branch = _branch(batch.column(name), kind, wide) if name in batch.schema.names else None
        if branch is None:  # left out, or of another kind: filled in, or refused, one by one
            return flatten_events(batch.to_pylist(), spec, wide)
        columns[name] = branch
    try:
        return flatten(prepare(columns, spec, select=False)[0], spec, dtype=wide)
    except FeatureError as error:  # here it is the events that do not fit, such as 3 Jet_pt and 2 Jet_eta
        raise EventError(error.message, error.remedy) from None


def _branch(array: pa.Array, kind: Kind | None, wide: np.dtype[Any]) -> Column | None:
    """Return a branch as a reader would give it; None where lists are missing, or it is of another kind."""
    if _is_numeric(array.type):
        return _numbers(array, wide) if kind in ("flat", None) else None
    if array.null_count or kind == "flat":
        return None
    size = _list_size(array.type)
    if kind == "fixed":
        return _numbers(_values(array), wide).reshape(len(array), size) if size else None
    if size:
        offsets = np.arange(len(array) + 1, dtype=np.int64) * size
    else:
        offsets = array.offsets.to_numpy().astype(np.int64)
    return Jagged(offsets - offsets[0], _numbers(_values(array), wide))


def _numbers(array: pa.Array, wide: np.dtype[Any]) -> npt.NDArray[Any]:
    # Float32 is what files hold: a cut must fall on the same side as it did in training.
    if wide == FLOAT32 and pa.types.is_floating(array.type):
        array = _float32(array)
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values.astype(np.float64 if wide != FLOAT32 else np.float32) if values.dtype == object else values
