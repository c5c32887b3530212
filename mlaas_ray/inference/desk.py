"""Desk: where a connection hands in the usual requests, one row each, and gets their answers.

It takes what it understands at once and leaves the rest: whatever it does not take goes the general way,
where it is answered or refused. So there is one place that says what is wrong with a request, and this is not
it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from starlette.requests import Request

from mlaas_ray.inference.batcher import Answer
from mlaas_ray.inference.busy import BusyError
from mlaas_ray.inference.catalog import Entry
from mlaas_ray.inference.predictor import Predictor
from mlaas_ray.inference.replies import error_reply
from mlaas_ray.inference.routes import Routes
from mlaas_ray.inference.rows import place_row, read_row
from mlaas_ray.inference.status import Status
from mlaas_ray.inference.wire import read_row_message, write_predictions

if TYPE_CHECKING:
    from mlaas_ray.inference.protocol import CoalescingProtocol

Counter = Callable[[bytes, "CoalescingProtocol"], bool]
Write = Callable[[Entry, Any], bytes]

_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


class Desk:
    """Takes requests for predictions of one row.

    Args:
        routes: Which version answers.
        predictor: Predicts.
        status: Counts.

    Attributes:
        connections: That were made so far: above 0, connections come to this desk.
        taken: Requests that were.
    """

    def __init__(self, routes: Routes, predictor: Predictor, status: Status) -> None:
        self._routes = routes
        self._predictor = predictor
        self._status = status
        self._prefix = secrets.token_hex(6).encode()
        self._counters: dict[bytes, Counter] = {
            b"/json": self.json,
            b"/predict/json": self.json,
            b"/proto": self.proto,
            b"/predict/proto": self.proto,
        }
        self._labels: dict[Entry, list[str]] = {}
        self.connections = 0
        self.taken = 0

    def counter(self, path: bytes) -> Counter | None:
        """Return what takes requests to a path; None where nothing here does."""
        return self._counters.get(path)

    def next_id(self) -> bytes:
        """Return an id for a request that brings none."""
        return b"%b-%d" % (self._prefix, self.taken)

    def json(self, body: bytes, connection: CoalescingProtocol) -> bool:
        """Take a row as JSON; tell whether it was taken."""
        return self._take(read_row(body), connection, "/json", b"application/json", _json)

    def proto(self, body: bytes, connection: CoalescingProtocol) -> bool:
        """Take a row as a message; tell whether it was taken."""
        return self._take(
            read_row_message(body), connection, "/proto", b"application/octet-stream", self._message
        )

    def _take(self, row: Any, connection: CoalescingProtocol, path: str, kind: bytes, write: Write) -> bool:
        if row is None:
            return False
        entry = self._routes.glance(row.model)
        if entry is None:
            return False
        values = place_row(row, entry.features, entry.width)
        if values is None:
            return False
        start = time.perf_counter()
        status = self._status

        def done(answer: Answer) -> None:
            status.load.change(-1)
            if isinstance(answer, BaseException):
                _refuse(answer, connection, path, status)
                return
            try:
                body = write(entry, answer)
            except Exception as error:  # such as answers that are no numbers, or labels that are damaged
                _refuse(error, connection, path, status)
                return
            head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nx-model: %b\r\n" % (kind, str(entry.key).encode())
            connection.answer(head, body)
            status.count("POST", 200)
            status.predicted(entry.key.name, 1, time.perf_counter() - start)

        self.taken += 1
        status.load.change(1)
        try:
            self._predictor.add(entry, values[None], done)
        except BusyError as error:
            done(error)
        return True

    def _message(self, entry: Entry, answer: Any) -> bytes:
        labels = self._labels.get(entry)
        if labels is None:
            labels = self._labels[entry] = entry.package.labels
        return write_predictions(answer, labels, many=False)


def _json(_entry: Entry, answer: Any) -> bytes:
    return orjson.dumps(np.ascontiguousarray(answer[0]), option=_JSON)


def _refuse(error: BaseException, connection: CoalescingProtocol, path: str, status: Status) -> None:
    """Answer an error as the application would."""
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    reply = error_reply(error, Request(scope))  # type: ignore[arg-type]
    head = b"HTTP/1.1 %d \r\n" % reply.status_code
    for name, value in reply.raw_headers:
        if name != b"content-length":
            head += b"%b: %b\r\n" % (name, value)
    connection.answer(head, bytes(reply.body))
    status.count("POST", reply.status_code)
