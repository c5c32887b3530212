"""Sources: from what the user names (paths, globs, folders, lists, URLs, datasets) to single files."""

from __future__ import annotations

import codecs
import glob
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mlaas_ray.core.errors import FileMissingError, FileUnreadableError, JobError
from mlaas_ray.core.location import Location, Protocol, at_redirector, locate
from mlaas_ray.streaming.das import find_dataset, is_dataset
from mlaas_ray.streaming.doubles import named, refuse_doubles
from mlaas_ray.streaming.formats import format_of
from mlaas_ray.streaming.listing import Found, storage_of
from mlaas_ray.streaming.source import Source

log = logging.getLogger(__name__)

DAS_PREFIX = "das:"
LIST_SUFFIXES = (".txt", ".list")
# How the names of the experiment's logical files begin.
LOGICAL = "/store/"

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
# The file of a.root/folder/tree, as ROOT's browser writes it.
_INSIDE = re.compile(r"(.+?\.root(?:\.\d+)?)/(.+)", re.IGNORECASE)
_COMMENT = re.compile(r"(?:^|\s)#")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def find_sources(
    files: Files, *, redirectors: Sequence[str] = (), allow_duplicates: bool = False
) -> list[Source]:
    """Resolve what the user named to single files, in the order given; what a glob matches is sorted.

    What of a folder or glob is left out is logged.

    Args:
        files: One or several of:

            - a path, a glob, or a folder: every data file below it, which must be of one format;
            - a text file (``.txt`` or ``.list``) with one of these a line (``#`` starts a comment), relative
              to it or to the current folder;
            - a ``root://`` or ``s3://`` URL, glob or folder, or an ``http(s)://`` or ``dav(s)://`` URL;
            - a logical file name, glob or folder, ``/store/…``;
            - a dataset of the CMS catalogue: ``das:/A/B/NANOAODSIM``, or without the prefix.

            Any of them may name the tree as well, ``a.root:tree`` or ``a.root/tree``, and begin with ``~`` or
            hold ``$VARIABLES``. A file that is really called so comes first.
        redirectors: XRootD redirectors by which logical names are read: the first gives the path, the others
            the alternatives. A URL that names one of them gets the others as alternatives, too.
        allow_duplicates: Whether a file may be named twice.

    Returns:
        The files, with their sizes where they were listed.

    Raises:
        FileMissingError: When a name matches nothing.
        FileUnreadableError: When a folder, a server or the catalogue cannot be asked.
        JobError: When a file is named twice, since its events would count twice, a folder holds several
            formats, or a name cannot be listed.
    """
    names = [files] if isinstance(files, str | os.PathLike) else list(files)
    finder = _Finder(tuple(redirectors))
    found = [source for name in names for source in finder.find(os.fspath(name))]
    if not found:
        raise FileMissingError("no input files", "Name at least one file")
    if not allow_duplicates:
        refuse_doubles(named(source, None) for source in found)
    return found


def expanded(name: str) -> str:
    """Return a name with the environment's variables filled in.

    Raises:
        JobError: For a variable of a path that is not set, where no file is really called so.
    """

    def value(match: re.Match[str]) -> str:
        variable = match[1] or match[2]
        if variable not in os.environ and "://" not in text:  # whose signatures may hold a dollar sign
            raise JobError(f"the environment variable {variable!r} in {name} is not set", "Set it")
        return os.environ.get(variable, match[0])

    text = name.strip()
    if "\0" in text:
        raise JobError(f"{text!r} is no file name", "Name data files")
    if "$" not in text or os.path.lexists(text):
        return text
    return _VARIABLE.sub(value, text)


