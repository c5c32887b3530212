"""Sums over the files of a dataset, such as that of all generator weights, which normalises a simulation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mlaas_ray.core.columns import Jagged
from mlaas_ray.core.errors import BranchMissingError, DataError, nearest
from mlaas_ray.streaming.events import open_events
from mlaas_ray.streaming.memo import open_memo
from mlaas_ray.streaming.settings import ReadingSettings
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.states import states
from mlaas_ray.streaming.tasks import spread

_BATCH = 16


def sum_over(
    sources: Sequence[Source], tree: str, branch: str, *, reading: ReadingSettings | None = None
) -> float:
    """Add up a branch of a small tree, over all its entries in all files of a dataset.

    What is known of a file that has not changed is not read again.

    Args:
        sources: The files.
        tree: Such as ``Runs``.
        branch: Such as ``genEventSumw``; one number an entry.
        reading: How files are read; those that cannot be read are left out, if it says so.

    Raises:
        DataError: Naming the file, tree and branch that cannot be used.
    """
    sources = _each_once(sources)
    skip = (reading or ReadingSettings()).bad_files.policy == "skip"
    memo = open_memo()
    now = states(sources) if memo is not None else [None] * len(sources)
    keys = [
        [one.path, state.key(), tree, branch] if state else None
        for one, state in zip(sources, now, strict=True)
    ]
    known = [memo.get("sum", key) if memo is not None and key else None for key in keys]
    missing = [index for index, value in enumerate(known) if value is None]
    batches = [missing[start : start + _BATCH] for start in range(0, len(missing), _BATCH)]
    calls = [([sources[index] for index in batch], tree, branch, skip) for batch in batches]
    fresh = [value for part in spread(_sums, calls, description=branch) for value in part] if calls else []
    for index, value in zip(missing, fresh, strict=True):
        known[index] = value
        if memo is not None and keys[index] and value is not None:
            memo.put("sum", keys[index], value)
    return float(sum(value for value in known if value is not None))


def _each_once(sources: Sequence[Source]) -> list[Source]:
    """Return the files, one that is read for several of its trees as often as for one of them."""
    times: dict[Source, int] = {}
    for source, number in Counter(sources).items():
        file = replace(source, tree=None)
        times[file] = max(number, times.get(file, 0))
    return [source for source, number in times.items() for _ in range(number)]


def _sums(sources: Sequence[Source], tree: str, branch: str, skip: bool) -> list[float | None]:
    result: list[float | None] = []
    for source in sources:
        try:
            result.append(_sum(source, tree, branch))
        except DataError:
            if not skip:
                raise
            result.append(None)
    return result


def _sum(source: Source, tree: str, branch: str) -> float:
    events = open_events(source, tree)
    if branch not in events.branches:
        raise BranchMissingError(
            f"no branch {branch!r} in {source.path}, tree {tree!r}", nearest(branch, events.branches)
        )
    values = events.decode(events.fetch([branch], 0, events.entries))[branch]
    if isinstance(values, Jagged) or values.ndim != 1:
        raise DataError(
            f"{branch!r} in {source.path}, tree {tree!r}, has several numbers an entry",
            "Name a branch with one",
        )
    return float(values.astype(np.float64).sum())
