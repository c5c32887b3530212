"""Desk: where connections hand in the usual requests, one row each, and get their answers.

What comes in one turn of the event loop for one model is a block from then on: sent off and written as an
answer together; and the blocks of all models whose rows are alike are placed into columns together. So a row
costs little more than its bytes.

The desk takes what it understands at once and leaves the rest: whatever it does not take goes the general
way, where it is answered or refused. So there is one place that says what is wrong with a request, and this
is not it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from starlette.requests import Request

from mlaas_ray.inference.batcher import Answer
from mlaas_ray.inference.catalog import Entry
from mlaas_ray.inference.events import Query
from mlaas_ray.inference.predictor import BULK_ROWS, Predictor
from mlaas_ray.inference.replies import error_reply
from mlaas_ray.inference.routes import Routes
from mlaas_ray.inference.rows import FLOAT32, ArrayRow, Placement, SingleRow, place, placement_of, read_row
from mlaas_ray.inference.runtimes import Predictions
from mlaas_ray.inference.status import Status
from mlaas_ray.inference.wire import read_message, read_row_message, write_each

if TYPE_CHECKING:
    from mlaas_ray.inference.protocol import CoalescingProtocol

logger = logging.getLogger("ray.serve")

Row = SingleRow | ArrayRow

# No block is so large that it would be held to be one caller's bulk.
BLOCK_ROWS = BULK_ROWS // 2

_JSON = orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True)
class Language:
    """How rows and answers are written on a path.

    Attributes:
        path: The path.
        kind: The answer's media type.
        read: Reads a row; None for what it does not understand.
        write: Writes the answers ``(events, outputs…)``, each for itself.
        explain: Reads a body in general, and says what is wrong.
    """

    path: str
    kind: bytes
    read: Callable[[bytes], Row | None]
    write: Callable[[Predictions, Entry], Sequence[bytes]]
    explain: Callable[[bytes, Entry], object]


@dataclass(slots=True)
class _Block:
    """Rows of one turn that are alike, for one model."""

    entry: Entry
    placement: Placement
    language: Language
    since: float
    rows: list[Row] = field(default_factory=list)
    asked: list[tuple[CoalescingProtocol, bytes]] = field(default_factory=list)


class Desk:
    """Takes requests for predictions of one row.

    Args:
        routes: Which version answers.
        predictor: Predicts.
        status: Counts.

    Attributes:
        connections: That were made so far: above 0, connections come to this desk.
        taken: Requests that were.
        active: Connections that were given an answer in this period.
        period: Number of the time between two reports.
    """

    def __init__(self, routes: Routes, predictor: Predictor, status: Status) -> None:
        self._routes = routes
        self._predictor = predictor
        self._status = status
        self._prefix = secrets.token_hex(6).encode()
        self._languages = {
            path.encode(): language
            for language in (_JSON_LANGUAGE, _MESSAGES)
            for path in (language.path, f"/predict{language.path}")
        }
        self._blocks: dict[tuple[Any, ...], _Block] = {}
        self._full: list[_Block] = []
        # Within a turn, a name stands for the same version.
        self._entries: dict[str, Entry] = {}
        self.connections = 0
        self.taken = 0
        self.active = 0
        self.period = 0

    def next_period(self) -> int:
        """Begin another period; return how many connections were active in the last one."""
        active, self.active = self.active, 0
        self.period += 1
        return active

    def language(self, path: bytes) -> Language | None:
        """Return how rows are written that come to a path; None where the desk takes none."""
        return self._languages.get(path)

    def next_id(self) -> bytes:
        """Return an id for a request that brings none."""
        return b"%b-%d" % (self._prefix, self.taken)

    def take(self, body: bytes, language: Language, connection: CoalescingProtocol) -> bool:
        """Take a row; tell whether it was taken.

        Its answer is given by :meth:`CoalescingProtocol.answer`, in a later turn of the event loop.
        """
        row = language.read(body)
        if row is None:
            return False
        entry = self._entries.get(row.model) or self._routes.glance(row.model)
        if entry is None:
            return False
        placement = placement_of(row, entry.features, entry.width)
        if placement is None:
            return False
        alike = (entry.key, placement, language.path)
        block = self._blocks.get(alike)
        if block is None:
            if entry.dtype != FLOAT32:  # the decoders here read nothing else
                return False
            if not self._blocks and not self._full:
                asyncio.get_running_loop().call_soon(self._send)
            block = self._blocks[alike] = _Block(entry, placement, language, time.perf_counter())
            self._entries[row.model] = entry
        block.rows.append(row)
        block.asked.append((connection, body))
        if len(block.rows) == BLOCK_ROWS:
            self._full.append(self._blocks.pop(alike))
        self.taken += 1
        return True

    def _send(self) -> None:
        """Send off what came in this turn."""
        blocks = [*self._full, *self._blocks.values()]
        self._full, self._blocks, self._entries = [], {}, {}
        together: dict[tuple[Placement, str], list[_Block]] = {}
        for block in blocks:
            together.setdefault((block.placement, block.language.path), []).append(block)
        for (placement, _), alike in together.items():
            self._send_alike(alike, placement)

    def _send_alike(self, blocks: list[_Block], placement: Placement) -> None:
        """Send off the blocks whose rows are placed alike."""
        self._status.load.change(sum([len(block.rows) for block in blocks]))
        try:
            rows = place([row for block in blocks for row in block.rows], placement)
            bad: Any = np.isinf(rows).any(axis=1)
            any_bad = bad.any()
        except Exception as error:  # the border: whatever it is, the clients get an answer
            for block in blocks:
                self._done(block, error)
            return
        start = 0
        for block in blocks:
            end = start + len(block.rows)
            own = rows[start:end]
            try:
                if any_bad and bad[start:end].any():
                    self._set_aside(block, bad[start:end])
                    own = own[~bad[start:end]]
                if len(own):
                    self._predictor.add(block.entry, own, partial(self._done, block))
            except Exception as error:
                self._done(block, error)
            start = end

    def _set_aside(self, block: _Block, bad: Any) -> None:
        """Refuse the rows with a value that is too large, and keep the others."""
        refused = [asked for asked, is_bad in zip(block.asked, bad, strict=True) if is_bad]
        block.asked = [asked for asked, is_bad in zip(block.asked, bad, strict=True) if not is_bad]
        self._status.load.change(-len(refused))
        for connection, body in refused:
            try:
                block.language.explain(body, block.entry)
            except Exception as error:
                self._refuse(error, block, connection)

    def _refuse_some(self, block: _Block, answers: list[Answer]) -> Answer:
        """Refuse the rows that the model fails with, and return the answers of the others."""
        good = [answer for answer in answers if not isinstance(answer, BaseException)]
        asked, block.asked = block.asked, []
        self._status.load.change(len(good) - len(asked))
        for one, answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException):
                self._refuse(answer, block, one[0])
            else:
                block.asked.append(one)
        return np.concatenate(good) if good else np.empty((0, 1), np.float32)

    def _done(self, block: _Block, answer: Answer | list[Answer]) -> None:
        """Give everybody their answer."""
        if isinstance(answer, list):
            answer = self._refuse_some(block, answer)
            if not block.asked:
                return
        entry, asked = block.entry, block.asked
        self._status.load.change(-len(asked))
        bodies: Sequence[bytes] = ()
        if not isinstance(answer, BaseException):
            try:
                if len(answer) != len(asked):
                    raise RuntimeError(f"{entry.key} gave {len(answer)} answers to {len(asked)} rows")
                bodies = block.language.write(answer, entry)
            except Exception as error:  # an answer that cannot be written
                answer = error
        if isinstance(answer, BaseException):
            for connection, _ in asked:
                self._refuse(answer, block, connection)
            return
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nx-model: %b\r\n" % (
            block.language.kind,
            str(entry.key).encode(),
        )
        self._status.count("POST", 200, len(asked))
        self._status.predicted(
            entry.key.name, len(asked), time.perf_counter() - block.since, requests=len(asked)
        )
        for (connection, _), body in zip(asked, bodies, strict=True):
            _hand(connection, head, body)

    def _refuse(self, error: BaseException, block: _Block, connection: CoalescingProtocol) -> None:
        """Answer an error as the application would."""
        headers = [(b"x-request-id", connection.request_id)]
        scope = {"type": "http", "method": "POST", "path": block.language.path, "headers": headers}
        reply = error_reply(error, Request(scope))  # type: ignore[arg-type]
        head = b"HTTP/1.1 %d \r\n" % reply.status_code
        for name, value in reply.raw_headers:
            if name != b"content-length":
                head += b"%b: %b\r\n" % (name, value)
        self._status.count("POST", reply.status_code)
        _hand(connection, head, bytes(reply.body))


def _hand(connection: CoalescingProtocol, head: bytes, body: bytes) -> None:
    try:
        connection.answer(head, body)
    except Exception:
        # One connection's trouble is not the others'.
        logger.exception("an answer could not be handed over")


def _write_json(answers: Predictions, _entry: Entry) -> Sequence[bytes]:
    if answers.ndim == 2 and answers.shape[1]:
        # One call for all, taken apart: the numbers are written as they would be each for itself.
        text = orjson.dumps(np.ascontiguousarray(answers), option=_JSON)
        return [b"[%b]\n" % part for part in text[2:-2].split(b"],[")]
    return [orjson.dumps(np.ascontiguousarray(one), option=_JSON) + b"\n" for one in answers]


def _write_messages(answers: Predictions, entry: Entry) -> Sequence[bytes]:
    return write_each(answers, entry.labels)


def _explain_json(body: bytes, entry: Entry) -> object:
    return Query.parse(body).rows(entry.features, entry.width)


def _explain_message(body: bytes, entry: Entry) -> object:
    return read_message(body).rows(entry.features, entry.width)


_JSON_LANGUAGE = Language("/json", b"application/json", read_row, _write_json, _explain_json)
_MESSAGES = Language(
    "/proto", b"application/octet-stream", read_row_message, _write_messages, _explain_message
)
