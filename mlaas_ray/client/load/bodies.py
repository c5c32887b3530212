"""Requests for predictions of random rows, in each of the forms a service takes but Arrow's."""

from __future__ import annotations

import json
import random
import struct
import sys
from array import array
from collections.abc import Sequence
from urllib.parse import quote

from mlaas_ray.client.load.load import Call

Row = Sequence[float]


def draw_rows(count: int, width: int, seed: int = 1, *, whole: bool = False) -> list[list[float]]:
    """Draw rows of normally distributed numbers with four decimals, or of whole ones, 0 and 1.

    They are the same for the same seed.
    """
    draw = random.Random(seed)
    if whole:
        return [[draw.getrandbits(1) for _ in range(width)] for _ in range(count)]
    gauss = draw.gauss
    return [[round(gauss(0.0, 1.0), 4) for _ in range(width)] for _ in range(count)]


def json_call(model: str, keys: Sequence[str] | None, rows: Sequence[Row]) -> Call:
    """Ask ``/json`` as TFaaS's clients do; several rows as a list of lists.

    Args:
        model: ``name`` or ``name:version``.
        keys: The columns; f0, f1, … when the model knows none.
        rows: The values, in their order.
    """
    names = list(keys) if keys else [f"f{number}" for number in range(len(rows[0]))]
    values = rows[0] if len(rows) == 1 else rows
    body = json.dumps({"keys": names, "values": values, "model": model}).encode()
    return Call("/json", body, {"Content-Type": "application/json"}, len(rows))


def proto_call(model: str, keys: Sequence[str] | None, rows: Sequence[Row]) -> Call:
    """Ask ``/proto`` with a Row of TFaaS's tfaas.proto; several rows as a DataFrame of them.

    A Row has ``repeated string key = 1``, ``repeated float value = 2`` and ``string model = 3``; a DataFrame
    has ``repeated Row row = 1``. Arguments as for :func:`json_call`.
    """
    names = list(keys) if keys else [f"f{number}" for number in range(len(rows[0]))]
    before = b"".join(_field(1, name.encode()) for name in names)
    after = _field(3, model.encode())
    messages = [before + _field(2, struct.pack(f"<{len(row)}f", *row)) + after for row in rows]
    body = messages[0] if len(rows) == 1 else b"".join(_field(1, message) for message in messages)
    return Call("/proto", body, {"Content-Type": "application/x-protobuf"}, len(rows))


def raw_call(model: str, keys: Sequence[str] | None, rows: Sequence[Row]) -> Call:
    """Ask a model's own route with little-endian float32, row after row; it has no place for keys."""
    values = array("f", [value for row in rows for value in row])
    if sys.byteorder == "big":
        values.byteswap()
    headers = {"Content-Type": "application/octet-stream"}
    return Call(predict_path(model), values.tobytes(), headers, len(rows))


def predict_path(model: str) -> str:
    """Return a model's own route for predictions."""
    return f"/models/{quote(model, safe=':')}/predict"


def _field(number: int, content: bytes) -> bytes:
    """Encode a length-delimited field (https://protobuf.dev/programming-guides/encoding)."""
    length, size = len(content), bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + content
