"""Doubles: the same file named twice, linked, or copied, whose events would count twice."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mlaas_ray.core.errors import JobError
from mlaas_ray.core.location import Protocol, locate
from mlaas_ray.streaming.source import Source

if TYPE_CHECKING:
    from mlaas_ray.streaming.scan import ScannedFile

_PORTS = {Protocol.XROOTD: (1094,), Protocol.HTTP: (80, 443)}


@dataclass(frozen=True)
class Claim:
    """A file that is to be read.

    Attributes:
        path: Path or URL.
        dataset: Name of its dataset; empty for none.
        marks: What no other file has.
        content: The one of them that a copy has too; None before the file was opened.
    """

    path: str
    dataset: str
    marks: tuple[Hashable, ...]
    content: Hashable = None


def named(source: Source, tree: str | None, dataset: str = "") -> Claim:
    """Return what is known of a file before it is opened."""
    tree = source.tree or tree
    return Claim(source.path, dataset, tuple((place, tree) for place in _places(source)))


def opened(file: ScannedFile, dataset: str) -> Claim | None:
    """Return what is known of an open file; None for one without events, as which many may look alike."""
    if not file.entries:
        return None
    tree = file.tree.partition(";")[0]
    places = tuple((place, tree) for place in _places(file.source))
    content = (file.uuid, file.size, tree)
    return Claim(file.path, dataset, (*places, content), content)


def refuse_doubles(claims: Iterable[Claim | None]) -> None:
    """Refuse files that are read twice.

    Raises:
        JobError: Naming the first, and how many more there are.
    """
    owners: dict[Hashable, Claim] = {}
    doubles: list[tuple[Claim, Claim]] = []
    for claim in claims:
        if claim is None:
            continue
        owner = next((owners[mark] for mark in claim.marks if mark in owners), None)
        if owner is not None:
            doubles.append((owner, claim))
        for mark in claim.marks:
            owners.setdefault(mark, claim)
    if not doubles:
        return
    one, other = doubles[0]
    more = f"; so are {len(doubles) - 1:,} more files" if len(doubles) > 1 else ""
    raise JobError(
        f"{_double(one, other)}: its events would count twice{more}",
        "Name each file once; where it is meant: reading.allow_duplicates, or --allow-duplicates",
    )


def _double(one: Claim, other: Claim) -> str:
    """Say in which way two files are one."""
    places = [
        f" in dataset {claim.dataset!r}" if one.dataset != other.dataset else "" for claim in (one, other)
    ]
    if one.path == other.path:
        return f"{one.path} is named 2 times{'' if not any(places) else ',' + ' and'.join(places)}"
    if set(one.marks) & set(other.marks) == {one.content}:
        return f"{other.path}{places[1]} is a copy of {one.path}{places[0]} (same UUID and size)"
    return f"{one.path} is named 2 times{places[0]}, as {other.path}{places[1]} too"


def _places(source: Source) -> list[Hashable]:
    """Return where a file lies, whichever way it was named."""
    location = locate(source.path)
    if not location.is_local:
        return [_plain(url) for url in (source.path, *source.alternatives)]
    try:
        seen = os.stat(location.path)
    except OSError:
        return [os.path.realpath(location.path)]
    return [(seen.st_dev, seen.st_ino)]


def _plain(url: str) -> Hashable:
    """Return one spelling for all of a URL; what a server may take for another file stays apart."""
    location = locate(url)
    host, path, query = location.parts
    address = urlsplit(host)
    port = None if address.port in _PORTS.get(location.protocol, ()) else address.port
    where = (location.protocol, (address.hostname or "").rstrip("."), port)
    if location.protocol is Protocol.S3:  # whose keys are no paths
        return (*where, path, query)
    if location.protocol is Protocol.HTTP:
        return (*where, posixpath.normpath("/" + unquote(path).lstrip("/")), query)
    return (*where, posixpath.normpath("/" + path.lstrip("/")))  # the query holds tokens only
