"""Protocol: the usual requests for predictions, taken from the connection itself.

As an ASGI request of its own, one row by ``/json`` or ``/proto`` costs 300 microseconds of CPU; as bytes, 4.
So a connection looks at what comes first: a request it knows (:class:`Desk` says which) is answered here, its
row gathered with others'; any other, and whatever is unusual about one (a chunked body, a name in another
case, a value that is no number), goes on as bytes to uvicorn's protocol, which this one is, and from there
through Serve to the application, as if nobody had looked. What is wrong with a request is said there.

Serve offers no place for a protocol, but a hook where replicas ask for their middlewares before they listen
(``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``), and uvicorn a table of its protocols by name. Where either
should change, requests take the plain way; the service's start looks which one they take.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from asyncio import TimerHandle, Transport

    from mlaas_ray.inference.desk import Desk

logger = logging.getLogger("ray.serve")

# Bytes of a request that are kept here while the rest of it comes, and for how long, seconds.
MOST_BYTES = 1 << 16
PATIENCE_S = 1.0
# Heads that are remembered, and the longest such.
KNOWN_HEADS = 1024
LONGEST_HEAD = 4096
_HEAD_END = b"\r\n\r\n"
_VERSION = b" HTTP/1.1"
# Headers as RFC 9110 has them. Two programs that read any others differently see different requests.
_WELL_FORMED = re.compile(rb"(?:\r\n[!#-'*+\-.0-9A-Z^-z|~]+:[\t\x20-\x7e\x80-\xff]*)+\r\n")
# Whatever changes how a body is read or an answer is given is uvicorn's to deal with. What browsers send
# is the application's to judge.
_UNUSUAL = re.compile(
    rb"\r\n(?:transfer-encoding|content-encoding|expect|upgrade|x-request-timeout-seconds|origin|sec-fetch-site"
    rb"|(?:proxy-)?connection(?!:[ \t]*keep-alive[ \t]*\r))",
    re.IGNORECASE,
)
# of any that begins so; a number only where it is one
_LENGTH = re.compile(rb"\r\ncontent-length(?::[ \t]*(\d{1,8})[ \t]*(?=\r\n))?", re.IGNORECASE)
_NUMBER = re.compile(rb"\r\nx-request-id:[ \t]*([\x21-\x7e]{1,128})[ \t]*\r\n", re.IGNORECASE)

_desk: Desk | None = None


def install(desk: Desk | None) -> None:
    """Let connections of this process that begin from now on ask this desk."""
    global _desk
    _desk = desk


def middlewares() -> list[Any]:
    """Serve's hook, called in every replica that is about to listen; of ours, only gateways have a desk."""
    if _desk is not None:
        uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:CoalescingProtocol"
        logger.info("rows are gathered before Serve sees a request")
    return []


class Head(NamedTuple):
    """What a request's head says.

    Attributes:
        path: Where a usual request goes; empty for any other.
        length: Bytes of its body.
        request_id: The id it brings.
    """

    path: bytes = b""
    length: int = 0
    request_id: bytes | None = None


_heads: dict[bytes, Head] = {}


def _read_head(head: bytes) -> Head:
    """Read a head that ends with an empty line; one that is unusual in any way has no path."""
    line = head.find(b"\r\n")
    fields = head[line:-2]
    if not head.startswith(b"POST ") or head[line - 9 : line] != _VERSION:
        return Head()
    length = _LENGTH.search(fields)
    if length is None or length[1] is None or _LENGTH.search(fields, length.end()):
        return Head()
    if not _WELL_FORMED.fullmatch(fields) or _UNUSUAL.search(fields):
        return Head()
    number = _NUMBER.search(fields)
    return Head(head[5 : line - 9], int(length[1]), number[1] if number else None)


