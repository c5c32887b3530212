"""Formats of requests and answers: which media type means which, and how rows are read and answers written.

=================================== ======================== ===============================================
media type                          request                  answer
=================================== ======================== ===============================================
application/json                    as /json                 ``[p0, …]``, or ``[[p0, …], …]`` for many rows
application/x-protobuf              Row, DataFrame           Predictions, PredictionsList
application/vnd.apache.arrow.stream a table                  a column ``prediction``
application/x-npy                   numbers                  ``(events, outputs…)``
application/octet-stream            float32, row after row   float32, row after row; X-Outputs: how many a row
=================================== ======================== ===============================================

In all but JSON and protobuf one row is a table of one row. NaN is a missing value; infinity is refused.
Answers have the model's type; in protobuf and raw rows they are float32.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from mlaas_ray.core.errors import EventError, MlaasError
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.inference.arrow import read_stream, write_stream
from mlaas_ray.inference.events import Query
from mlaas_ray.inference.rows import FLOAT32, Table
from mlaas_ray.inference.wire import read_message, write_predictions

# Rows may be larger than the body they came in, where columns are left out; not by more than this.
LARGER = 16

# in the type that a model takes
Sent = npt.NDArray[Any]
Answers = npt.NDArray[Any]


class UnknownFormatError(MlaasError):
    """A body of a media type that is not read."""


class NotAcceptableError(MlaasError):
    """An answer is wanted in media types that are not written."""


@dataclass(frozen=True)
class Target:
    """What rows are read for.

    Attributes:
        model: As the path names it.
        spec: The model's columns; None in a model that came from elsewhere.
        width: Values a row has.
        limit: Most bytes of a body.
        dtype: Type of the model's values.
    """

    model: str
    spec: FeatureSpec | None
    width: int
    limit: int
    dtype: np.dtype[Any] = FLOAT32


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        types: Its media types; the first is that of an answer.
        read: Turns a body into rows ``(events, features)``, and tells whether many may have been sent.
        write: Turns answers ``(events, outputs…)`` into a body, given the class names and whether many were
            sent.
    """

    types: tuple[str, ...]
    read: Callable[[bytes, Target], tuple[Sent, bool]]
    write: Callable[[Answers, Sequence[str], bool], bytes]


