"""A ROOT file: opening it, and finding the tree in it, be it a TTree or an RNTuple."""

from __future__ import annotations

import re
from typing import Any

import uproot

from mlaas_ray.core.errors import FileUnreadableError, TreeMissingError
from mlaas_ray.streaming.damage import DAMAGE, check_header, naming, refuse_short
from mlaas_ray.streaming.events import Events, Nested
from mlaas_ray.streaming.rntuple import RNTupleEvents
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.transport import ByteSource, open_bytes
from mlaas_ray.streaming.ttree import TTreeEvents
from mlaas_ray.streaming.uproot_source import uproot_source

TTREE = "TTree"
RNTUPLE = "ROOT::RNTuple"
# Written before version 1 of the format, which readers since then do not know.
EXPERIMENTAL_RNTUPLE = "ROOT::Experimental::RNTuple"
# What trees of events are called, whatever lies beside them; and trees that hold no events, but tell of them.
_OF_EVENTS = ("Events", "events", "CollectionTree", "EventData", "Delphes")
_OF_OTHERS = re.compile(
    r"Runs?|Lumi\w*|(\w+_)?(?i:metadata)\w*|ParameterSets|Parentage|DataHeader\w*|EventTag|sumWeights|##\w*"
)
_FOLDERS = ("TDirectory", "TDirectoryFile")
_TREES = (TTREE, "TNtuple", "TNtupleD", RNTUPLE, EXPERIMENTAL_RNTUPLE)


def open_tree(source: Source, tree: str | None, nested: Nested) -> Events:
    """Open a TTree or an RNTuple of a ROOT file; for arguments and errors see :func:`.open_events`."""
    data = open_bytes(source)
    file = open_root(data)
    name, kind = find_tree(file, source.path, tree)
    if kind == EXPERIMENTAL_RNTUPLE:
        raise FileUnreadableError(
            f"cannot read {source.path}, tree {name!r}: it is an experimental RNTuple, written before"
            " version 1 of the format",
            "Write it again with ROOT 6.34 or later",
        )
    with naming(source.path, name):
        found = file[name]
    events = (RNTupleEvents if kind == RNTUPLE else TTreeEvents)(found, name, data, nested)
    if tree is None:
        events.beside = tuple(other for other in _trees(file) if other != name)
    return events


def open_root(data: ByteSource) -> Any:
    """Open a ROOT file.

    Returns:
        uproot's ReadOnlyDirectory of its top folder.

    Raises:
        FileUnreadableError: When it is not ROOT, cut short, or cannot be read.
    """
    with naming(data.path):
        try:
            # The caches would keep decompressed arrays of the last events, which nobody reads twice.
            file = uproot.open(
                {data.path: None}, handler=uproot_source(data), object_cache=None, array_cache=None
            )
        except DAMAGE:
            # uproot trips over a short file wherever the first missing bytes are; its header says it better.
            check_header(data.path, data.read([(0, min(20, data.size))])[0], data.size)
            raise
        refuse_short(data.path, data.size, file.file.fEND)
        return file


def find_tree(file: Any, path: str, tree: str | None) -> tuple[str, str]:
    """Find a tree by its name, without reading it.

    Args:
        file: The open file.
        path: Its path or URL, for messages.
        tree: The tree's name, with its folders, or a folder's; None for all of the file. Of what is no tree
            the only one in it is taken, or that of the events among several.

    Returns:
        Its name, and its class.

    Raises:
        TreeMissingError: When there is no such tree; names those there are.
    """
    with naming(path):
        name = (tree or "").strip("/") or _only_tree(file, path)
        try:
            kind = file.key(name).classname()
            if kind in _FOLDERS:
                name = _only_tree(file, path, name)
                kind = file.key(name).classname()
        except (KeyError, AttributeError):  # the latter where what should be a folder is none
            raise TreeMissingError(f"{path} holds no tree {name!r}", _offer(file)) from None
        if kind not in _TREES:
            raise TreeMissingError(f"{name!r} in {path} is a {kind}, no tree", _offer(file))
        return name, kind


def _trees(file: Any) -> list[str]:
    return list(dict.fromkeys(file.keys(cycle=False, filter_classname=lambda kind: kind in _TREES)))


def _only_tree(file: Any, path: str, folder: str = "") -> str:
    """Return the tree that is meant where a file, or a folder of it, is named alone."""
    start = f"{folder}/" if folder else ""
    trees = [name for name in _trees(file) if name.startswith(start)]
    own = {tree: tree.rpartition("/")[2] for tree in trees}
    called = [
        [start + name] if start + name in trees else [tree for tree in trees if own[tree] == name]
        for name in _OF_EVENTS
    ]
    others = [tree for tree in trees if not _OF_OTHERS.fullmatch(own[tree])]
    for only in (trees, *called, others):
        if len(only) == 1:
            return only[0]
    where = f"the folder {folder!r} of {path}" if folder else path
    if not trees:
        raise TreeMissingError(
            f"{where} holds no tree", f"Give a file that does; it holds: {_contents(file)}"
        )
    raise TreeMissingError(f"{where} holds several trees", f"Name one of: {', '.join(trees[:10])}")


def _offer(file: Any) -> str:
    trees = _trees(file)
    return f"Its trees: {', '.join(trees[:10])}" if trees else f"It holds no tree, but {_contents(file)}"


def _contents(file: Any) -> str:
    classes = file.classnames(cycle=False)
    return ", ".join(f"{name} ({kind})" for name, kind in list(classes.items())[:5]) or "nothing"
