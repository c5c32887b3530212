"""TFaaS's protobuf messages, and rows in them; ``tfaas.proto`` beside this file says the same to others.

A body is a Row or a DataFrame. Their bytes do not say which, but a Row has values (field 2) or a model (field
3), and a DataFrame has neither: a body with one of them is a Row, any other a DataFrame. The rows of a
DataFrame are of one model, which the first names; keys may stand in the first row only, or in every one.

Values lie in a message as float32, so that messages that differ in nothing else need not be parsed: the
layout of one serves for the next, and that of a DataFrame's second row for all after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from mlaas_ray.core.errors import EventError
from mlaas_ray.core.flatten import Rows
from mlaas_ray.inference.rows import ArrayRow, Table

PACKAGE = "tfaaspb"

# Layouts that are remembered, and the longest message of such.
KNOWN_LAYOUTS = 256
LONGEST_LAYOUT = 16384

_FORMS = "Send a tfaaspb.Row or a tfaaspb.DataFrame"


class Field(NamedTuple):
    """One field of a message; its number is its place in the message, from 1."""

    name: str
    type: str
    repeated: bool


# Detector, Hits and ClassifyResult of TFaaS's file are on no wire, and not made.
MESSAGES: dict[str, tuple[Field, ...]] = {
    "Row": (Field("key", "string", True), Field("value", "float", True), Field("model", "string", False)),
    "DataFrame": (Field("row", "Row", True),),
    "Class": (Field("label", "string", False), Field("probability", "float", False)),
    "Predictions": (Field("prediction", "Class", True),),
    # ours: the answer to a DataFrame
    "PredictionsList": (Field("predictions", "Predictions", True),),
}


def _message_classes() -> dict[str, Any]:
    """Make the classes without generated code, whose check of the protobuf version could fail."""
    kinds = descriptor_pb2.FieldDescriptorProto
    scalars = {"string": kinds.TYPE_STRING, "float": kinds.TYPE_FLOAT}
    file = descriptor_pb2.FileDescriptorProto(name="mlaas_ray/tfaas.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field in enumerate(fields, start=1):
            message.field.add(
                name=field.name,
                number=number,
                label=kinds.LABEL_REPEATED if field.repeated else kinds.LABEL_OPTIONAL,
                type=scalars.get(field.type, kinds.TYPE_MESSAGE),
                type_name=None if field.type in scalars else f".{PACKAGE}.{field.type}",
            )
    pool = descriptor_pool.DescriptorPool()  # of its own: a program may have TFaaS's own classes, too
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in MESSAGES
    }


_CLASSES = _message_classes()
Row = _CLASSES["Row"]
DataFrame = _CLASSES["DataFrame"]
Class = _CLASSES["Class"]
Predictions = _CLASSES["Predictions"]
PredictionsList = _CLASSES["PredictionsList"]


class Layout(NamedTuple):
    """Where the values of a Row lie, and what it says beside them.

    Attributes:
        head: Its bytes before the values.
        tail: Its bytes after them.
        size: How many values there are.
        model: What it names.
        keys: Names of the values.
    """

    head: bytes
    tail: bytes
    size: int
    model: str
    keys: tuple[str, ...] | None

    def fits(self, body: bytes) -> bool:
        """Tell whether a message of the same length differs in the values at most."""
        return body.startswith(self.head) and body.endswith(self.tail)


_layouts: dict[int, Layout] = {}


def read_row_message(body: bytes) -> ArrayRow | None:
    """Read a Row.

    Returns:
        None for anything else, right or wrong: :func:`read_message` reads it, or says what is wrong.
    """
    layout = _layouts.get(len(body))
    if layout is None or not layout.fits(body):
        layout = _layout(body)
        if layout is None:
            return None
        if len(body) <= LONGEST_LAYOUT:
            if len(_layouts) >= KNOWN_LAYOUTS:
                _layouts.clear()
            _layouts[len(body)] = layout
    # copied, because within the message they may lie at any address, which not every runtime takes
    values = np.frombuffer(body, "<f4", layout.size, len(layout.head)).copy()
    return ArrayRow(values, layout.model, layout.keys)


def read_message(body: bytes) -> Table:
    """Read a Row or a DataFrame.

    Raises:
        EventError: When it is neither, or its rows differ in model, keys or length.
    """
    row = read_row_message(body)
    if row is not None:
        return Table(row.values[None], row.model, row.keys, many=False)
    try:
        message = Row.FromString(body)
    except DecodeError:
        message = Row()
    if message.value or message.model:
        return _table([message], many=False)
    table = _alike(body)
    if table is not None:
        return table
    try:
        frame = DataFrame.FromString(body)
    except DecodeError:
        raise EventError("the body is no protobuf message of TFaaS", _FORMS) from None
    return _table(frame.row, many=True)


def write_predictions(answers: npt.NDArray[Any], labels: Sequence[str], *, many: bool) -> bytes:
    """Write Predictions, or a PredictionsList of many rows.

    Args:
        answers: ``(events, outputs…)``.
        labels: Class names, as many as outputs, or two for one output: the second is what it is of.
        many: Whether several rows were sent.
    """
    flat = np.ascontiguousarray(answers.reshape(len(answers), -1), dtype="<f4")
    template, places = _template(flat.shape[1], tuple(labels), many)
    messages = np.empty((len(flat) if many else 1, len(template)), dtype=np.uint8)
    messages[:] = template
    messages[:, places] = flat[: len(messages)].view(np.uint8)
    return messages.tobytes()


def write_each(answers: npt.NDArray[Any], labels: Sequence[str]) -> list[bytes]:
    """Write Predictions for each of ``(events, outputs…)``; labels as in :func:`write_predictions`."""
    flat = np.ascontiguousarray(answers.reshape(len(answers), -1), dtype="<f4")
    template, places = _template(flat.shape[1], tuple(labels), False)
    messages = np.empty((len(flat), len(template)), dtype=np.uint8)
    messages[:] = template
    messages[:, places] = flat.view(np.uint8)
    data, size = messages.tobytes(), len(template)
    return [data[number * size : (number + 1) * size] for number in range(len(flat))]


@lru_cache(256)
def _template(
    outputs: int, labels: tuple[str, ...], many: bool
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp]]:
    """Return the bytes of one row's Predictions, and the positions in them that its answers take."""
    if outputs == 1 and len(labels) == 2:
        labels = labels[1:]
    if len(labels) != outputs:
        labels = ("",) * outputs
    content = b""
    ends = []
    for label in labels:
        text = label.encode(errors="replace")
        named = b"\x0a" + _varint(len(text)) + text if text else b""
        entry = named + b"\x15" + bytes(4)
        content += b"\x0a" + _varint(len(entry)) + entry
        ends.append(len(content))
    head = b"\x0a" + _varint(len(content)) if many else b""
    starts = np.array(ends, dtype=np.intp) + len(head) - 4
    return np.frombuffer(head + content, dtype=np.uint8), (starts[:, None] + np.arange(4)).ravel()


