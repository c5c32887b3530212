"""Files as the user names them (paths, globs, folders, lists, URLs) to a list of single files."""

from __future__ import annotations

import glob
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mlaas_ray.core.errors import FileMissingError, FileUnreadableError, JobError
from mlaas_ray.core.location import Location, Protocol, locate
from mlaas_ray.streaming.xrootd import configure_xrootd, why

LIST_SUFFIXES = (".txt", ".list")

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def find_files(files: Files) -> list[str]:
    """Resolve what the user named to single files, in the order given; what a glob matches is sorted.

    Args:
        files: One or several of: a path, a glob, a folder (every ``*.root`` below it), a text file (``.txt``
            or ``.list``) with one of these a line (``#`` starts a comment), or a ``root://`` URL or glob.

    Returns:
        Absolute paths and URLs.

    Raises:
        FileMissingError: When a name matches nothing.
        FileUnreadableError: When a server cannot be asked.
        JobError: When a file is named twice, since its events would count twice.
    """
    names = [files] if isinstance(files, str | os.PathLike) else list(files)
    found = [path for name in names for path in _expand(locate(name))]
    if not found:
        raise FileMissingError("no input files", "Name at least one ROOT file")
    twice = [path for path, count in Counter(found).items() if count > 1]
    if twice:
        raise JobError(f"{twice[0]} is named {found.count(twice[0])} times", "Name each file once")
    return found


def _expand(location: Location) -> Iterable[str]:
    if location.protocol is Protocol.XROOTD:
        return _xrootd_glob(location.path) if location.is_pattern else [location.path]
    if not location.is_local:
        return [location.path]
    path = Path(location.path)
    if path.is_dir():
        inside = sorted(str(file) for file in path.absolute().rglob("*.root"))
        if not inside:
            raise FileMissingError(f"no *.root file in the folder {path}", "Give a folder that holds some")
        return inside
    if path.suffix in LIST_SUFFIXES and path.is_file():
        return [file for line in _lines(path) for file in _expand(locate(line))]
    if path.exists():
        return [str(path.absolute())]
    # Only now a pattern: file names may hold brackets.
    matches = sorted(glob.glob(str(path.absolute()), recursive=True)) if location.is_pattern else []
    if not matches:
        what = "no file matches" if location.is_pattern else "no such file:"
        raise FileMissingError(f"{what} {path}", "Check the path, as seen from the folder you run in")
    return matches


def _lines(path: Path) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    names = [line for line in lines if line]
    if not names:
        raise FileMissingError(f"the list {path} names no file", "Write one file a line")
    return names


def _xrootd_glob(url: str) -> list[str]:
    configure_xrootd()
    import fsspec

    # The library's cache of listings and its glob both fail in a server's top folder (fsspec-xrootd 0.5.5).
    system, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    try:
        matches = _walk(system, "/", path.strip("/").split("/"))
    except OSError as error:
        remedy = "Check the server's address and the path"
        raise FileUnreadableError(f"cannot list {url}: {why(error)}", remedy) from error
    if not matches:
        raise FileMissingError(f"no file matches {url}", "Check the path: after the host it starts with '//'")
    return [system.unstrip_protocol(match) for match in matches]


def _walk(system: Any, folder: str, parts: Sequence[str]) -> list[str]:
    """Return the paths below a folder whose names match the parts, one after the other."""
    name, *rest = parts
    if not locate(name).is_pattern:
        path = posixpath.join(folder, name)
        if rest:
            return _walk(system, path, rest)
        return [path] if system.exists(path) else []
    if not system.exists(folder):
        return []
    names = [entry for entry in sorted(system.ls(folder, detail=False)) if fnmatchcase(entry, name)]
    paths = [posixpath.join(folder, entry) for entry in names]
    return [match for path in paths for match in _walk(system, path, rest)] if rest else paths
