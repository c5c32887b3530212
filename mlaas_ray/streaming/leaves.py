"""Leaves: what the branches of a TTree are called, and what the values of an event look like in each."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
import uproot
from uproot.containers import AsArray, AsList, AsRVec, AsSet, AsVector
from uproot.interpretation.numerical import TruncatedNumerical

from mlaas_ray.core.columns import Column, Kind, from_awkward

_LISTS = (AsArray, AsList, AsRVec, AsSet, AsVector)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the values of one event are.

    Attributes:
        kind: Their kind as a column.
        length: How many, when fixed.
        axes: Of the values of all events, the events' own among them; more than 2 are flattened.
        nested: Whether that loses which list of an event a value was in.
    """

    kind: Kind
    length: int = 1
    axes: int = 1
    nested: bool = False


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where the values of a column are.

    Attributes:
        branch: uproot's TBranch.
        path: The branch's names from the tree down, by which uproot finds it.
        member: The leaf's name, in a branch of several (a leaf list).
    """

    branch: Any
    path: str
    member: str | None = None

    @property
    def layout(self) -> Layout | None:
        """What an event's values look like; None when they are no numbers."""
        interpretation = self.branch.interpretation
        if self.member is None:
            return _layout(interpretation)
        fields = interpretation.to_dtype.fields if type(interpretation) is uproot.AsDtype else None
        return _of_dtype(fields[self.member][0]) if fields and self.member in fields else None

    @property
    def typename(self) -> str:
        """The C++ type, for people."""
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
        dtype = dtype if self.member is None else dtype.fields[self.member][0]
        return str(dtype.base.newbyteorder("=").name)

    def column(self, array: Any, layout: Layout, name: str) -> Column:
        """Make a column of what uproot read of the branch."""
        array = array if self.member is None else array[self.member]
        if layout.kind == "fixed":
            return np.asarray(ak.to_numpy(array)).reshape(len(array), layout.length)
        for _ in range(layout.axes - 2):
            array = ak.flatten(array, axis=2)
        return from_awkward(array, name)


def find_leaves(tree: Any) -> tuple[dict[str, Leaf], dict[str, str]]:
    """Name everything in a TTree that may be columns, without interpreting any of it.

    Branches inside other branches go by their own names where those are unique in the tree, and else by their
    paths (``trks/pos``); the leaves of a leaf list are ``<branch>.<leaf>``.

    Returns:
        The leaves by name; and, with their types, the branches no name leads to, because an earlier branch
        bears the same.
    """
    found = [(path, branch) for path, branch in tree.iteritems(recursive=True) if not branch.branches]
    bearers = Counter(branch.name for _, branch in found)
    seen: Counter[str] = Counter()
    leaves: dict[str, Leaf] = {}
    hidden: dict[str, str] = {}
    for path, branch in found:
        name = branch.name if bearers[branch.name] == 1 else path
        seen[path] += 1
        members = [leaf.member("fName") for leaf in branch.member("fLeaves")]
        if seen[path] > 1:
            hidden[f"{name};{seen[path]}"] = f"{branch.typename}, another branch of that name"
        elif len(members) == 1:
            leaves[name] = Leaf(branch, path)
        else:
            leaves |= {f"{name}.{member}": Leaf(branch, path, member) for member in members}
    return leaves, hidden


def _layout(interpretation: Any) -> Layout | None:
    if isinstance(interpretation, uproot.AsJagged):
        inner = _numbers(interpretation.content)
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
