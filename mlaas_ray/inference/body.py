"""Request bodies: bounded in size and in the silence of who sends them, unpacked where they are gzip."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Collection
from pathlib import Path

from starlette.requests import Request
from starlette.types import Message, Receive

from mlaas_ray.core.errors import EventError, MlaasError
from mlaas_ray.inference.threads import FILES

# What is unpacked at a time, bytes: it takes a millisecond, and others are answered in between.
_PIECE = 1 << 18
_GZIP = ("gzip", "x-gzip")


class BodyTooLargeError(MlaasError):
    """A body of more bytes than the service takes."""


class BodyStalledError(MlaasError):
    """A body whose sender fell silent."""


class BodyEncodingError(MlaasError):
    """A body in a ``Content-Encoding`` that the service does not read."""


def bounded(request: Request, limit: int, timeout_s: float, *, as_it_is: Collection[str] = ()) -> Request:
    """Return the request with a body that may be this large, and may stall this long.

    Args:
        request: As it came; its body not read yet.
        limit: Most bytes, as sent and once unpacked.
        timeout_s: Longest wait for the next piece, seconds.
        as_it_is: Encodings that the reader undoes itself.

    Raises:
        BodyTooLargeError: At once when the request says so; otherwise while the body is read.
        BodyEncodingError: For an encoding that is not gzip.
    """
    encoding = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    packed = encoding in _GZIP and encoding not in as_it_is
    if encoding not in ("", "identity", *_GZIP, *as_it_is):
        raise BodyEncodingError(
            f"a body with Content-Encoding {encoding[:100]!r} is not read", "Send it as it is, or with gzip"
        )
    too_large = BodyTooLargeError(f"the body has more than {limit} bytes", "Send less at once")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        raise too_large
    receive = _bounded(request.receive, limit, timeout_s, too_large)
    return Request(request.scope, _unpacked(receive, limit) if packed else receive)


async def save(request: Request, path: Path) -> None:
    """Write a body into a file, as it comes."""
    with path.open("xb") as file:
        async for chunk in request.stream():
            await FILES.run(file.write, chunk)


def _bounded(receive: Receive, limit: int, timeout_s: float, too_large: BodyTooLargeError) -> Receive:
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        try:
            async with asyncio.timeout(timeout_s):
                message = await receive()
        except TimeoutError:
            raise BodyStalledError(
                f"nothing came for {timeout_s:g} s after {received} bytes", "Send the whole body"
            ) from None
        received += len(message.get("body", b""))
        if received > limit:
            raise too_large
        return message

    return receive_bounded


def _unpacked(receive: Receive, limit: int) -> Receive:
    """Undo gzip piece by piece: a few kilobytes can say gigabytes."""
    unpacker = zlib.decompressobj(wbits=31)
    packed, more, full, unpacked = b"", True, False, 0

    async def receive_unpacked() -> Message:
        nonlocal unpacker, packed, more, full, unpacked
        while packed or full or more:
            if not (packed or full):
                message = await receive()
                if message["type"] != "http.request":
                    return message
                packed, more = message.get("body", b""), message.get("more_body", False)
                continue
            if unpacker.eof:  # gzip data may follow one another
                unpacker = zlib.decompressobj(wbits=31)
            try:
                piece = unpacker.decompress(packed, _PIECE)
            except zlib.error as error:
                raise EventError(f"the body is no gzip data: {error}", "Send it as it is") from None
            packed = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            # the rest of it may be in the unpacker
            full = len(piece) == _PIECE and not unpacker.eof
            unpacked += len(piece)
            if unpacked > limit:
                raise BodyTooLargeError(
                    f"the body has more than {limit} bytes once unpacked", "Send less at once"
                )
            if piece:
                await asyncio.sleep(0)
                return {"type": "http.request", "body": piece, "more_body": True}
        if not unpacker.eof:
            raise EventError("the body's gzip data end too early", "Send the whole body")
        return {"type": "http.request", "body": b"", "more_body": False}

    return receive_unpacked
