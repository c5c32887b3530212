"""Origins: requests that the page of another site has a browser send, told from those of programs.

A browser sends what any page wants to any address it can reach, a service on loopback too. It marks what may
change something: with ``Origin``, and towards its own machine or over TLS with ``Sec-Fetch-Site``. Programs
(TFaaS's clients, curl) send neither.

- ``Host`` must be a name of this service where something would be changed, and in whatever a browser marks.
  A page whose own name is made to stand for 127.0.0.1 (DNS rebinding) would count as a page of the service,
  and read its answers. A program may ask for predictions by any name: of a proxy, of a Kubernetes service.
- ``Origin`` must be that host where something would be changed. Predictions change nothing, and the browser
  shows their answers to no other page.

Plain look-ups (GET) come without marks from most pages: nothing tells them from a program's.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from mlaas_ray.core.errors import MlaasError

_NAME_IT = "Start the service with --allow-host NAME (setting allowed_hosts), or ask it by address"
_REMEDY = f"Use a program such as curl or mlaas, which sends no Origin. {_NAME_IT}"
_PORTS = {"http": 80, "https": 443}
_OWN_PAGES = ("same-origin", "none")


class ForeignError(MlaasError):
    """A request that a browser sends for the page of another site."""


class Origins:
    """Whose requests are taken.

    Args:
        allowed: Names by which browsers reach the service, beside those of its machine.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(name.lower() for name in allowed)

    async def check(self, headers: Headers, *, changes: bool) -> None:
        """Refuse a request that the page of another site has a browser send.

        Args:
            headers: The request's.
            changes: Whether it would change something.

        Raises:
            ForeignError: For a ``Host`` or an ``Origin`` that is not the service's own.
        """
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is None and site is None and not changes:
            return
        host = headers.get("host", "")
        name, _ = _place(f"http://{host}")
        if not await self._is_own(name):
            raise ForeignError(f"this was sent to the host {host[:200]!r}, no name of this service", _NAME_IT)
        if not changes:
            return
        if origin is None and site is not None and site not in _OWN_PAGES:
            raise ForeignError(f"a browser sent this for a page of another site ({site!r})", _REMEDY)
        if origin is not None and not self._is_of(origin, host):
            raise ForeignError(f"a browser sent this for a page of {origin[:200]!r}", _REMEDY)

    def _is_of(self, origin: str, host: str) -> bool:
        """Tell whether a page's origin is the service."""
        scheme = origin.partition(":")[0]
        place = _place(origin)
        return bool(place[0]) and (place[0] in self._allowed or place == _place(f"{scheme}://{host}"))

    async def _is_own(self, name: str) -> bool:
        """Tell whether a name can be no other site's."""
        if not name:
            return False
        try:
            ip_address(name)
        except ValueError:
            if name in self._allowed or name == "localhost" or name.endswith(".localhost"):
                return True
            # in a thread: it may ask a name server
            return name in await asyncio.to_thread(_names)
        return True


def _place(url: str) -> tuple[str, int | None]:
    """Return host and port of a URL; no host where there is none."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "").removesuffix("."), parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return "", None


@functools.cache
def _names() -> frozenset[str]:
    """Return the machine's names, in lower case."""
    names = {socket.gethostname(), socket.getfqdn()}
    return frozenset(name.lower() for name in names | {name.partition(".")[0] for name in names})
