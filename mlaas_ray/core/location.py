"""Where a file lies: a local path, or a URL of a protocol we can read, told apart once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from mlaas_ray.core.errors import JobError, nearest


class Protocol(Enum):
    """How the bytes are reached."""

    LOCAL = "file"
    XROOTD = "root"
    HTTP = "http"
    S3 = "s3"


_SCHEMES = {
    "file": Protocol.LOCAL,
    "root": Protocol.XROOTD,
    "roots": Protocol.XROOTD,
    "xroot": Protocol.XROOTD,
    "xroots": Protocol.XROOTD,
    "http": Protocol.HTTP,
    "https": Protocol.HTTP,
    "dav": Protocol.HTTP,
    "davs": Protocol.HTTP,
    "s3": Protocol.S3,
}
# A WebDAV server gives files as any web server does.
_SPOKEN = {"dav": "http", "davs": "https"}
# Where a query begins. Names on an XRootD server or in a bucket may hold '#', and also a '?'.
_QUERIES = {
    Protocol.HTTP: re.compile(r"[?#]"),
    Protocol.XROOTD: re.compile(r"\?(?=[^?]*=)"),
    Protocol.S3: re.compile(r"\?(?=versionId=)"),
}


class Parts(NamedTuple):
    """A location, taken apart; joined, they are it again.

    Attributes:
        host: ``root://host``; empty for a local path.
        path: What the file is called there.
        query: What a URL says behind it, such as a token, ``?authz=…``; or empty.
    """

    host: str
    path: str
    query: str = ""


@dataclass(frozen=True)
class Location:
    """One place a file or pattern may be.

    Attributes:
        protocol: How the bytes are reached.
        path: A path of the local file system, or the whole URL of a remote file.
    """

    protocol: Protocol
    path: str

    @property
    def is_local(self) -> bool:
        """Whether the path is one of this machine's file systems."""
        return self.protocol is Protocol.LOCAL

    @property
    def parts(self) -> Parts:
        """Host, path and query, as the protocol has them."""
        if self.is_local:
            return Parts("", self.path)
        scheme, _, rest = self.path.partition("://")
        host, slash, path = rest.partition("/")
        query = _QUERIES[self.protocol].search(path)
        end = query.start() if query else len(path)
        return Parts(f"{scheme}://{host}", slash + path[:end], path[end:])

    @property
    def is_pattern(self) -> bool:
        """Whether the path holds glob characters; a URL's host and query do not count."""
        return any(character in self.parts.path for character in "*?[")

    def __str__(self) -> str:
        return self.path


def locate(text: str | os.PathLike[str]) -> Location:
    """Tell a local path from a URL.

    Args:
        text: ``data/a.root``, ``~/a.root``, ``file:///data/a.root``, ``root://host//path``,
            ``https://host/path``, ``davs://host/path`` or ``s3://bucket/key``.

    Raises:
        JobError: For a URL of a protocol nobody here reads, or without a host, or an empty text.
    """
    path = os.fspath(text).strip()
    if not path:
        raise JobError("an empty file name", "Give a path, a glob or a URL")
    scheme, separator, _ = path.partition("://")
    if not separator:
        return Location(Protocol.LOCAL, os.path.expanduser(path))
    try:
        protocol = _SCHEMES[scheme.lower()]
    except KeyError:
        raise JobError(
            f"cannot read {path!r}: unknown protocol {scheme!r}", nearest(scheme, _SCHEMES)
        ) from None
    rest = path.partition("://")[2]
    if protocol is Protocol.LOCAL:
        return Location(protocol, unquote("/" + rest.partition("/")[2]))
    _check_host(path, rest.partition("/")[0])
    return Location(protocol, f"{_SPOKEN.get(scheme.lower(), scheme)}://{rest}")


def _check_host(url: str, host: str) -> None:
    try:
        address = urlsplit(f"//{host}")
        named = bool(address.hostname) and address.port != 0
    except ValueError as error:
        raise JobError(f"{url!r} is no URL: {error}", "Correct it") from None
    if not named:
        raise JobError(f"{url!r} names no server", "Write it as PROTOCOL://HOST/PATH")


def at_redirector(redirector: str, name: str) -> str:
    """Return the URL by which a redirector knows a logical file name.

    Args:
        redirector: ``root://host/``, ``root://host:1094//prefix`` or ``host``.
        name: ``/store/…``.

    Raises:
        JobError: When the redirector's protocol is none of remote servers.
    """
    where = locate(redirector if "://" in redirector else f"root://{redirector}")
    if where.protocol not in (Protocol.XROOTD, Protocol.HTTP):
        raise JobError(f"{redirector!r} is no redirector", "Write it as root://host/")
    scheme, _, rest = where.path.partition("://")
    host, _, prefix = rest.partition("/")
    # An XRootD server takes what follows the first slash for the path, and wants that to be absolute.
    start = "//" if where.protocol is Protocol.XROOTD else "/"
    return f"{scheme}://{host}{start}" + "/".join(
        part for part in (prefix.strip("/"), name.lstrip("/")) if part
    )
