"""One connection to a service, with at most one request in flight."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from mlaas_ray.client.load.reply import BadReplyError, Head, ReplyReader


class Owner(Protocol):
    """Who opens connections and learns what becomes of their requests."""

    def opened(self, connection: Connection) -> None:
        """A connection is there, free."""
        ...

    def answered(self, connection: Connection, head: Head, reader: ReplyReader) -> None:
        """The request in flight has its reply, which the reader holds."""
        ...

    def failed(self, connection: Connection, kind: str) -> None:
        """The request in flight will have no reply."""
        ...

    def closed(self, connection: Connection) -> None:
        """The connection is gone."""
        ...


class Connection(asyncio.Protocol):
    """A connection that is kept from request to request.

    Attributes:
        number: The request in flight; -1 without one.
        due: When it was due.
        sent: When it was sent.
        pause: Seconds to wait before another is opened in its place.
    """

    __slots__ = ("_owner", "_reader", "_transport", "_write", "due", "number", "pause", "sent")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._reader = ReplyReader()
        self.number = -1
        self.due = self.sent = self.pause = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Offer the connection."""
        self._transport = cast(asyncio.Transport, transport)
        self._write = self._transport.write
        self._owner.opened(self)

    def send(self, number: int, request: bytes, due: float, now: float) -> None:
        """Send a request: the bytes of all of it."""
        self.number = number
        self.due = due
        self.sent = now
        self._write(request)

    def data_received(self, data: bytes) -> None:
        """Read on; a whole reply ends the request."""
        if self.number < 0:  # nobody asked: a 408 to one who is silent, say
            self._transport.abort()
            return
        try:
            head = self._reader.feed(data)
        except BadReplyError:
            self.fail("bad_reply")
            return
        if head is not None:
            self._owner.answered(self, head, self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the request in flight: with its reply, if that ends so, or without."""
        if self.number >= 0:
            head = self._reader.finish() if exc is None else None
            if head is not None:
                self._owner.answered(self, head, self._reader)
            else:
                self._owner.failed(self, kind_of(exc) if exc else "connection_closed")
        self._owner.closed(self)

    def fail(self, kind: str) -> None:
        """Give the request in flight up, and the connection with it."""
        self._owner.failed(self, kind)
        self._transport.abort()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once; what is in flight does not count."""
        self.number = -1
        self._transport.abort()


def kind_of(error: BaseException) -> str:
    """Name a failure of a connection, as reports count it."""
    if isinstance(error, ConnectionRefusedError):
        return "connection_refused"
    if isinstance(error, ConnectionResetError | BrokenPipeError | ConnectionAbortedError):
        return "connection_reset"
    if isinstance(error, TimeoutError):
        return "connect_timeout"
    return "connection_failed"
