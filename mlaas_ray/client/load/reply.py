"""HTTP replies as they come off a connection, in whatever pieces: as much of HTTP/1.1 as a load needs."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

# More than any head; a reply without an end of its head within it is none.
_HEAD_BYTES = 65_536
_END = b"\r\n\r\n"


class BadReplyError(ValueError):
    """What came is no HTTP/1.1 reply."""


class Head(NamedTuple):
    """What a reply's head says.

    Attributes:
        status: The status code.
        length: Bytes of the body; None when they are chunked, or end with the connection.
        chunked: Whether the body comes in chunks that say their lengths.
        close: Whether the server ends the connection after it.
        retry_after: Seconds after which to ask again, when it says so; a date counts as a second.
    """

    status: int
    length: int | None
    chunked: bool
    close: bool
    retry_after: float | None


# Replies of one service have the same few heads, but for a date that changes once a second.
@lru_cache(maxsize=256)
def parse_head(data: bytes) -> Head:
    """Parse a head, without the empty line that ends it.

    Raises:
        BadReplyError: When it is none.
    """
    line, *lines = data.split(b"\r\n")
    version, _, rest = line.partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
        raise BadReplyError(f"the reply begins with {line[:40]!r}")
    status = int(rest[:3])
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)
    }
    chunked = fields.get(b"transfer-encoding", b"").lower().endswith(b"chunked")
    size = fields.get(b"content-length")
    if size is not None and not size.isdigit():
        raise BadReplyError(f"the reply's Content-Length is {size[:40]!r}")
    connection = fields.get(b"connection", b"").lower()
    close = b"close" in connection or (version == b"HTTP/1.0" and b"keep-alive" not in connection)
    length = None if chunked or size is None else int(size)
    if status < 200 or status in (204, 304):
        chunked, length = False, 0
    wait = fields.get(b"retry-after")
    retry_after = None if wait is None else float(wait) if wait.isdigit() else 1.0
    return Head(status, length, chunked, close or (length is None and not chunked), retry_after)


class ReplyReader:
    """Puts one reply after another together.

    Attributes:
        size: Bytes of the latest whole reply, its head included.
    """

    __slots__ = ("_at", "_data", "_head", "_needed", "_start", "size")

    def __init__(self) -> None:
        self.size = 0
        self._data: bytes | bytearray = b""
        self._head: Head | None = None
        # bytes that must be there before it is worth to look again; none when no reply is begun
        self._needed = 0
        # where the body begins, and the first chunk not yet there
        self._start = self._at = 0

    def feed(self, data: bytes) -> Head | None:
        """Take what came; return the reply's head once all of the reply is there.

        Raises:
            BadReplyError: For what is no reply, or more than one.
        """
        if self._needed:
            self._data += data
            if len(self._data) < self._needed:
                return None
        else:  # nearly always: a whole reply in one piece
            self._data = data
        head = self._head or self._read_head()
        end = None if head is None else self._end(head)
        if head is None or end is None or len(self._data) < end:
            if not self._needed:
                self._data = bytearray(data)
            self._head = head
            self._needed = end or len(self._data) + 1
            return None
        if len(self._data) > end:
            raise BadReplyError("more came than one reply")
        return self._finish(head)

    def finish(self) -> Head | None:
        """Return the head of the reply that the end of the connection completes; None when there is none."""
        head = self._head
        return self._finish(head) if head and head.length is None and not head.chunked else None

    def body(self, head: Head) -> bytes:
        """Return the body of the latest whole reply, whose head this is."""
        if not head.chunked:
            return bytes(self._data[self._start :])
        parts: list[bytes] = []
        at = self._start
        while True:
            line = self._data.index(b"\r\n", at)
            size = self._chunk_size(at, line)
            if not size:
                return b"".join(parts)
            parts.append(bytes(self._data[line + 2 : line + 2 + size]))
            at = line + 2 + size + 2

    def _read_head(self) -> Head | None:
        """Parse the head, once it is there; one that only announces another (1xx) is skipped."""
        start = 0
        while True:
            end = self._data.find(_END, start)
            if end < 0:
                if len(self._data) - start > _HEAD_BYTES:
                    raise BadReplyError("the reply's head does not end")
                return None
            head = parse_head(bytes(self._data[start:end]))
            start = end + len(_END)
            if head.status >= 200:
                self._start = self._at = start
                return head

    def _end(self, head: Head) -> int | None:
        """Return where the reply ends, or how far it goes at the least; None while that is not known."""
        if head.length is not None:
            return self._start + head.length
        while head.chunked:
            line = self._data.find(b"\r\n", self._at)
            if line < 0:
                return None
            size = self._chunk_size(self._at, line)
            if not size:
                # trailers, if any, end with an empty line
                end = self._data.find(_END, line)
                return None if end < 0 else end + len(_END)
            after = line + 2 + size + 2
            if len(self._data) < after:
                return after
            self._at = after
        return None

    def _chunk_size(self, start: int, end: int) -> int:
        text = bytes(self._data[start:end]).partition(b";")[0]
        try:
            return int(text, 16)
        except ValueError:
            raise BadReplyError(f"the reply has a chunk of {text[:40]!r} bytes") from None

    def _finish(self, head: Head) -> Head:
        self.size = len(self._data)
        self._head = None
        self._needed = 0
        return head
