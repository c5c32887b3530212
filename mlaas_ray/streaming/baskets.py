"""Baskets: the values of a TTree's branches taken from the file's bytes, where that is simple and safe.

uproot takes 200 to 600 us for each branch, and new memory. What most branches of most files are, single
numbers and lists of them, needs no more than decompressing each basket to where its values belong. What else
there is, uproot reads: :meth:`BasketReader.can` tells (docs/decisions/0016-own-baskets.md).

The formats are those of ROOT's classes TKey, TBasket (tree/tree/src/TBasket.cxx) and TLeaf.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import uproot

from mlaas_ray.core.columns import Column, Jagged
from mlaas_ray.core.errors import FileUnreadableError
from mlaas_ray.streaming.buffers import POOL
from mlaas_ray.streaming.codecs import BlockError, Bytes, inflate
from mlaas_ray.streaming.damage import REMEDY
from mlaas_ray.streaming.ranges import Range

Numbers = npt.NDArray[Any]
Offsets = npt.NDArray[np.int64]

# TKey: fNbytes, fVersion, fObjlen, fDatime, fKeylen, fCycle, then fSeekKey: 8 bytes when fVersion is large.
_KEY = struct.Struct(">ihiIhh")
_LARGE_KEY = 1000
# TBasket: fVersion, fBufferSize, fNevBufSize, fNevBuf, fLast and a flag, the last of the key's bytes.
_BASKET = struct.Struct(">hiiiiB")
# What ROOT writes before the values of a std::vector: a byte count, a version, and how many there are.
_VECTOR = 10

_LEAVES = {
    "TLeafO": ("?", "?"),
    "TLeafB": ("i1", "u1"),
    "TLeafS": (">i2", ">u2"),
    "TLeafI": (">i4", ">u4"),
    "TLeafL": (">i8", ">u8"),
    "TLeafG": (">i8", ">u8"),
    "TLeafF": (">f4", ">f4"),
    "TLeafD": (">f8", ">f8"),
}


@dataclass(frozen=True)
class _Branch:
    """What must be known of a branch to read it.

    Attributes:
        name: Its name.
        dtype: Of its values.
        jagged: Whether an entry has a list of them.
        counter: Name of the branch with the number of values of each entry; None for vectors.
        edges: First entry of each basket, and last the tree's entries.
        places: First byte and end of each basket.
    """

    name: str
    dtype: np.dtype[Any]
    jagged: bool
    counter: str | None
    edges: list[int]
    places: list[Range]


@dataclass(frozen=True)
class _Part:
    """The baskets of a branch that hold some entries.

    Attributes:
        branch: The branch.
        start: First entry.
        stop: End of the entries (not included).
        counts: Whether it counts the values of others.
    """

    branch: _Branch
    start: int
    stop: int
    counts: bool = False

    @cached_property
    def baskets(self) -> range:
        """Indices of the baskets."""
        if self.start >= self.stop:
            return range(0)
        edges = self.branch.edges
        return range(bisect_right(edges, self.start) - 1, bisect_left(edges, self.stop))

    @cached_property
    def first(self) -> int:
        """First entry of the first basket."""
        return self.branch.edges[self.baskets.start] if self.baskets else self.start

    @cached_property
    def last(self) -> int:
        """End of the entries of the last basket."""
        return self.branch.edges[self.baskets.stop] if self.baskets else self.start


@dataclass
class _Key:
    """The head of one basket, checked.

    Attributes:
        payload: Its compressed bytes.
        keylen: Bytes of its head, which its own offsets include.
        size: Bytes it makes.
        border: How many of them are values; what follows are offsets.
        entries: How many it holds.
    """

    payload: memoryview
    keylen: int
    size: int
    border: int
    entries: int


@dataclass(frozen=True)
class _Counted:
    """What a counter says.

    Attributes:
        first: The entry it was read from.
        every: ``(entries + 1,)`` offsets of all entries that were read.
        wanted: Of those asked for, from 0.
    """

    first: int
    every: Offsets
    wanted: Offsets


class BasketReader:
    """Reads branches of one TTree; several threads may use it.

    Args:
        branches: uproot's TBranch by name.
        entries: Entries of the tree.
        where: File and tree, for messages.
    """

    def __init__(self, branches: Mapping[str, Any], entries: int, where: str) -> None:
        self._branches = branches
        self._names = {id(branch): name for name, branch in branches.items()}
        self._entries = entries
        self._where = where
        self._known: dict[str, _Branch | None] = {}

    def can(self, name: str) -> bool:
        """Tell whether a branch can be read here; costs some microseconds the first time."""
        if name not in self._known:
            self._known[name] = self._look(name)
        return self._known[name] is not None

    def ranges(self, names: Sequence[str], start: int, stop: int) -> list[Range]:
        """Return which bytes :meth:`decode` needs, whole baskets, of these branches and their counters."""
        return [
            part.branch.places[basket] for part in self._parts(names, start, stop) for basket in part.baskets
        ]

    def decode(
        self, chunks: Sequence[memoryview], names: Sequence[str], start: int, stop: int
    ) -> dict[str, Column]:
        """Make columns of the bytes of :meth:`ranges`, in the file's byte order.

        Branches that have one counter share their offsets.

        Raises:
            FileUnreadableError: When the bytes contradict themselves; names branch and entries.
        """
        parts = self._parts(names, start, stop)
        feed = iter(chunks)
        heads: list[list[_Key]] = []
        for part in parts:
            with _Naming(self._where, part):
                heads.append([_head(next(feed), part.branch, basket) for basket in part.baskets])
        # One piece of memory for all: each record is decompressed to where its values belong, over the
        # offsets of the basket before.
        rooms = [_room(keys) for keys in heads]
        memory = POOL.take(sum(rooms))
        counted: dict[str, _Counted] = {}
        columns: dict[str, Column] = {}
        place = 0
        for part, keys, room in zip(parts, heads, rooms, strict=True):
            name, target = part.branch.name, memory[place : place + room]
            place += room
            with _Naming(self._where, part):
                if part.branch.jagged:
                    columns[name] = _lists(part, keys, target, counted, start, stop)
                    continue
                values = _contents(keys, target).view(part.branch.dtype)
                columns[name] = values[start - part.first : stop - part.first]
                if part.counts:
                    counted[name] = _rising(values, part.first, start, stop)
        return {name: columns[name] for name in names}

    def _parts(self, names: Sequence[str], start: int, stop: int) -> list[_Part]:
        """Return what is to be read, counters first, each for all entries of the baskets it counts."""
        parts = {name: _Part(self._branch(name), start, stop) for name in names}
        counters: dict[str, _Part] = {}
        for part in parts.values():
            name = part.branch.counter
            if name is not None:
                known = counters.get(name)
                low, high = (known.start, known.stop) if known else (start, stop)
                counters[name] = _Part(
                    self._branch(name), min(low, part.first), max(high, part.last), counts=True
                )
        return list(
            (counters | {name: part for name, part in parts.items() if name not in counters}).values()
        )

    def _branch(self, name: str) -> _Branch:
        if not self.can(name):
            raise KeyError(name)
        branch = self._known[name]
        assert branch is not None
        return branch

    def _look(self, name: str) -> _Branch | None:
        """Tell what a branch is, or None when it is not one for us."""
        branch: Any = self._branches.get(name)
        kind = _kind(branch) if branch is not None else None
        where = _places(branch, self._entries) if kind else None
        if kind is None or where is None:
            return None
        dtype, jagged, header = kind
        counter = None
        if jagged and not header:
            counter = self._names.get(id(branch.count_branch))
            if counter is None or counter == name or not self.can(counter):
                return None
            counts = self._branch(counter)
            if counts.jagged or counts.dtype.kind not in "iu":
                return None
        return _Branch(name, dtype, jagged, counter, *where)


class _Naming:
    """Turns what is wrong with some bytes into an error that names the branch."""

    def __init__(self, where: str, part: _Part) -> None:
        self._where, self._part = where, part

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, BlockError):
            part = self._part
            raise FileUnreadableError(
                f"cannot read {self._where}, branch {part.branch.name!r}, entries {part.start} to"
                f" {part.stop}: {error}",
                REMEDY,
            ) from error


def _kind(branch: Any) -> tuple[np.dtype[Any], bool, int] | None:
    """Return type, whether there are lists, and their headers; None for anything but plain numbers."""
    leaves = branch.member("fLeaves")
    if len(leaves) != 1 or branch.branches:
        return None
    leaf = leaves[0]
    title = leaf.member("fTitle")
    if branch.classname == "TBranch" and leaf.classname in _LEAVES:
        dtype = np.dtype(_LEAVES[leaf.classname][bool(leaf.member("fIsUnsigned"))])
        lists = leaf.member("fLeafCount") is not None
        if leaf.member("fLen") != 1 or title.count("[") != int(lists):
            return None
        return dtype, lists, 0
    if branch.classname != "TBranchElement":
        return None
    interpretation = branch.interpretation  # its class is in the streamers, which uproot knows to read
    jagged = isinstance(interpretation, uproot.AsJagged)
    inner = interpretation.content if jagged else interpretation
    if type(inner) is not uproot.AsDtype or inner.from_dtype != inner.to_dtype.newbyteorder(">"):
        return None
    dtype = inner.from_dtype
    if dtype.shape or dtype.fields or dtype.kind not in "biuf":
        return None
    header = interpretation.header_bytes if jagged else 0
    return (dtype, jagged, header) if header in (0, _VECTOR) else None


def _places(branch: Any, entries: int) -> tuple[list[int], list[Range]] | None:
    """Return the edges and places of the baskets; None when some are not in the file by themselves."""
    count = branch.member("fWriteBasket")
    seeks = branch.member("fBasketSeek")[:count].tolist()
    sizes = branch.member("fBasketBytes")[:count].tolist()
    edges = branch.member("fBasketEntry")[: count + 1].tolist()
    if branch.member("fEntries") != entries or len(seeks) != count or len(sizes) != count:
        return None
    if len(edges) == count:
        edges.append(entries)
    # entries after the last basket are in one that was never flushed, and lies with the tree's metadata
    if edges[0] != 0 or edges[-1] != entries or any(a >= b for a, b in pairwise(edges)):
        return None
    if any(seek <= 0 or size <= 0 for seek, size in zip(seeks, sizes, strict=True)):
        return None
    return edges, [(seek, seek + size) for seek, size in zip(seeks, sizes, strict=True)]


def _head(chunk: memoryview, branch: _Branch, basket: int) -> _Key:
    """Read and check a basket's head, which says in several places what it is."""
    place, end = branch.places[basket]
    entries = branch.edges[basket + 1] - branch.edges[basket]
    if len(chunk) != end - place or len(chunk) < _KEY.size + 8 + _BASKET.size:
        raise BlockError(f"basket {basket} is cut short")
    size, version, objlen, _, keylen, _ = _KEY.unpack_from(chunk)
    width = 8 if version > _LARGE_KEY else 4
    seek = int.from_bytes(chunk[_KEY.size : _KEY.size + width])
    if not _KEY.size + width + _BASKET.size <= keylen <= size or size != len(chunk) or seek != place:
        raise BlockError(f"the head of basket {basket} is damaged")
    _, _, _, held, last, _ = _BASKET.unpack_from(chunk, keylen - _BASKET.size)
    border = last - keylen
    if held != entries or not 0 <= border <= objlen:
        raise BlockError(f"the head of basket {basket} is damaged")
    if not branch.jagged and border != entries * branch.dtype.itemsize:
        raise BlockError(f"basket {basket} has {border:,} bytes for {entries:,} entries")
    # zstd's shortest block is 4 bytes for 128 KiB: no damage may ask for memory without end
    if objlen > 40_000 * (size - keylen):
        raise BlockError(f"the head of basket {basket} is damaged")
    return _Key(chunk[keylen:], keylen, objlen, border, entries)


