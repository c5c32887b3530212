"""Opening a TTree, and telling what its branches are, with errors that name file, tree and branch."""

from __future__ import annotations

import functools
import lzma
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import awkward as ak
import cramjam
import uproot

from mlaas_ray.core.columns import Kind
from mlaas_ray.core.errors import (
    BranchMissingError,
    DataError,
    FileMissingError,
    FileUnreadableError,
    MlaasError,
    TreeMissingError,
    nearest,
)
from mlaas_ray.core.location import Protocol, locate
from mlaas_ray.streaming.xrootd import code, configure_xrootd, why

# What uproot and its decompressors raise on bytes that are not what they should be.
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AssertionError,
    NotImplementedError,
    EOFError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    cramjam.DecompressionError,
    uproot.deserialization.DeserializationError,
)


@contextmanager
def naming(path: str, tree: str | None = None) -> Iterator[None]:
    """Turn whatever reading raises into an error that names the file (and tree).

    Raises:
        FileMissingError: When the file is not there.
        FileUnreadableError: When it is there, but cannot be read.
    """
    try:
        yield
    except MlaasError:
        raise
    except _DAMAGE as error:
        where = f"{path}, tree {tree!r}" if tree else path
        if isinstance(error, FileNotFoundError) or code(error) == "3011":
            raise FileMissingError(f"no such file: {path}", "Check the path or URL") from error
        reason = _reason(error, path)
        remedy = "It may be cut short or damaged: copy it again, or leave it out"
        if "not a ROOT file" in reason:
            reason, remedy = "it is not a ROOT file", "Give ROOT files"
        elif locate(path).protocol is Protocol.XROOTD and code(error) is None:
            remedy = "Check that the server answers and that your credentials are valid"
        raise FileUnreadableError(f"cannot read {where}: {reason}", remedy) from error


def _check_header(path: str, size: int) -> None:
    """Refuse a local file that is not ROOT, or shorter than its header says (ROOT class TFile, fEND).

    uproot would trip over such a file wherever the first missing bytes are.
    """
    with open(path, "rb") as file:
        head = file.read(20)
    if not head.startswith(b"root"):
        raise FileUnreadableError(f"cannot read {path}: it is not a ROOT file", "Give ROOT files")
    large = int.from_bytes(head[4:8], signed=True) >= 1_000_000
    _refuse_short(path, size, int.from_bytes(head[12 : 20 if large else 16]))


def _refuse_short(path: str, size: int, due: int) -> None:
    if size < due:
        raise FileUnreadableError(
            f"cannot read {path}: it is cut short: {size:,} bytes of {due:,}",
            "Copy it again, or leave it out",
        )


def open_tree(path: str, tree: str | None = None) -> Any:
    """Open a TTree, or return the one this process opened before.

    Args:
        path: A local path or URL.
        tree: Its name, with its folders; None for the file's only tree, or ``Events`` among several.

    Returns:
        uproot's TTree.

    Raises:
        FileMissingError: When the file is not there.
        FileUnreadableError: When it cannot be read.
        TreeMissingError: When it holds no such tree; names those it holds.
    """
    location = locate(path)
    if location.protocol is Protocol.XROOTD:
        configure_xrootd()
    with naming(path):
        state = os.stat(location.path) if location.is_local else None
        if state:
            _check_header(location.path, state.st_size)
        return _open(path, tree, (state.st_mtime_ns, state.st_size) if state else None)


@functools.lru_cache(maxsize=8)
def _open(path: str, tree: str | None, state: tuple[int, int] | None) -> Any:
    """Open a tree; ``state`` is part of the key, so that a file that was replaced is opened anew."""
    # Stock XRootDSource never fails over behind a redirector; fsspec-xrootd does. The caches would keep
    # decompressed arrays of the last events in memory, which nobody reads twice.
    handler = uproot.MemmapSource if state else uproot.source.fsspec.FSSpecSource
    file = uproot.open({path: None}, handler=handler, object_cache=None, array_cache=None)
    if file.file.source.num_bytes is not None:
        _refuse_short(path, file.file.source.num_bytes, file.file.fEND)
    name = tree or _only_tree(file, path)
    try:
        found = file[name]
    except KeyError:
        raise TreeMissingError(f"{path} holds no tree {name!r}", _offer(file)) from None
    if not isinstance(found, uproot.TTree):
        kind = getattr(found, "classname", type(found).__name__)
        raise TreeMissingError(f"{name!r} in {path} is a {kind}, no TTree", _offer(file))
    return found


def _trees(file: Any) -> list[str]:
    return list(dict.fromkeys(file.keys(cycle=False, filter_classname="TTree")))


def _only_tree(file: Any, path: str) -> str:
    trees = _trees(file)
    if len(trees) == 1 or "Events" in trees:
        return "Events" if "Events" in trees else trees[0]
    if not trees:
        raise TreeMissingError(
            f"{path} holds no TTree", f"Give a file that does; it holds: {_contents(file)}"
        )
    raise TreeMissingError(f"{path} holds several trees", f"Name one of: {', '.join(trees[:10])}")


