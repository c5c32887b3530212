"""TTreeEvents: a TTree as columns."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import uproot

from mlaas_ray.core.columns import Column, Columns, Jagged, true_or_false
from mlaas_ray.core.errors import BranchMissingError, DataError, FileUnreadableError, MlaasError, nearest
from mlaas_ray.streaming.baskets import BasketReader
from mlaas_ray.streaming.damage import DAMAGE, REMEDY, naming, reason_of
from mlaas_ray.streaming.events import Branch, Nested
from mlaas_ray.streaming.leaves import Layout, Leaf, find_leaves, find_parts
from mlaas_ray.streaming.transport import ByteSource
from mlaas_ray.streaming.uproot_source import identifier
from mlaas_ray.streaming.vectors import Component, components, is_vector


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched of some branches.

    Attributes:
        names: All of them.
        start: First entry.
        stop: Behind the last.
        plain: Those whose baskets are here, still compressed.
        chunks: The bytes of those baskets.
        read: The columns of the others.
    """

    names: Sequence[str]
    start: int
    stop: int
    plain: Sequence[str]
    chunks: Sequence[memoryview]
    read: Columns


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a branch.

    Attributes:
        layout: What it holds; None when that is no numbers.
        why: Why it cannot be a column; nothing where it can.
        parts: The columns that it is instead, where it holds physics vectors.
    """

    layout: Layout | None
    why: str
    parts: Mapping[str, Leaf] = field(default_factory=dict)


class TTreeEvents:
    """One TTree of one open file, as :class:`.Events`.

    Args:
        ttree: uproot's TTree.
        tree: Its name, with its folders.
        source: The file's bytes.
        nested: What becomes of lists of lists of numbers.
    """

    format = "TTree"
    beside: tuple[str, ...] = ()

    def __init__(self, ttree: Any, tree: str, source: ByteSource, nested: Nested = "leave") -> None:
        self.path = source.path
        self.tree = tree
        self.size = source.size
        self.uuid = identifier(ttree.file, source)
        self.entries = int(ttree.num_entries)
        self._tree = ttree
        self.data = source
        self._nested = nested
        self._known: dict[str, _Known] = {}
        with naming(self.path, tree):
            self._leaves = find_leaves(ttree)
        plain = {name: leaf.branch for name, leaf in self._leaves.items() if not leaf.members}
        self._baskets = BasketReader(plain, self.entries, f"{self.path}, tree {tree!r}")

    @property
    def branches(self) -> Mapping[str, Branch]:
        """What can be columns, by name."""
        return self._tables[0]

    @property
    def left_out(self) -> Mapping[str, str]:
        """What cannot, with its C++ type."""
        return self._tables[1]

    def boundaries(self, names: Sequence[str]) -> tuple[int, ...]:
        """First entry of each cluster that these branches share, and last ``entries``."""
        with naming(self.path, self.tree):
            stored = self._stored(names)
            edges = [set(self._leaf(name).branch.entry_offsets) for name in stored]
        common = set.intersection(*edges) if edges else set()
        return tuple(sorted({0, self.entries} | {int(edge) for edge in common if edge < self.entries}))

    def fetch(self, names: Sequence[str], start: int, stop: int) -> Fetched:
        """Get the baskets of some branches of the entries ``start`` to ``stop`` (not included).

        Branches that are not plain numbers or lists of them are read by uproot, here and now.

        Raises:
            BranchMissingError: When the tree lacks one.
            DataError: When one cannot be columns.
            FileUnreadableError: When the file cannot be read; names the branch.
        """
        with naming(self.path, self.tree):
            stored = self._stored(names)
            plain = [name for name in stored if self._is_plain(name)]
            chunks = self.data.read(self._baskets.ranges(plain, start, stop))
        # what uproot makes of a branch takes it as long as reading thousands of values: not for plain ones
        others = {name: self._layout(name) for name in stored if not self._is_plain(name)}
        try:
            read = self._read(others, start, stop) if others else {}
        except MlaasError:
            raise  # the transport has tried every server, and would have to for each branch
        except DAMAGE as error:
            raise self._blame(others, start, stop, error) from error
        return Fetched(tuple(names), start, stop, plain, chunks, read)

    def decode(self, fetched: Fetched) -> Columns:
        """Make columns of baskets.

        Raises:
            FileUnreadableError: When they are damaged; names the branch.
        """
        with naming(self.path, self.tree):
            made = self._baskets.decode(fetched.chunks, fetched.plain, fetched.start, fetched.stop)
            columns = {**made, **fetched.read}
            return {
                name: _checked(columns[name]) if name in columns else self._vectors[name].column(columns)
                for name in fetched.names
            }

    def _is_plain(self, name: str) -> bool:
        """Tell whether a branch is decoded here."""
        try:
            return self._baskets.can(name)
        except MlaasError:
            raise
        except Exception:  # what keeps uproot from describing it is told where that is asked for
            return False

    def _stored(self, names: Sequence[str]) -> list[str]:
        """Return what must be read, which for components of vectors is their coordinates."""
        found: dict[str, None] = {}
        for name in names:
            known = name in self._leaves or name not in self._vectors
            found |= dict.fromkeys([name] if known else self._vectors[name].coordinates.values())
        return list(found)

    def _read(self, layouts: Mapping[str, Layout], start: int, stop: int) -> dict[str, Column]:
        leaves = {name: self._leaf(name) for name in layouts}
        counters = {
            id(leaf.counter): leaf.counter
            for name, leaf in leaves.items()
            if layouts[name].kind == "jagged" and leaf.counter is not None
        }
        wanted = {id(leaf.branch): (leaf.branch, leaf.interpretation) for leaf in leaves.values()}
        # what counts may be a branch of objects, which itself holds nothing but how many there are
        plain = ((key, branch) for key, branch in counters.items() if key not in wanted)
        wanted |= {key: (branch, _counting(branch)) for key, branch in plain}
        arrays = self._arrays(wanted, start, stop)
        columns = {}
        for name, leaf in leaves.items():
            counts = arrays[id(leaf.counter)] if id(leaf.counter) in counters else None
            column = leaf.column(arrays[id(leaf.branch)], layouts[name], name, counts)
            if len(column) != stop - start:
                raise ValueError(f"{len(column):,} entries of {stop - start:,} in branch {name!r}")
            columns[name] = column
        return columns

    def _arrays(self, wanted: Mapping[int, tuple[Any, Any]], start: int, stop: int) -> dict[int, Any]:
        """Read branches by uproot: at once those that it finds by their paths, one by one the others."""
        span = {"entry_start": start, "entry_stop": stop, "library": "ak"}
        paths = {key: _path(branch) for key, (branch, _) in wanted.items()}
        found = [key for key, path in paths.items() if self._tree.get(path) is wanted[key][0]]
        at_once = {paths[key]: wanted[key][1] for key in found}
        together = self._tree.arrays(at_once, how=dict, **span) if found else {}
        return {
            key: together[paths[key]] if key in found else branch.array(interpretation, **span)
            for key, (branch, interpretation) in wanted.items()
        }

    def _blame(
        self, layouts: Mapping[str, Layout], start: int, stop: int, error: BaseException
    ) -> FileUnreadableError:
        """Find the branch that cannot be read, so that the user knows what else the file still gives."""
        where = f"cannot read {self.path}, tree {self.tree!r}"
        for name, layout in layouts.items():
            try:
                self._read({name: layout}, start, stop)
            except DAMAGE as own:
                return FileUnreadableError(
                    f"{where}, branch {name!r}, entries {start} to {stop}: {reason_of(own, self.path)}",
                    REMEDY,
                )
        return FileUnreadableError(f"{where}: {reason_of(error, self.path)}", "Try again")

    def _leaf(self, name: str) -> Leaf:
        leaf = self._leaves.get(name) or self._parts.get(name)
        if leaf is None:
            known = (*self._leaves, *self._parts, *self._vectors)
            raise BranchMissingError(
                f"no branch {name!r} in {self.path}, tree {self.tree!r}", nearest(name, known)
            )
        return leaf

    @functools.cached_property
    def _parts(self) -> dict[str, Leaf]:
        """What branches of whole vectors store, by name."""
        found = [self._described(name).parts for name in self._leaves]
        return {name: leaf for parts in found for name, leaf in parts.items() if name not in self._leaves}

    @functools.cached_property
    def _vectors(self) -> dict[str, Component]:
        """What can be computed of vectors, by name."""
        stored = {**self._leaves, **self._parts}
        found: dict[str, Component] = {}
        for name in self._leaves:
            found |= components(name, self._described(name).parts)
        for branch in self._tree.itervalues(recursive=True):
            kinds = (branch.member(key, none_if_missing=True) for key in ("fClassName", "fClonesName"))
            if branch.branches and any(kind and is_vector(kind) for kind in kinds):
                own = [name for name, leaf in stored.items() if _is_within(leaf.branch, branch)]
                found |= components(branch.name.rstrip("."), own)
        return {name: component for name, component in found.items() if name not in stored}

    def _layout(self, name: str) -> Layout:
        """Tell what a branch holds.

        Raises:
            DataError: When it cannot be a column.
        """
        known = self._described(name)
        if known.layout is None or known.why:
            remedy = "Leave it out"
            if known.layout is not None and self._refuses(known.layout):
                remedy += ", or set nested: flatten"
            if known.parts:
                remedy = f"Choose of its parts: {', '.join(known.parts)}"
            where = f"{self.path}, tree {self.tree!r}"
            raise DataError(f"branch {name!r} in {where} is no numeric branch ({known.why})", remedy)
        return known.layout

    def _described(self, name: str) -> _Known:
        """Tell what a branch holds, or why it cannot be a column."""
        if name not in self._known:
            leaf = self._leaf(name)
            try:
                layout = leaf.layout
                parts = find_parts(name, leaf) if layout is None and not leaf.members else {}
                self._known[name] = _Known(layout, self._fault(leaf, layout), parts)
            except MlaasError:
                raise
            except Exception as error:  # whatever uproot stumbles over in one branch, the others are sound
                self._known[name] = _Known(None, f"uproot cannot describe it: {reason_of(error, self.path)}")
        return self._known[name]

    def _fault(self, leaf: Leaf, layout: Layout | None) -> str:
        entries = int(leaf.branch.entry_offsets[-1])
        if layout is None or self._refuses(layout):
            return leaf.typename
        if entries != self.entries:
            return f"{leaf.typename}, {entries:,} entries of the tree's {self.entries:,}"
        # who is referred to has a number behind its bits, so that they are no longer of one size
        if leaf.is_bits and {"TRef", "TRefArray"} & set(self._tree.file.streamers):
            return f"{leaf.typename}, bits of objects that references may point to"
        return ""

    def _refuses(self, layout: Layout) -> bool:
        return layout.nested and self._nested == "leave"

    @functools.cached_property
    def _tables(self) -> tuple[dict[str, Branch], dict[str, str]]:
        # Only when asked for: who was given names need not look at the other 1,400 branches of a file.
        branches: dict[str, Branch] = {}
        left_out: dict[str, str] = {}
        names = {id(leaf.branch): name for name, leaf in self._leaves.items()}
        with naming(self.path, self.tree):
            for name, leaf in {**self._leaves, **self._parts}.items():
                known = self._described(name)
                if known.layout is not None and not known.why:
                    branches[name] = Branch(
                        name=name,
                        kind=known.layout.kind,
                        type=leaf.typename,
                        length=known.layout.length,
                        bytes=int(leaf.branch.uncompressed_bytes),
                        dtype=leaf.dtype,
                        # of lists of arrays it counts the arrays
                        counter=None if known.layout.nested else names.get(id(leaf.counter)),
                    )
                elif not known.parts:
                    left_out[name] = known.why
            for name, component in self._vectors.items():
                own = [
                    branches[coordinate]
                    for coordinate in component.coordinates.values()
                    if coordinate in branches
                ]
                if len(own) == len(component.coordinates):
                    branches[name] = replace(own[0], name=name, type="double", dtype="float64")
        return branches, left_out


def _path(branch: Any) -> str:
    """Return a branch's names from the tree down, which lead uproot to it, or to an earlier one."""
    return str(branch.name) if branch.top_level else f"{_path(branch.parent)}/{branch.name}"


def _is_within(branch: Any, parent: Any) -> bool:
    """Tell whether a branch lies somewhere in another."""
    return not branch.top_level and (branch.parent is parent or _is_within(branch.parent, parent))


def _counting(branch: Any) -> Any:
    """Return how to read the numbers of objects; a branch of objects has nothing else in its own baskets."""
    return uproot.AsDtype(">i4") if branch.branches else branch.interpretation


def _checked(column: Column) -> Column:
    """Return a column whose booleans are 0 or 1."""
    if isinstance(column, Jagged):
        return Jagged(column.offsets, true_or_false(column.content))
    return true_or_false(column)
