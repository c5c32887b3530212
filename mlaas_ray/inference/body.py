"""Request bodies: bounded in size and in the silence of who sends them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.requests import Request
from starlette.types import Message, Receive

from mlaas_ray.core.errors import MlaasError


class BodyTooLargeError(MlaasError):
    """A body of more bytes than the service takes."""


class BodyStalledError(MlaasError):
    """A body whose sender fell silent."""


def bounded(request: Request, limit: int, timeout_s: float) -> Request:
    """Return the request with a body that may be this large, and may stall this long.

    Args:
        request: As it came; its body not read yet.
        limit: Most bytes.
        timeout_s: Longest wait for the next piece, seconds.

    Raises:
        BodyTooLargeError: At once when the request says so; otherwise while the body is read.
    """
    too_large = BodyTooLargeError(f"the body has more than {limit} bytes", "Send less at once")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        raise too_large
    return Request(request.scope, _bounded(request.receive, limit, timeout_s, too_large))


async def save(request: Request, path: Path) -> None:
    """Write a body into a file, as it comes."""
    with path.open("xb") as file:
        async for chunk in request.stream():
            await asyncio.to_thread(file.write, chunk)


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