def _table(messages: Sequence[Any], *, many: bool) -> Table:
    """Make a table of any rows.

    Raises:
        EventError: When there are none, or they differ in model, keys or length.
    """
    if not messages:
        raise EventError("the DataFrame has no rows", _FORMS)
    model = messages[0].model
    keys = list(messages[0].key)
    count = len(messages[0].value)
    for number, message in enumerate(messages):
        where = f"row {number}" if many else "the row"
        if message.model not in ("", model):
            raise EventError(f"{where} is for {message.model!r}, the first for {model!r}", "Send one each")
        if len(message.value) != count or not count:
            what = "no values" if not message.value else f"{len(message.value)} values, the first has {count}"
            raise EventError(f"{where} has {what}", "Send one value for each key")
        if message.key and list(message.key) != keys:
            raise EventError(f"{where} has other keys than the first", "Give the same keys, or none")
    cells = np.fromiter(
        chain.from_iterable(message.value for message in messages), np.float32, len(messages) * count
    )
    return Table(cells.reshape(len(messages), count), model, tuple(keys) or None, many)


def _alike(body: bytes) -> Table | None:
    """Read a DataFrame whose rows from the second on differ in nothing but values; None for any other."""
    try:
        start, first_end = _first_row(body, 0)
        first = _layout(body[start:first_end])
        if first is None or first_end == len(body):
            return None
        start, end = _first_row(body, first_end)
        second = _layout(body[start:end])
    except (ValueError, IndexError, StopIteration):
        return None
    size = end - first_end
    if second is None or (len(body) - first_end) % size or second.size != first.size:
        return None
    if second.model not in ("", first.model) or second.keys not in (None, first.keys):
        return None
    rest = np.frombuffer(body, np.uint8, offset=first_end).reshape(-1, size)
    lo = start - first_end + len(second.head)
    hi = lo + 4 * second.size
    if (rest[:, :lo] != rest[0, :lo]).any() or (rest[:, hi:] != rest[0, hi:]).any():
        return None
    values: Rows = np.empty((len(rest) + 1, first.size), dtype="<f4")
    values[0] = np.frombuffer(body, "<f4", first.size, first_end - len(first.tail) - 4 * first.size)
    values[1:] = np.ascontiguousarray(rest[:, lo:hi]).view("<f4")
    return Table(values, first.model, first.keys)


def _first_row(body: bytes, at: int) -> tuple[int, int]:
    """Return where the row that a DataFrame has at a place starts and ends.

    Raises:
        ValueError: When there is none.
    """
    number, wire, start, end = next(_fields(body, at))
    if (number, wire) != (1, 2):
        raise ValueError("no row")
    return start, end


def _layout(body: bytes) -> Layout | None:
    """Find the values of a Row; None when it is none, or has none in one piece."""
    try:
        message = Row.FromString(body)
        if not message.value:  # such as a DataFrame, which has many fields
            return None
        spans = [(start, end) for number, _, start, end in _fields(body, 0) if number == 2]
    except (DecodeError, ValueError, IndexError):
        return None
    start, end = spans[0]
    if len(spans) != 1 or end - start != 4 * len(message.value):
        return None
    return Layout(body[:start], body[end:], len(message.value), message.model, tuple(message.key) or None)


def _fields(body: bytes, at: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type, start and end of a message's fields.

    Raises:
        ValueError: When it is damaged; IndexError, when it is cut short within a number.
    """
    while at < len(body):
        tag, at = _number(body, at)
        wire = tag & 7
        if wire == 2:
            size, at = _number(body, at)
        elif wire == 0:
            size = _number(body, at)[1] - at
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("a field of an unknown kind")
        if at + size > len(body):
            raise ValueError("a field that is cut short")
        yield tag >> 3, wire, at, at + size
        at += size


def _number(body: bytes, at: int) -> tuple[int, int]:
    """Read a varint; return it, and where it ends."""
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _varint(number: int) -> bytes:
    result = bytearray()
    while number > 127:
        result.append(number & 127 | 128)
        number >>= 7
    result.append(number)
    return bytes(result)
