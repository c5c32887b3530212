"""Leaves: what the branches of a TTree are called, and what the values of an event look like in each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import awkward as ak
import numpy as np
import uproot
from uproot.containers import AsArray, AsList, AsRVec, AsSet, AsVector
from uproot.interpretation.numerical import AsFloat16, TruncatedNumerical

from mlaas_ray.core.columns import Column, Kind, from_awkward
from mlaas_ray.streaming.vectors import is_vector

_LISTS = (AsArray, AsList, AsRVec, AsSet, AsVector)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the values of one event are.

    Attributes:
        kind: Their kind as a column.
        length: How many, when fixed.
        axes: Of the values of all events, the events' own among them; more than 2 are flattened.
        nested: Whether that loses which list of an event a value was in.
        each: Values that uproot gives for each object that the branch's counter counts.
    """

    kind: Kind
    length: int = 1
    axes: int = 1
    nested: bool = False
    each: int = 1


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where the values of a column are.

    Attributes:
        branch: uproot's TBranch.
        members: Names that lead to it in what uproot reads, of a leaf of several (a leaf list) or of objects.
        counter: The TBranch that counts the objects of each event, where there is one.
    """

    branch: Any
    members: tuple[str, ...] = ()
    counter: Any = None

    @property
    def layout(self) -> Layout | None:
        """What an event's values look like; None when they are no numbers."""
        interpretation = self.branch.interpretation
        if not self.members:
            return _layout(interpretation)
        content = interpretation.content if isinstance(interpretation, uproot.AsJagged) else interpretation
        fields = content.to_dtype.fields if isinstance(content, uproot.AsDtype) else None
        name = "/".join(self.members)
        layout = _of_dtype(fields[name][0]) if fields and name in fields else None
        if content is interpretation or layout is None:
            return layout
        return _of_lists(1 + layout.axes)

    @property
    def typename(self) -> str:
        """The C++ type, for people."""
        interpretation = self.branch.interpretation
        if isinstance(interpretation, uproot.interpretation.identify.UnknownInterpretation):
            return f"unknown to uproot: {interpretation.reason}"
        if self.members and interpretation.numpy_dtype.shape:
            return f"unknown to uproot: array of leaf lists {self.branch.title}"
        return str(self.branch.typename)

    @property
    def dtype(self) -> str:
        """The type of its numbers, as numpy calls it."""
        kind: Any = self.branch.interpretation
        kind = kind.model if isinstance(kind, uproot.AsObjects) else kind
        while isinstance(kind, _LISTS):
            kind = kind.keys if isinstance(kind, AsSet) else kind.values
        kind = kind.content if isinstance(kind, uproot.AsJagged) else kind
        dtype: Any = kind if isinstance(kind, np.dtype) else kind.to_dtype
        dtype = dtype.fields["/".join(self.members)][0] if self.members else dtype
        return str(dtype.base.newbyteorder("=").name)

    @property
    def interpretation(self) -> Any:
        """How uproot is to read the branch.

        Of lists of arrays of truncated numbers it would take each number for an array (uproot 5.7.7): they
        are read as lists of numbers.
        """
        found = self.branch.interpretation
        if isinstance(found, TruncatedNumerical):
            return _truncated(found, found.to_dims)
        if isinstance(found, uproot.AsJagged) and isinstance(found.content, TruncatedNumerical):
            return uproot.AsJagged(_truncated(found.content, ()))
        return found

    @property
    def is_bits(self) -> bool:
        """Whether it holds the bits of TObjects, which a number follows where a reference points to one."""
        return bool(self.branch.member("fStreamerType", none_if_missing=True) == uproot.const.kBits)

    def column(self, array: Any, layout: Layout, name: str, counts: Any = None) -> Column:
        """Make a column of what uproot read of the branch.

        Args:
            array: What it read.
            layout: What the branch holds.
            name: Of the column, for messages.
            counts: The objects of each event, by the branch's counter.

        Raises:
            ValueError: When there are not as many values as that.
        """
        for member in self.members:
            array = array[member]
        if counts is not None and not np.array_equal(
            np.asarray(ak.num(array)), np.asarray(counts) * layout.each
        ):
            raise ValueError(f"it does not have as many values as {self.counter.name!r} counts")
        if layout.kind == "fixed":
            return np.asarray(ak.to_numpy(array)).reshape(len(array), layout.length)
        for _ in range(layout.axes - 2):
            array = ak.flatten(array, axis=2)
        return from_awkward(array, name)


