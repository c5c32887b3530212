"""Choosing branches by name and glob."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from mlaas_ray.core.errors import BranchMissingError, DataError, nearest

Description = TypeVar("Description")


def choose(
    branches: Mapping[str, Description],
    left_out: Mapping[str, str],
    where: str,
    include: Sequence[str] | None,
    exclude: Sequence[str],
    *,
    lenient: bool = False,
) -> dict[str, Description]:
    """Choose branches by name or glob.

    Args:
        branches: The branches that can be columns, and what is defined.
        left_out: The other branches with their types.
        where: The file and tree, for messages.
        include: Names or globs; None for every branch that can be a column. A second branch of one name,
            ``name;2``, wants its own name, or a glob with ``;``: others would not expect it.
        exclude: Names or globs to leave out.
        lenient: Whether names and globs may match nothing here, as other files may have what they name.

    Raises:
        BranchMissingError: When a name or glob of ``include`` matches nothing, or nothing is left.
        DataError: When a branch was named that cannot be a column.
    """
    wanted = list(_matches("*", branches)) if include is None else []
    for pattern in include or []:
        matches = list(_matches(pattern, branches))
        if not matches:
            refuse(pattern, left_out, where)
        if not matches and not lenient:
            raise BranchMissingError(f"no branch {pattern!r} in {where}", nearest(pattern, branches))
        wanted += matches
    chosen = {
        name: branches[name]
        for name in dict.fromkeys(wanted)
        if not any(name == glob or fnmatchcase(name, glob) for glob in exclude)
    }
    if not chosen and not lenient:
        raise BranchMissingError(
            f"no numeric branch is left to read in {where}", "Widen include, or exclude less"
        )
    return chosen


def refuse(name: str, left_out: Mapping[str, str], where: str) -> None:
    """Refuse a branch that was asked for and is left out.

    Raises:
        DataError: With the reason why it is.
    """
    if name in left_out:
        raise DataError(f"branch {name!r} in {where} is no numeric branch ({left_out[name]})", "Leave it out")


def _matches(pattern: str, names: Mapping[str, object]) -> Iterator[str]:
    # A branch's own name first: some hold characters that a glob would take for its own, as "hits[3]" does.
    if pattern in names:
        return iter((pattern,))
    return (name for name in names if fnmatchcase(name, pattern) and (";" in pattern or ";" not in name))
