"""TTreeEvents: a TTree as columns."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlaas_ray.core.columns import Column, Columns, Jagged, true_or_false
from mlaas_ray.core.errors import BranchMissingError, DataError, FileUnreadableError, MlaasError, nearest
from mlaas_ray.streaming.baskets import BasketReader
from mlaas_ray.streaming.damage import DAMAGE, REMEDY, naming, reason_of
from mlaas_ray.streaming.events import Branch, Nested
from mlaas_ray.streaming.leaves import Layout, Leaf, find_leaves
from mlaas_ray.streaming.transport import ByteSource
from mlaas_ray.streaming.uproot_source import identifier


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


class TTreeEvents:
    """One TTree of one open file, as :class:`.Events`.

    Args:
        ttree: uproot's TTree.
        tree: Its name, with its folders.
        source: The file's bytes.
        nested: What becomes of lists of lists of numbers.
    """

    format = "TTree"

    def __init__(self, ttree: Any, tree: str, source: ByteSource, nested: Nested = "leave") -> None:
        self.path = source.path
        self.tree = tree
        self.size = source.size
        self.uuid = identifier(ttree.file, source)
        self.entries = int(ttree.num_entries)
        self._tree = ttree
        self.data = source
        self._nested = nested
        self._layouts: dict[str, Layout] = {}
        with naming(self.path, tree):
            self._leaves, self._hidden = find_leaves(ttree)
        plain = {name: leaf.branch for name, leaf in self._leaves.items() if leaf.member is None}
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
            edges = [set(self._leaf(name).branch.entry_offsets) for name in names]
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
            plain = [name for name in names if self._baskets.can(name)]
            chunks = self.data.read(self._baskets.ranges(plain, start, stop))
        # what uproot makes of a branch takes it as long as reading thousands of values: not for plain ones
        others = {name: self._layout(name) for name in names if not self._baskets.can(name)}
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
        return {name: _checked(columns[name]) for name in fetched.names}

    def _read(self, layouts: Mapping[str, Layout], start: int, stop: int) -> dict[str, Column]:
        leaves = {name: self._leaf(name) for name in layouts}
        arrays = self._tree.arrays(
            {leaf.path: leaf.branch.interpretation for leaf in leaves.values()},
            entry_start=start,
            entry_stop=stop,
            library="ak",
            how=dict,
        )
        columns = {name: leaf.column(arrays[leaf.path], layouts[name], name) for name, leaf in leaves.items()}
        for name, column in columns.items():
            if len(column) != stop - start:
                raise ValueError(f"{len(column):,} entries of {stop - start:,} in branch {name!r}")
        return columns

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
        try:
            return self._leaves[name]
        except KeyError:
            raise BranchMissingError(
                f"no branch {name!r} in {self.path}, tree {self.tree!r}", nearest(name, self._leaves)
            ) from None

    def _layout(self, name: str) -> Layout:
        if name not in self._layouts:
            self._layouts[name] = self._look(name)
        return self._layouts[name]

    def _look(self, name: str) -> Layout:
        """Tell what a branch holds, or say that it cannot be a column."""
        leaf = self._leaf(name)
        with naming(self.path, self.tree):
            layout = leaf.layout
            if layout is None or self._refuses(layout):
                raise DataError(
                    f"branch {name!r} in {self.path}, tree {self.tree!r} is no numeric branch"
                    f" ({leaf.typename})",
                    "Leave it out, or set nested: flatten" if layout else "Leave it out",
                )
        return layout

    def _refuses(self, layout: Layout) -> bool:
        return layout.nested and self._nested == "leave"

    @functools.cached_property
    def _tables(self) -> tuple[dict[str, Branch], dict[str, str]]:
        # Only when asked for: who was given names need not look at the other 1,400 branches of a file.
        branches: dict[str, Branch] = {}
        left_out: dict[str, str] = {}
        names = {id(leaf.branch): name for name, leaf in self._leaves.items()}
        with naming(self.path, self.tree):
            for name, leaf in self._leaves.items():
                layout = leaf.layout
                entries = int(leaf.branch.num_entries)
                if layout is None or self._refuses(layout):
                    left_out[name] = leaf.typename
                elif entries != self.entries:
                    left_out[name] = f"{leaf.typename}, {entries:,} entries of the tree's {self.entries:,}"
                else:
                    counter = leaf.branch.count_branch
                    branches[name] = Branch(
                        name=name,
                        kind=layout.kind,
                        type=leaf.typename,
                        length=layout.length,
                        bytes=int(leaf.branch.uncompressed_bytes),
                        counter=names.get(id(counter)),
                        dtype=leaf.dtype,
                    )
        return branches, left_out | self._hidden


def _checked(column: Column) -> Column:
    """Return a column whose booleans are 0 or 1."""
    if isinstance(column, Jagged):
        return Jagged(column.offsets, true_or_false(column.content))
    return true_or_false(column)
