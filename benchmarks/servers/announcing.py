"""uvicorn's server, which says when it answers."""

from __future__ import annotations

import socket

import uvicorn


class Announcing(uvicorn.Server):
    """Prints a line once it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        print("ready", flush=True)
