"""Listing of remote storage: the files below a folder, and those that match a pattern, with their sizes."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple
from typing import Protocol as Interface

from mlaas_ray.core.errors import FileMissingError, FileUnreadableError, JobError
from mlaas_ray.core.location import Location, Protocol, locate
from mlaas_ray.streaming.faults import Fault
from mlaas_ray.streaming.webfile import CONNECT_SECONDS, READ_SECONDS
from mlaas_ray.streaming.xrootd import fault, load_xrootd

_MAGIC = re.compile(r"[*?[]")
S3_INSTALL = "pip install 'mlaas-ray[s3]'"


class Found(NamedTuple):
    """One file or folder that lies somewhere: its URL, and its size in bytes."""

    url: str
    size: int | None
    is_folder: bool = False


class Storage(Interface):
    """What can be asked for its files; every question raises :class:`FileUnreadableError` if in vain."""

    def look(self, url: str) -> Found | None:
        """Return what lies there, or None."""

    def below(self, url: str) -> list[Found]:
        """Return every file below a folder, sorted; hidden ones are no files."""

    def match(self, url: str) -> list[Found]:
        """Return the files and folders that match a pattern, sorted."""


def storage_of(location: Location) -> Storage:
    """Return what lists a remote location.

    Raises:
        JobError: When its protocol cannot be listed.
    """
    if location.protocol is Protocol.XROOTD:
        return _XRootD(location.path)
    if location.protocol is Protocol.S3:
        return _S3(location.path)
    raise JobError(f"cannot list {location}: web servers list no folders", "Name each file, in a text file")


@contextmanager
def _asking(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileMissingError(f"no such folder: {url}", "Check the path") from error
    except OSError as error:
        raise FileUnreadableError(
            f"cannot list {url}: {error}", "Check the address, the path and your credentials"
        ) from error


class _XRootD:
    """An XRootD server, or all servers of a redirector together. One request lists one folder."""

    def __init__(self, url: str) -> None:
        parts = locate(url).parts
        self._base = f"{parts.host}/"
        # A token in the query goes with each request, and with each file.
        self._query = parts.query
        self._client = load_xrootd()
        self._system = self._client.FileSystem(self._base)

    def look(self, url: str) -> Found | None:
        with _asking(url):
            status, info = self._system.stat(self._path(url) + self._query)
            if not self._is_there(status):
                return None
        return Found(url, info.size, bool(info.flags & self._client.flags.StatInfoFlags.IS_DIR))

    def below(self, url: str) -> list[Found]:
        with _asking(url):
            entries = self._list(self._path(url), recursive=True)
        return [self._found(path, size) for path, size, is_folder in entries if not is_folder]

    def match(self, url: str) -> list[Found]:
        with _asking(url):
            matches = self._walk("/", self._path(url).strip("/").split("/"))
        return [self._found(*entry) for entry in sorted(set(matches))]

    def _walk(self, folder: str, parts: Sequence[str]) -> list[tuple[str, int, bool]]:
        """Return what lies below a folder and matches the parts, one after the other."""
        name, *rest = parts
        if rest and not _MAGIC.search(name):
            return self._walk(posixpath.join(folder, name), rest)
        entries = self._list(folder, recursive=name == "**")
        if name == "**":
            folders = [folder, *(path for path, _, is_folder in entries if is_folder)]
        else:
            entries = [entry for entry in entries if fnmatchcase(posixpath.basename(entry[0]), name)]
            folders = [path for path, _, is_folder in entries if is_folder]
        return [match for path in folders for match in self._walk(path, rest)] if rest else entries

    def _list(self, folder: str, *, recursive: bool = False) -> list[tuple[str, int, bool]]:
        """Return what lies in a folder, or anywhere below it: path, size, and whether it is a folder."""
        # Without LOCATE a redirector passes the question on to one of its servers, who tells what it has.
        known, is_folder = self._client.flags.DirListFlags, self._client.flags.StatInfoFlags.IS_DIR
        flags = known.STAT | known.LOCATE | known.MERGE | (known.RECURSIVE if recursive else known.NONE)
        status, listing = self._system.dirlist(folder + self._query, flags)
        if not self._is_there(status):
            return []
        return sorted(
            (
                posixpath.join(folder, entry.name),
                entry.statinfo.size,
                bool(entry.statinfo.flags & is_folder),
            )
            for entry in listing
            if not any(part.startswith(".") for part in entry.name.split("/"))
        )

    def _is_there(self, status: Any) -> bool:
        if status.ok and status.code == 0:
            return True
        if status.ok:  # XrdCl's suPartial: files would be missing from the data without a word
            raise Fault("failing", "some of the servers did not answer")
        error = fault(status.code, status.errno, status.message)
        if error.kind == "missing":
            return False
        raise error

    def _path(self, url: str) -> str:
        return "/" + locate(url).parts.path.lstrip("/")

    def _found(self, path: str, size: int, is_folder: bool = False) -> Found:
        url = f"{self._base}{path}{self._query}"
        if locate(url).parts.query != self._query:
            raise FileUnreadableError(
                f"cannot read {url}: XRootD takes what follows a '?' for options", "Rename the file"
            )
        return Found(url, size, is_folder)


class _S3:
    """A bucket, through s3fs."""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._system = fsspec.filesystem(
                "s3",
                use_listings_cache=False,
                config_kwargs={"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS},
            )
        except ImportError:
            raise JobError(f"reading {url} needs s3fs", f"Install it: {S3_INSTALL}") from None

    def look(self, url: str) -> Found | None:
        with _asking_s3(url):
            try:
                return self._found(self._system.info(url))
            except FileNotFoundError:
                return None

    def below(self, url: str) -> list[Found]:
        with _asking_s3(url):
            found = self._system.find(url.rstrip("/") + "/", detail=True)
        return self._sorted(found)

    def match(self, url: str) -> list[Found]:
        with _asking_s3(url):
            found = self._system.glob(url, detail=True)
        return self._sorted(found)

    def _sorted(self, found: dict[str, dict[str, Any]]) -> list[Found]:
        names = sorted(name for name in found if "/." not in name)
        return [self._found(found[name]) for name in names]

    def _found(self, info: dict[str, Any]) -> Found:
        return Found(f"s3://{info['name']}", info["size"], info["type"] == "directory")


@contextmanager
def _asking_s3(url: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    with _asking(url):
        try:
            yield
        except BotoCoreError as error:  # such as no credentials, or no such host
            raise OSError(str(error)) from error