def format_of(content_type: str | None) -> Format:
    """Return the format that a Content-Type names.

    Raises:
        UnknownFormatError: For another, or none.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    found = _BY_TYPE.get(kind)
    if found is None:
        what = f"Content-Type {kind} is not read" if kind else "the request has no Content-Type"
        raise UnknownFormatError(what, f"Send {_LISTED}")
    return found


def answer_format(accept: str, sent: Format) -> Format:
    """Return the format to answer in: of those accepted most, the one that was sent, else the first we have.

    Args:
        accept: The header Accept; empty when there is none.
        sent: What the request came in.

    Raises:
        NotAcceptableError: When none of ours is accepted.
    """
    if not accept or accept == "*/*":
        return sent
    ranges = _ranges(accept)
    candidates = [sent, *(other for other in FORMATS if other is not sent)]
    best = max(candidates, key=lambda candidate: _quality(candidate, ranges))  # the first of equals
    if _quality(best, ranges) <= 0:
        raise NotAcceptableError(f"no answer is given as {accept[:100]}", f"Accept {_LISTED}")
    return best


def _ranges(accept: str) -> dict[str, float]:
    """Return the quality of each media range of a header Accept; of one that is malformed, 0."""
    ranges = {}
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            ranges[kind] = min(max(float(quality), 0.0), 1.0)
        except ValueError:
            ranges[kind] = 0.0
    return ranges


def _quality(candidate: Format, ranges: dict[str, float]) -> float:
    """Return how much a format is wanted: as the most specific range that fits says."""
    named = [ranges[kind] for kind in candidate.types if kind in ranges]
    return max(named) if named else ranges.get("application/*", ranges.get("*/*", 0.0))


def _read_json(body: bytes, target: Target) -> tuple[Sent, bool]:
    query = Query.parse(body)
    _check_model(query.model, target)
    return query.rows(target.spec, target.width, target.dtype)


def _read_protobuf(body: bytes, target: Target) -> tuple[Sent, bool]:
    table = read_message(body)
    _check_model(table.model, target)
    return table.rows(target.spec, target.width, target.dtype)


def _read_arrow(body: bytes, target: Target) -> tuple[Sent, bool]:
    return read_stream(body, target.spec, target.width, LARGER * target.limit, target.dtype), True


def _read_npy(body: bytes, target: Target) -> tuple[Sent, bool]:
    values = _array(body)
    if values.dtype.kind not in "biuf":
        raise EventError(f"the npy array is of {values.dtype}, not of numbers", "Save it as float32")
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2:
        raise EventError(f"the npy array has the shape {values.shape}", f"Save it as (rows, {target.width})")
    return Table(values).rows(target.spec, target.width, target.dtype)


def _read_raw(body: bytes, target: Target) -> tuple[Sent, bool]:
    row = 4 * target.width
    if len(body) % row:
        raise EventError(
            f"the body has {len(body)} bytes, but a row of {target.width} float32 has {row}",
            f"Send a multiple of {row} bytes, little-endian, row after row",
        )
    values = np.frombuffer(body, "<f4").reshape(-1, target.width)
    return Table(values).rows(target.spec, target.width, target.dtype)


def _array(body: bytes) -> npt.NDArray[Any]:
    """Return the array of an npy file without a copy.

    Raises:
        EventError: When it is none, or cut short.
    """
    file = io.BytesIO(body)
    formats = np.lib.format
    try:
        read = {(1, 0): formats.read_array_header_1_0, (2, 0): formats.read_array_header_2_0}
        version = formats.read_magic(file)
        shape, fortran, dtype = read[version](file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        count = 1
        for size in shape:
            count *= size
        if count * dtype.itemsize != len(body) - file.tell():
            raise ValueError(f"{shape} of {dtype} are not {len(body) - file.tell()} bytes")
        values = np.frombuffer(body, dtype, count, file.tell()) if count else np.empty(0, dtype)
    except KeyError:
        raise EventError("the npy file is of a newer version", "Save it with numpy.save") from None
    except (
        ValueError,
        TypeError,
        SyntaxError,
        EOFError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EventError(f"the body is no npy file: {reason[:200]}", "Save it with numpy.save") from None
    return values.reshape(shape, order="F" if fortran else "C")


def _check_model(named: str, target: Target) -> None:
    """Refuse a body that names another model than the path."""
    if named not in ("", target.model, target.model.partition(":")[0]):
        raise EventError(f"the path is of {target.model!r}, the body of {named!r}", "Leave one out")


def _write_json(answers: Answers, _labels: Sequence[str], many: bool) -> bytes:
    content = np.ascontiguousarray(answers if many else answers[0])
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def _write_protobuf(answers: Answers, labels: Sequence[str], many: bool) -> bytes:
    return write_predictions(answers, labels, many=many)


def _write_arrow(answers: Answers, _labels: Sequence[str], _many: bool) -> bytes:
    return write_stream(answers.reshape(len(answers), -1))


def _write_npy(answers: Answers, _labels: Sequence[str], _many: bool) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(answers), allow_pickle=False)
    return file.getvalue()


def _write_raw(answers: Answers, _labels: Sequence[str], _many: bool) -> bytes:
    return answers.astype("<f4", copy=False).tobytes()


JSON = Format(("application/json",), _read_json, _write_json)
PROTOBUF = Format(("application/x-protobuf", "application/protobuf"), _read_protobuf, _write_protobuf)
ARROW = Format(("application/vnd.apache.arrow.stream",), _read_arrow, _write_arrow)
NPY = Format(("application/x-npy", "application/npy"), _read_npy, _write_npy)
RAW = Format(("application/octet-stream",), _read_raw, _write_raw)

FORMATS = (JSON, PROTOBUF, ARROW, NPY, RAW)

_BY_TYPE = {kind: one for one in FORMATS for kind in one.types}
_LISTED = ", ".join(one.types[0] for one in FORMATS)