def beside(name: str, folders: Sequence[Path]) -> str:
    """Return a relative local name as it is seen from the first folder that has it; other names as given."""
    location = _located(name)
    if location is None or not location.is_local or os.path.isabs(location.path):
        return name
    # the file alone, where the name tells the tree too
    spellings = [file for file, _ in _with_tree(location)]
    for folder in folders:
        for spelling in spellings:
            if os.path.lexists(folder / spelling):
                return str(folder / location.path)
            pattern = os.path.join(glob.escape(str(folder)), spelling)
            if locate(spelling).is_pattern and any(True for _ in glob.iglob(pattern, recursive=True)):
                return os.path.join(glob.escape(str(folder)), location.path)
    return name


def absolute(name: str) -> str:
    """Return a name as it can be read from any folder."""
    location = _located(name)
    if location is None:
        return expanded(name)
    if not location.is_local or location.path.startswith(LOGICAL):
        return location.path
    return str(Path(location.path).absolute())


def file_names(name: str) -> list[str]:
    """Return what of a name may be the file: all of it, and what stands before the name of a tree."""
    location = _located(name)
    return [name] if location is None else [file for file, _ in _with_tree(location)]


def _located(name: str) -> Location | None:
    """Return where a name is looked for; None for a catalogue's."""
    text = expanded(name)
    return None if text.startswith(DAS_PREFIX) else locate(text)


def _with_tree(location: Location) -> Iterator[tuple[str, str | None]]:
    """Give the ways to read a name: as a file, and as a file and a tree in it."""
    yield location.path, None
    host, path, query = location.parts
    file, colon, tree = path.rpartition(":")
    if colon and file and tree and format_of(tree) is None:
        yield host + file + query, tree
    # a web service may have what it likes behind a file's name, such as /content
    match = _INSIDE.fullmatch(path) if location.protocol is not Protocol.HTTP else None
    if match and format_of(match[2]) is None and ":" not in match[2]:
        yield host + match[1] + query, match[2]


class _Finder:
    """Resolves one name after the other.

    Args:
        redirectors: As given to :func:`find_sources`.
    """

    def __init__(self, redirectors: tuple[str, ...]) -> None:
        self._redirectors = redirectors
        self._bases = [at_redirector(redirector, "/") for redirector in redirectors]

    def find(self, name: str, lists: tuple[Path, ...] = ()) -> list[Source]:
        """Return the files of one name; ``lists`` are the text files it was read from."""
        location = _located(name)
        if location is None:
            return find_dataset(expanded(name).removeprefix(DAS_PREFIX), self._redirectors)
        ways = list(_with_tree(location))
        if location.is_local:
            for file, tree in ways:
                if (found := self._local(file, lists)) is not None:
                    return _of_tree(found, tree)
        # elsewhere a file's suffix must tell where its name ends
        file, tree = next((way for way in ways[1:] if format_of(way[0]) == "ROOT"), ways[0])
        if location.is_local:
            return _of_tree(self._absent(locate(file)), tree)
        return _of_tree(self._sources(_find_remote(locate(file))), tree)

    def _local(self, name: str, lists: tuple[Path, ...]) -> list[Source] | None:
        """Return the files of a name that local files have; None where there are none."""
        path = Path(name)
        if os.path.isdir(path):
            return self._sources(_inside_folder(path.absolute()))
        if path.suffix.lower() in LIST_SUFFIXES and os.path.isfile(path):
            if path.resolve() in lists:
                raise JobError(f"the list {path} names itself", "Name data files in it")
            inside = (*lists, path.resolve())
            near = (path.absolute().parent, Path())
            return [source for line in _lines(path) for source in self.find(beside(line, near), inside)]
        if os.path.lexists(path):
            return self._sources([_file(str(path.absolute()))])
        # Only now a pattern: file names may hold brackets.
        matches = _matching(name) if locate(name).is_pattern else []
        return self._sources(matches) if matches else None

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


def _of_tree(sources: list[Source], tree: str | None) -> list[Source]:
    return [replace(source, tree=source.tree or tree) for source in sources] if tree else sources


