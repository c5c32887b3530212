"""What the readers of before still import from here; gone as soon as they use :func:`.open_events`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import awkward as ak

from mlaas_ray.core.columns import Kind, to_awkward
from mlaas_ray.streaming.branches import choose
from mlaas_ray.streaming.damage import naming
from mlaas_ray.streaming.events import open_events

__all__ = ["branch_kinds", "choose", "naming", "open_tree", "read_arrays"]


def open_tree(path: str, tree: str | None = None) -> Any:
    """Open a tree, and return it as uproot's own."""
    return open_events(path, tree)._tree  # type: ignore[attr-defined]


def branch_kinds(tree: Any) -> tuple[dict[str, Kind], dict[str, str]]:
    """Tell which branches can be columns, and the types of those that cannot."""
    events = open_events(tree.file.file_path, tree.object_path.strip("/").partition(";")[0])
    kinds: dict[str, Kind] = {
        name: branch.kind for name, branch in events.branches.items() if branch.kind != "fixed"
    }
    fixed = {name: branch.type for name, branch in events.branches.items() if branch.kind == "fixed"}
    return kinds, fixed | dict(events.left_out)


def read_arrays(path: str, tree: str, names: Sequence[str], start: int, stop: int) -> dict[str, ak.Array]:
    """Read branches of the entries ``start`` to ``stop`` (not included)."""
    events = open_events(path, tree)
    columns = events.decode(events.fetch(names, start, stop))
    return {name: to_awkward(column) for name, column in columns.items()}