def find_leaves(tree: Any) -> dict[str, Leaf]:
    """Name everything in a TTree that may be columns, without interpreting any of it.

    Branches inside other branches go by their own names where those are unique in the tree, and else by their
    paths (``trks/pos``); the leaves of a leaf list are ``<branch>.<leaf>``. Where even that leads to two, the
    second has a number: ``pos;2``.
    """
    everything = list(tree.iteritems(recursive=True))
    found = [(path, branch) for path, branch in everything if not branch.branches]
    bearers = Counter(branch.name for _, branch in found)
    # uproot's count_branch is whichever branch the file's bytes name the counter's leaf in first (5.7.7)
    owners = {id(leaf): branch for _, branch in everything for leaf in branch.member("fLeaves")}
    leaves: dict[str, Leaf] = {}
    for path, branch in found:
        name = branch.name if bearers[branch.name] == 1 else path
        members = [leaf.member("fName") for leaf in branch.member("fLeaves")]
        if len(members) < 2:
            counter = owners.get(id(branch.count_leaf)) if members else None
            leaves[_free(name, leaves)] = Leaf(branch, counter=counter)
            continue
        for member in members:
            leaves[_free(f"{name}.{member}", leaves)] = Leaf(branch, (member,))
    return leaves


def find_parts(name: str, leaf: Leaf) -> dict[str, Leaf]:
    """Return what a branch of whole physics vectors stores, such as ``jet.fP.fX``; nothing of any other."""
    interpretation = leaf.branch.interpretation
    content = interpretation.content if isinstance(interpretation, uproot.AsJagged) else interpretation
    if not isinstance(content, uproot.AsStridedObjects) or not is_vector(content.typename):
        return {}
    paths = [tuple(path.split("/")) for path in content.to_dtype.fields or () if "@" not in path]
    return {".".join((name, *path)): Leaf(leaf.branch, path, leaf.counter) for path in paths}


def _free(name: str, taken: Mapping[str, Leaf]) -> str:
    """Return a name, with a number where it is taken."""
    numbered = (f"{name};{number}" for number in count(2))
    return name if name not in taken else next(one for one in numbered if one not in taken)


def _truncated(found: Any, dims: tuple[int, ...]) -> Any:
    """Return how truncated numbers are read.

    Without a range, 15 bits and more count as none given (ROOT's TStreamerElement, GetRange), which uproot
    5.7.7 does not know: a Float16_t has 12 then, and a Double32_t is a float.
    """
    if not found.is_truncated or found.num_bits < 15:
        return type(found)(found.low, found.high, found.num_bits, dims)
    if isinstance(found, AsFloat16):
        return AsFloat16(0, 0, 12, dims)
    return uproot.AsDtype(np.dtype((">f4", dims)), np.dtype(("f8", dims)))


def _layout(interpretation: Any) -> Layout | None:
    if isinstance(interpretation, uproot.AsJagged):
        inner = _numbers(interpretation.content)
        if inner and isinstance(interpretation.content, TruncatedNumerical):
            return Layout("jagged", axes=2, nested=True, each=math.prod(inner))
        return None if inner is None else _of_lists(2 + len(inner))
    if isinstance(interpretation, uproot.AsObjects):
        depth = _depth(interpretation.model)
        return None if depth is None else _of_lists(1 + depth)
    shape = _numbers(interpretation)
    return None if shape is None else _of_shape(shape)


def _of_lists(axes: int) -> Layout:
    return Layout("jagged", axes=axes, nested=axes > 2)


def _of_dtype(dtype: np.dtype[Any]) -> Layout | None:
    return _of_shape(dtype.shape) if dtype.base.kind in "biuf" else None


def _of_shape(shape: tuple[int, ...]) -> Layout | None:
    if not shape:
        return Layout("flat")
    length = math.prod(shape)
    return Layout("fixed", length, 1 + len(shape)) if length else None


def _numbers(interpretation: Any) -> tuple[int, ...] | None:
    """Return the inner shape of an interpretation as numbers, or None when it is none."""
    if type(interpretation) is not uproot.AsDtype and not isinstance(interpretation, TruncatedNumerical):
        return None
    dtype = interpretation.to_dtype
    return dtype.shape if dtype.base.kind in "biuf" else None


def _depth(model: Any) -> int | None:
    """Return how many lists are inside each other around a number, or None when something else is."""
    depth = 0
    while isinstance(model, _LISTS):
        depth += 1 + (len(model.inner_shape) if isinstance(model, AsArray) else 0)
        model = model.keys if isinstance(model, AsSet) else model.values
    return depth if isinstance(model, np.dtype) and model.kind in "biuf" else None