def _file(path: str) -> Found:
    """Describe a local file; a link to nowhere counts as one, so that it is not lost without a word.

    Raises:
        JobError: When it is something else, or its name is not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise JobError(f"the name of {shown} is not UTF-8", "Rename it") from None
    try:
        seen = os.stat(path)
    except OSError:  # whoever opens it says what is wrong
        return Found(path, None)
    if not stat.S_ISREG(seen.st_mode):
        raise JobError(f"{path} is no file, but a device or a pipe", "Name data files")
    return Found(path, seen.st_size)


def _lines(path: Path) -> list[str]:
    try:
        lines = [_COMMENT.split(line)[0].strip() for line in text_of(path.read_bytes()).splitlines()]
    except OSError as error:
        raise FileUnreadableError(
            f"cannot read the list {path}: {error.strerror}", "Check its permissions"
        ) from None
    names = [line for line in lines if line]
    if not names:
        raise FileMissingError(f"the list {path} names no file", "Write one file a line")
    return names


def text_of(content: bytes) -> str:
    """Decode a text as editors write them: UTF-8 or UTF-16 with or without a mark, else Latin-1."""
    if content.startswith(_UTF16):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _inside_folder(folder: Path) -> list[Found]:
    try:
        found = sorted(_walked(str(folder), frozenset()))
    except OSError as error:
        raise FileUnreadableError(
            f"cannot list {error.filename}: {error.strerror}",
            "Check its permissions, or name files by a glob",
        ) from None
    return [_file(path) for path in _of_one_format(found, str(folder))]


def _walked(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Give all files below a folder, also through links, but not those of a folder it is in itself."""
    seen = os.stat(folder)
    here = (seen.st_dev, seen.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path):
                yield from _walked(entry.path, above | {here})
            else:
                yield entry.path


def _matching(pattern: str) -> list[Found]:
    """Return the files that match; when only folders do, the files below these."""
    matches = [str(Path(match).absolute()) for match in sorted(glob.glob(pattern, recursive=True))]
    folders = [match for match in matches if os.path.isdir(match)]
    files = [_file(match) for match in matches if not os.path.isdir(match)]
    if files and "**" not in pattern:
        _say_left_out(pattern, folders, "folders beside files")
    return files or [file for match in folders for file in _inside_folder(Path(match))]


def _find_remote(location: Location) -> list[Found]:
    url = location.path
    if location.protocol is Protocol.HTTP and not location.is_pattern:
        return [Found(url, None)]
    if location.is_pattern:
        matches = storage_of(location).match(url)
        files = [match for match in matches if not match.is_folder]
        folders = [match.url for match in matches if match.is_folder]
        if files and "**" not in url:
            _say_left_out(url, folders, "folders beside files")
        files = files or [file for folder in folders for file in _below(folder)]
        if not files and (here := storage_of(location).look(url)) is not None:
            return _below(url) if here.is_folder else [here]  # its name holds brackets
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
    plain = [path for path in data if not path.lower().endswith(".json")]
    data = plain or data
    formats = {format_of(path): path for path in data}
    if not data:
        raise FileMissingError(
            f"no data file in the folder {folder}", "Give a folder that holds .root, .parquet, .csv or .jsonl"
        )
    if len(formats) > 1:
        examples = " and ".join(f"{form} ({os.path.basename(path)})" for form, path in formats.items())
        raise JobError(f"the folder {folder} holds {examples}", "Name the files by a glob, as FOLDER/*.root")
    taken = set(data)
    _say_left_out(folder, [path for path in paths if path not in taken], "no suffix of data")
    return data


def _say_left_out(where: str, paths: Sequence[str], why: str) -> None:
    """Log what of a folder or glob is not read."""
    if paths:
        names = ", ".join(os.path.basename(path.rstrip("/")) for path in paths[:3])
        more = f" and {len(paths) - 3:,} more" if len(paths) > 3 else ""
        log.warning("%s: not read: %s%s (%s)", where, names, more, why)