def _room(keys: Sequence[_Key]) -> int:
    """Return how many bytes the records of a branch need, a multiple of 64."""
    place, end = 0, 0
    for key in keys:
        end = max(end, place + key.size)
        place += key.border
    return -(-end // 64) * 64


def _contents(keys: Sequence[_Key], target: Bytes) -> Bytes:
    """Decompress baskets so that their values follow each other."""
    place = 0
    for key in keys:
        inflate(key.payload, target[place : place + key.size])
        place += key.border
    return target[:place]


def _rising(counts: Numbers, first: int, start: int, stop: int) -> _Counted:
    """Make offsets of the numbers of values of each entry from ``first`` on."""
    if counts.dtype.kind == "i" and len(counts) and counts.min() < 0:
        raise BlockError("it counts less than no values")
    every = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=every[1:], dtype=np.int64)
    wanted = every[start - first : stop - first + 1]
    return _Counted(first, every, wanted - wanted[0])


def _lists(
    part: _Part, keys: Sequence[_Key], target: Bytes, counted: Mapping[str, _Counted], start: int, stop: int
) -> Jagged:
    """Read lists: where each begins is told by the counter, or else by the baskets themselves.

    Where both are there, both must be right: one that is not is damage that no codec need have told.
    """
    branch, first = part.branch, part.first
    if branch.counter is None:
        return _vectors(keys, target, branch, start - first, stop - first)
    counter = counted[branch.counter]
    offsets = counter.every[first - counter.first : part.last - counter.first + 1]
    if not _agree(keys, offsets, branch):
        raise BlockError(f"it does not have as many values as {branch.counter!r} counts")
    content = _contents(keys, target).view(branch.dtype)
    low, high = offsets[start - first] - offsets[0], offsets[stop - first] - offsets[0]
    return Jagged(counter.wanted, content[low:high])