def _offer(file: Any) -> str:
    trees = _trees(file)
    return f"Its trees: {', '.join(trees[:10])}" if trees else f"It holds no TTree, but {_contents(file)}"


def _contents(file: Any) -> str:
    classes = file.classnames(cycle=False)
    return ", ".join(f"{name} ({kind})" for name, kind in list(classes.items())[:5]) or "nothing"


def branch_kinds(tree: Any) -> tuple[dict[str, Kind], dict[str, str]]:
    """Tell which branches can be columns.

    Returns:
        The numeric ones (``flat`` or ``jagged``) by name, and the others with their C++ types.
    """
    kinds: dict[str, Kind] = {}
    others: dict[str, str] = {}
    for name, branch in tree.iteritems(recursive=True):
        if branch.branches:
            continue
        kind = _kind(branch.interpretation)
        if kind is None or name in kinds:
            others[name] = branch.typename
        else:
            kinds[name] = kind
    return kinds, others


def _kind(interpretation: Any) -> Kind | None:
    jagged = isinstance(interpretation, uproot.AsJagged) and interpretation.header_bytes in (0, 10)
    inner = interpretation.content if jagged else interpretation
    # AsDouble32 and its like are no subclasses of AsDtype's plain form
    if type(inner) is not uproot.AsDtype or inner.to_dtype.shape or inner.to_dtype.kind not in "biuf":
        return None
    return "jagged" if jagged else "flat"


def choose(
    kinds: Mapping[str, Kind],
    others: Mapping[str, str],
    where: str,
    include: Sequence[str] | None,
    exclude: Sequence[str],
) -> dict[str, Kind]:
    """Choose branches by name or glob.

    Args:
        kinds: The numeric branches.
        others: The other branches with their types.
        where: The file and tree, for messages.
        include: Names or globs; None for every numeric branch.
        exclude: Names or globs to leave out.

    Raises:
        BranchMissingError: When a name or glob of ``include`` matches nothing.
        DataError: When a branch was named that is not numeric, or nothing is left.
    """
    wanted = list(kinds) if include is None else []
    for pattern in include or []:
        matches = [name for name in kinds if fnmatchcase(name, pattern)]
        if not matches and pattern in others:
            raise DataError(
                f"branch {pattern!r} in {where} is no numeric branch ({others[pattern]})", "Leave it out"
            )
        if not matches:
            raise BranchMissingError(f"no branch {pattern!r} in {where}", nearest(pattern, kinds))
        wanted += matches
    chosen = {
        name: kinds[name]
        for name in dict.fromkeys(wanted)
        if not any(fnmatchcase(name, glob) for glob in exclude)
    }
    if not chosen:
        raise BranchMissingError(
            f"no numeric branch is left to read in {where}", "Widen include, or exclude less"
        )
    return chosen


def read_arrays(path: str, tree: str, names: Sequence[str], start: int, stop: int) -> dict[str, ak.Array]:
    """Read branches of the entries ``start`` to ``stop`` (not included), in one request where the source can.

    Raises:
        FileMissingError: When the file is not there.
        FileUnreadableError: When it cannot be read.
        BranchMissingError: When it lacks a branch.
    """
    opened = open_tree(path, tree)
    wanted = set(names)
    with naming(path, tree):
        absent = [name for name in names if name not in opened]
        if absent:
            raise BranchMissingError(
                f"no branch {absent[0]!r} in {path}, tree {tree!r}", nearest(absent[0], opened.keys())
            )
        try:
            arrays = _arrays(opened, wanted, start, stop)
        except _DAMAGE as error:
            raise _blame(opened, path, names, start, stop, error) from error
        return {name: arrays[name] for name in names}


def _arrays(tree: Any, names: Set[str], start: int, stop: int) -> dict[str, ak.Array]:
    arrays: dict[str, ak.Array] = tree.arrays(
        filter_branch=lambda branch: branch.name in names,
        entry_start=start,
        entry_stop=stop,
        library="ak",
        how=dict,
    )
    return arrays


def _blame(
    tree: Any, path: str, names: Sequence[str], start: int, stop: int, error: BaseException
) -> FileUnreadableError:
    """Find the branch that cannot be read, so that the user knows what else the file still gives."""
    for name in names:
        try:
            _arrays(tree, {name}, start, stop)
        except _DAMAGE as own:
            return FileUnreadableError(
                f"cannot read {path}, tree {tree.name!r}, branch {name!r}, entries {start} to {stop}: "
                + _reason(own, path),
                "The file may be damaged: copy it again, or leave out the file or the branch",
            )
    return FileUnreadableError(f"cannot read {path}, tree {tree.name!r}: {_reason(error, path)}", "Try again")


def _reason(error: BaseException, path: str) -> str:
    return why(error).removesuffix(f" in file {path}").removesuffix(f" for file path {path}")