class CoalescingProtocol(HttpToolsProtocol):
    """A connection: the usual requests to the desk, all others to uvicorn, each answered in its turn.

    Attributes:
        request_id: Of the request that the desk has.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._desk = _desk
        # What came and is not dealt with yet. While a request is being answered, the next ones stay here.
        self._bytes = b""
        self._asked = False
        self.request_id = b""
        self._in_message = False
        self._closing = False
        self._period = -1
        self._active = 0.0
        self._idle: TimerHandle | None = None
        self._stalled: TimerHandle | None = None
        self._going = False

    # What uvicorn's protocol and asyncio call

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        if self._desk is not None:
            self._desk.connections += 1
            self._active = self.loop.time()
            self._idle = self.loop.call_later(self.timeout_keep_alive, self._look_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        """End; an answer that comes now is nobody's."""
        for timer in (self._idle, self._stalled):
            if timer is not None:
                timer.cancel()
        self._idle = self._stalled = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._desk is None or self._in_message:
            super().data_received(data)
            return
        self._bytes = self._bytes + data if self._bytes else data
        if not self._going:
            self._go_on()

    def on_message_begin(self) -> None:
        """Note that uvicorn's parser is in the middle of a request."""
        self._in_message = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Note that it is through."""
        self._in_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with what came meanwhile."""
        super().on_response_complete()
        if self._desk is None or self.transport.is_closing():
            return
        # Ours looks after idle connections, whoever answered last.
        self._unset_keepalive_if_required()
        self._active = self.loop.time()
        if self._bytes and not self._going:
            self._go_on()

    def resume_writing(self) -> None:
        """Go on: the client takes its answers."""
        super().resume_writing()
        self.flow.resume_reading()
        if self._bytes and self._stalled is None and not self._going:
            self._go_on()

    def shutdown(self) -> None:
        """Close when the request that is being answered, or is still coming, is."""
        if self._asked:
            self._closing = True
            return
        if self._stalled is not None:
            self._stalled.cancel()
            self._pass_on_stalled()
        super().shutdown()

    # Ours

    def answer(self, head: bytes, body: bytes) -> None:
        """Send an answer and go on.

        Args:
            head: Status line and headers, each with its line end; without the length.
            body: The body.
        """
        self._asked = False
        transport = self.transport
        if transport.is_closing():
            return
        desk = self._desk
        if desk is not None and self._period != desk.period:
            self._period = desk.period
            desk.active += 1
        transport.write(
            b"%b%bx-request-id: %b\r\ncontent-length: %d\r\n%b\r\n%b"
            % (
                head,
                # the date and the server's name
                b"".join([b"%b: %b\r\n" % header for header in self.server_state.default_headers]),
                self.request_id,
                len(body),
                b"connection: close\r\n" if self._closing else b"",
                body,
            )
        )
        self.server_state.total_requests += 1
        self._active = self.loop.time()
        if self._closing:
            transport.close()
            return
        self.flow.resume_reading()
        if self._bytes and not self._going:
            self._go_on()

    def _go_on(self) -> None:
        """Deal with the requests that came, one after the other."""
        self._going = True
        try:
            while self._bytes and self._deal():
                pass
        finally:
            self._going = False

    def _deal(self) -> bool:
        """Deal with the first request that came; tell whether the next one's turn is at once."""
        if self._asked or self.flow.write_paused or self._answering():
            # Whoever sends on and on without waiting for answers, or taking them, is not read from.
            if len(self._bytes) > MOST_BYTES:
                self.flow.pause_reading()
            return False
        length = self._take()
        if length is None:
            # The application says how long it waits for a body, and what it says then.
            if self._stalled is None:
                self._stalled = self.loop.call_later(PATIENCE_S, self._pass_on_stalled)
            return False
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if length == 0:
            self._pass_on(self._bytes)
            return False
        return True

    def _answering(self) -> bool:
        """Tell whether uvicorn has a request to answer first."""
        cycle = self.cycle
        return self._in_message or bool(self.pipeline) or (cycle is not None and not cycle.response_complete)

    def _take(self) -> int | None:
        """Take the first request if it is a usual one.

        Returns:
            Its length; 0 when it is for uvicorn; None when more of it must come first.
        """
        data = self._bytes
        end = data.find(_HEAD_END) + 4
        desk = self._desk
        if end < 4 or desk is None:
            # Heads that come in pieces are rare, and uvicorn's parser takes pieces.
            return 0
        head = data[:end]
        # A program's requests have the same head again and again.
        usual = _heads.get(head)
        if usual is None:
            usual = _read_head(head)
            # Ids differ, as do the heads of other requests: they would only push the usual ones out.
            if usual.path and len(head) <= LONGEST_HEAD and b"x-request-id" not in head.lower():
                if len(_heads) >= KNOWN_HEADS:
                    _heads.clear()
                _heads[head] = usual
        language = desk.language(usual.path)
        total = end + usual.length
        if language is None or total > MOST_BYTES:
            return 0
        if len(data) < total:
            return None
        self._bytes = data[total:]
        self.request_id = usual.request_id or desk.next_id()
        self._asked = True
        if not desk.take(data[end:total], language, self):
            self._asked = False
            self._pass_on(data[:total], self._bytes)
        return total

    def _pass_on(self, data: bytes, rest: bytes = b"") -> None:
        """Give bytes to uvicorn; the rest stays until it has answered."""
        self._bytes = rest
        super().data_received(data)

    def _pass_on_stalled(self) -> None:
        self._stalled = None
        self._pass_on(self._bytes)

    def _look_if_idle(self) -> None:
        """Close a connection that nobody used for long: one timer a connection, not one a request."""
        self._idle = None
        if self.transport.is_closing() or self.transport.get_protocol() is not self:  # now a WebSocket's
            return
        left = self._active + self.timeout_keep_alive - self.loop.time()
        if self._asked or self._bytes or self._answering():
            left = self.timeout_keep_alive
        elif left <= 0:
            self.transport.close()
            return
        self._idle = self.loop.call_later(left, self._look_if_idle)