def _agree(keys: Sequence[_Key], offsets: Offsets, branch: _Branch) -> bool:
    """Tell whether each basket has as many bytes as the counter says."""
    entry = 0
    for key in keys:
        due = (offsets[entry + key.entries] - offsets[entry]) * branch.dtype.itemsize
        if due != key.border:
            return False
        entry += key.entries
    return True


def _vectors(keys: Sequence[_Key], target: Bytes, branch: _Branch, start: int, stop: int) -> Jagged:
    """Read vectors by the offsets that each basket has itself, after its values, and drop their headers."""
    item = branch.dtype.itemsize
    contents, counts = [np.zeros(0, np.uint8)], [np.zeros(0, np.int64)]
    for key in keys:
        record = target[: key.size]
        inflate(key.payload, record)
        edges = _own_offsets(record, key)
        sizes = np.diff(edges) - _VECTOR
        if (sizes < 0).any():
            raise BlockError("its offsets do not fit its values")
        values = record[: key.border]
        heads = edges[:-1, None] + np.arange(_VECTOR)
        if (values[heads[:, -4:]].view(">u4")[:, 0] * item != sizes).any():
            raise BlockError("its vectors are not as long as they say")
        keep = np.ones(len(values), bool)
        keep[heads] = False
        contents.append(values[keep])
        counts.append(sizes // item)
    offsets = np.zeros(1 + sum(map(len, counts)), np.int64)
    np.cumsum(np.concatenate(counts), out=offsets[1:])
    content = np.concatenate(contents).view(branch.dtype)
    wanted = offsets[start : stop + 1]
    return Jagged(wanted - wanted[0], content[wanted[0] : wanted[-1]])


def _own_offsets(record: Bytes, key: _Key) -> Offsets:
    """Return where each list of a basket begins, and last where its values end."""
    raw = record[key.border :]
    if key.entries == 0:
        return np.zeros(1, np.int64)
    if len(raw) < 4 * (key.entries + 1):
        raise BlockError("a basket has no offsets")
    edges = np.empty(key.entries + 1, np.int64)
    # first comes how many there are; each includes the length of the head
    edges[:-1] = raw[4 : 4 * (key.entries + 1)].view(">i4")
    edges[:-1] -= key.keylen
    edges[-1] = key.border
    if edges[0] != 0 or (edges[1:] < edges[:-1]).any():
        raise BlockError("its offsets do not rise")
    return edges
