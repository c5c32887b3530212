"""Sources: from what the user names (paths, globs, folders, lists, URLs, datasets) to single files."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlaas_ray.core.errors import FileMissingError, FileUnreadableError, JobError
from mlaas_ray.core.location import Location, Protocol, at_redirector, locate
from mlaas_ray.streaming.das import find_dataset, is_dataset
from mlaas_ray.streaming.formats import format_of
from mlaas_ray.streaming.listing import Found, storage_of
from mlaas_ray.streaming.source import Source

DAS_PREFIX = "das:"
LIST_SUFFIXES = (".txt", ".list")
# How the names of the experiment's logical files begin.
LOGICAL = "/store/"

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def find_sources(files: Files, *, redirectors: Sequence[str] = ()) -> list[Source]:
    """Resolve what the user named to single files, in the order given; what a glob matches is sorted.

    Args:
        files: One or several of:

            - a path, a glob, or a folder: every data file below it, which must be of one format;
            - a text file (``.txt`` or ``.list``) with one of these a line (``#`` starts a comment);
            - a ``root://`` or ``s3://`` URL, glob or folder, or an ``http(s)://`` URL;
            - a logical file name, glob or folder, ``/store/…``;
            - a dataset of the CMS catalogue: ``das:/A/B/NANOAODSIM``, or without the prefix.
        redirectors: XRootD redirectors by which logical names are read: the first gives the path, the others
            the alternatives. A URL that names one of them gets the others as alternatives, too.

    Returns:
        The files, with their sizes where they were listed.

    Raises:
        FileMissingError: When a name matches nothing.
        FileUnreadableError: When a server or the catalogue cannot be asked.
        JobError: When a file is named twice, since its events would count twice, a folder holds several
            formats, or a name cannot be listed.
    """
    names = [files] if isinstance(files, str | os.PathLike) else list(files)
    finder = _Finder(tuple(redirectors))
    found = [source for name in names for source in finder.find(name)]
    if not found:
        raise FileMissingError("no input files", "Name at least one file")
    # The same logical file is the same events, whichever redirector it was named by.
    identities = [finder.logical_name(source.path) or source.path for source in found]
    (name, count), *_ = Counter(identities).most_common(1)
    if count > 1:
        raise JobError(f"{name} is named {count} times", "Name each file once")
    return found


class _Finder:
    """Resolves one name after the other.

    Args:
        redirectors: As given to :func:`find_sources`.
    """

    def __init__(self, redirectors: tuple[str, ...]) -> None:
        self._redirectors = redirectors
        self._bases = [at_redirector(redirector, "/") for redirector in redirectors]

    def find(self, name: str | os.PathLike[str], lists: tuple[Path, ...] = ()) -> list[Source]:
        """Return the files of one name; ``lists`` are the text files it was read from."""
        text = os.fspath(name).strip()
        if text.startswith(DAS_PREFIX):
            return find_dataset(text.removeprefix(DAS_PREFIX), self._redirectors)
        location = locate(text)
        if not location.is_local:
            return self._sources(_find_remote(location))
        path = Path(location.path)
        if path.is_dir():
            return self._sources(_inside_folder(path.absolute()))
        if path.suffix in LIST_SUFFIXES and path.is_file():
            if path.resolve() in lists:
                raise JobError(f"the list {path} names itself", "Name data files in it")
            inside = (*lists, path.resolve())
            return [source for line in _lines(path) for source in self.find(line, inside)]
        if path.exists():
            return self._sources([_file(str(path.absolute()))])
        # Only now a pattern: file names may hold brackets.
        matches = _matching(path.absolute()) if location.is_pattern else []
        return self._sources(matches) if matches else self._absent(location)

    def logical_name(self, url: str) -> str | None:
        """Return the logical name of a URL of one of the redirectors."""
        for base in self._bases:
            name = "/" + url.removeprefix(base)
            if url.startswith(base) and name.startswith(LOGICAL) and "?" not in name:
                return name
        return None

    def _sources(self, found: Iterable[Found]) -> list[Source]:
        return [Source(file.url, self._alternatives(file.url), file.size) for file in found]

    def _alternatives(self, url: str) -> tuple[str, ...]:
        name = self.logical_name(url)
        if name is None:
            return ()
        urls = [at_redirector(redirector, name) for redirector in self._redirectors]
        return tuple(other for other in urls if other != url)

    def _absent(self, location: Location) -> list[Source]:
        """Return the files of a name that no local file has."""
        name = location.path
        if is_dataset(name):
            return find_dataset(name, self._redirectors)
        what = "no file matches" if location.is_pattern else "no such file:"
        if name.startswith(LOGICAL):
            if not self._redirectors:
                raise FileMissingError(
                    f"{what} {name}",
                    "To read it from a redirector name one: reading.redirectors, as root://host/",
                )
            urls = [at_redirector(redirector, name) for redirector in self._redirectors]
            return self._sources(_first_answer(urls))
        raise FileMissingError(f"{what} {name}", "Check the path, as seen from the folder you run in")


def _first_answer(urls: Sequence[str]) -> list[Found]:
    """Return what the first of several redirectors that can be asked finds."""
    for url in urls[:-1]:
        try:
            return _find_remote(locate(url))
        except FileUnreadableError:
            continue
    return _find_remote(locate(urls[-1]))


def _file(path: str) -> Found:
    return Found(path, os.stat(path).st_size)


def _lines(path: Path) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    names = [line for line in lines if line]
    if not names:
        raise FileMissingError(f"the list {path} names no file", "Write one file a line")
    return names


def _inside_folder(folder: Path) -> list[Found]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, name) for name in names if not name.startswith(".")]
    return [_file(path) for path in _of_one_format(sorted(found), str(folder))]


def _matching(pattern: Path) -> list[Found]:
    """Return the files that match; when only folders do, the files below these."""
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
    files = [_file(str(match)) for match in matches if match.is_file()]
    return files or [file for match in matches for file in _inside_folder(match)]


def _find_remote(location: Location) -> list[Found]:
    url = location.path
    if location.protocol is Protocol.HTTP and not location.is_pattern:
        return [Found(url, None)]
    if location.is_pattern:
        matches = storage_of(location).match(url)
        files = [match for match in matches if not match.is_folder]
        files = files or [file for match in matches for file in _below(match.url)]
        if not files:
            remedy = "Check the path: after the host it starts with '//'"
            raise FileMissingError(
                f"no file matches {url}", remedy if location.protocol is Protocol.XROOTD else "Check the path"
            )
        return files
    if format_of(url):  # plainly a file: whoever opens it will see whether it is there
        return [Found(url, None)]
    here = storage_of(location).look(url)
    if here is None:
        raise FileMissingError(f"no such file: {url}", "Check the path or URL")
    return _below(url) if here.is_folder else [here]


def _below(url: str) -> list[Found]:
    found = {file.url: file for file in storage_of(locate(url)).below(url)}
    return [found[name] for name in _of_one_format(list(found), url)]


def _of_one_format(paths: Sequence[str], folder: str) -> list[str]:
    """Return the data files among all files of a folder.

    Raises:
        FileMissingError: When there is none.
        JobError: When they are of several formats.
    """
    data = [path for path in paths if format_of(path)]
    # Settings, records and the like lie beside data as .json: it is data only where nothing else is.
    plain = [path for path in data if not path.endswith(".json")]
    data = plain or data
    formats = {format_of(path): path for path in data}
    if not data:
        raise FileMissingError(
            f"no data file in the folder {folder}", "Give a folder that holds .root, .parquet, .csv or .jsonl"
        )
    if len(formats) > 1:
        examples = " and ".join(f"{form} ({os.path.basename(path)})" for form, path in formats.items())
        raise JobError(f"the folder {folder} holds {examples}", "Name the files by a glob, as FOLDER/*.root")
    return data
