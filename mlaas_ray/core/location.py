"""Where a file lies: a local path, or a URL of a protocol we can read, told apart once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
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
    "http": Protocol.HTTP,
    "https": Protocol.HTTP,
    "s3": Protocol.S3,
}


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
    def is_pattern(self) -> bool:
        """Whether the path holds glob characters; a URL's host and query do not count."""
        path = self.path if self.is_local else urlsplit(self.path).path
        return any(character in path for character in "*?[")

    def __str__(self) -> str:
        return self.path


def locate(text: str | os.PathLike[str]) -> Location:
    """Tell a local path from a URL.

    Args:
        text: ``data/a.root``, ``~/a.root``, ``file:///data/a.root``, ``root://host//path``,
            ``https://host/path`` or ``s3://bucket/key``.

    Raises:
        JobError: For a URL of a protocol nobody here reads, or an empty text.
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
    if protocol is Protocol.LOCAL:
        return Location(protocol, unquote(urlsplit(path).path))
    return Location(protocol, path)


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
