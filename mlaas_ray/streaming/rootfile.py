"""A ROOT file: opening it, and finding the tree in it, be it a TTree or an RNTuple."""

from __future__ import annotations

import os
from typing import Any

import uproot

from mlaas_ray.core.errors import FileUnreadableError, TreeMissingError
from mlaas_ray.core.location import Protocol, locate
from mlaas_ray.streaming.damage import check_header, naming, refuse_short
from mlaas_ray.streaming.events import Events, Nested
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.ttree import TTreeEvents
from mlaas_ray.streaming.xrootd import configure_xrootd

TTREE = "TTree"
RNTUPLE = "ROOT::RNTuple"
# Written before version 1 of the format, which readers since then do not know.
EXPERIMENTAL_RNTUPLE = "ROOT::Experimental::RNTuple"
_TREES = (TTREE, "TNtuple", "TNtupleD", RNTUPLE, EXPERIMENTAL_RNTUPLE)


def open_tree(source: Source, tree: str | None, nested: Nested) -> Events:
    """Open a TTree or an RNTuple of a ROOT file; for arguments and errors see :func:`.open_events`."""
    file = open_root(source)
    name, kind = find_tree(file, source.path, tree)
    with naming(source.path, name):
        if kind == EXPERIMENTAL_RNTUPLE:
            raise FileUnreadableError(
                f"cannot read {source.path}, tree {name!r}: it was written as an experimental RNTuple, before"
                " version 1 of the format",
                "Write it again with ROOT 6.34 or later",
            )
        if kind == RNTUPLE:
            raise FileUnreadableError(f"cannot read {source.path}, tree {name!r}: it is an RNTuple")
        return TTreeEvents(file[name], source.path, nested)


def open_root(source: Source) -> Any:
    """Open a ROOT file.

    Returns:
        uproot's ReadOnlyDirectory of its top folder.

    Raises:
        FileMissingError: When the file is not there.
        FileUnreadableError: When it is not ROOT, cut short, or cannot be reached.
    """
    location = locate(source.path)
    if location.protocol is Protocol.XROOTD:
        configure_xrootd()
    with naming(source.path):
        if location.is_local:
            check_header(location.path, os.stat(location.path).st_size)
        # Stock XRootDSource never fails over behind a redirector; fsspec-xrootd does. The caches would keep
        # decompressed arrays of the last events in memory, which nobody reads twice.
        handler = uproot.MemmapSource if location.is_local else uproot.source.fsspec.FSSpecSource
        file = uproot.open({location.path: None}, handler=handler, object_cache=None, array_cache=None)
        if file.file.source.num_bytes is not None:
            refuse_short(source.path, file.file.source.num_bytes, file.file.fEND)
        return file


def find_tree(file: Any, path: str, tree: str | None) -> tuple[str, str]:
    """Find a tree by its name, without reading it.

    Args:
        file: The open file.
        path: Its path or URL, for messages.
        tree: The tree's name, with its folders; None for the only one, or ``Events`` among several.

    Returns:
        Its name, and its class.

    Raises:
        TreeMissingError: When there is no such tree; names those there are.
    """
    with naming(path):
        name = tree.strip("/") if tree else _only_tree(file, path)
        try:
            kind = file.classname_of(name)
        except KeyError:
            raise TreeMissingError(f"{path} holds no tree {name!r}", _offer(file)) from None
        if kind not in _TREES:
            raise TreeMissingError(f"{name!r} in {path} is a {kind}, no tree", _offer(file))
        return name, kind


def _trees(file: Any) -> list[str]:
    return list(dict.fromkeys(file.keys(cycle=False, filter_classname=lambda kind: kind in _TREES)))


def _only_tree(file: Any, path: str) -> str:
    trees = _trees(file)
    if len(trees) == 1 or "Events" in trees:
        return "Events" if "Events" in trees else trees[0]
    if not trees:
        raise TreeMissingError(f"{path} holds no tree", f"Give a file that does; it holds: {_contents(file)}")
    raise TreeMissingError(f"{path} holds several trees", f"Name one of: {', '.join(trees[:10])}")


def _offer(file: Any) -> str:
    trees = _trees(file)
    return f"Its trees: {', '.join(trees[:10])}" if trees else f"It holds no tree, but {_contents(file)}"


def _contents(file: Any) -> str:
    classes = file.classnames(cycle=False)
    return ", ".join(f"{name} ({kind})" for name, kind in list(classes.items())[:5]) or "nothing"
