"""Waiting: what a run waits for when the cluster has no room for it, and which jobs hold that."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from textwrap import shorten
from typing import Any

import ray
import ray._private.state
from ray.core.generated import gcs_pb2

cluster: Any = ray._private.state.state
tables: Any = gcs_pb2

# Seconds between looks, before the first line, and between lines.
_LOOK_S = 2.0
_PATIENCE_S = 6.0
_AGAIN_S = 300.0
_KINDS = ("CPU", "GPU")
# Jobs named in a line.
_SHOWN = 4
# Ray counts in ten-thousandths.
_ROUNDING = 0.001


@contextlib.contextmanager
def waits_told(tell: Callable[[str], None] | None) -> Iterator[None]:
    """Say, while a block runs on Ray, what it waits for; seldom, and only when it lasts.

    Args:
        tell: Is given a line, in a thread of this process; None for nobody.
    """
    begun, told = None, -_AGAIN_S

    def look() -> list[str]:
        nonlocal begun, told
        line = waited_for()
        now = time.monotonic()
        begun = None if line is None else begun or now
        if line is None or begun is None or now - begun < _PATIENCE_S or now - told < _AGAIN_S:
            return []
        told = now
        return [line]

    with told_from(look, tell):
        yield


@contextlib.contextmanager
def told_from(look: Callable[[], list[str]], tell: Callable[[str], None] | None) -> Iterator[None]:
    """Look again and again while a block runs on Ray, and tell what lines that gives.

    Args:
        look: Asks the cluster for lines that were not told before.
        tell: Is given each line, in a thread of this process; None for nobody.
    """
    if tell is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            try:
                lines = look()
            except Exception:  # the cluster is going, or has another version's tables; the run will tell
                return
            for line in lines:
                tell(line)

    thread = threading.Thread(target=watch, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def waited_for() -> str | None:
    """Say what this job waits for, and what holds it; None when there is room."""
    own = ray.get_runtime_context().get_job_id()
    held, pending = _held(own)
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    if pending:
        wanted, workers = pending[0], len(pending)
        each = " and ".join(_amount(wanted[kind], kind) for kind in _KINDS if wanted.get(kind))
        what = f"{workers} workers of {each} each" if workers > 1 else f"a worker of {each}"
        short = [kind for kind in _KINDS if wanted.get(kind, 0) * workers > free.get(kind, 0)]
    elif own not in held and total.get("CPU", 0) - sum(one["CPU"] for one in held.values()) < 1:
        # what placement groups and actors hold, no task that reads will get
        what, short = "a CPU to read files with", ["CPU"]
    else:
        return None
    reasons = []
    for kind in short:
        if kind not in total:
            reasons.append(f"the cluster has no {kind}")
            continue
        used = total[kind] - free.get(kind, 0.0)
        holders = ", ".join(_holders(kind, held, own, used)) or "nobody"
        reasons.append(f"{used:g} of {_amount(total[kind], kind)} are held by {holders}")
    return f"waiting for {what}: {'; '.join(reasons) or 'no node has that much free'}"


def _holders(kind: str, held: dict[str, Counter[str]], own: str, used: float) -> list[str]:
    """Return who holds how much of what is used, the greatest first."""
    by = sorted(((one[kind], job) for job, one in held.items() if one[kind]), reverse=True)[:_SHOWN]
    names = [f"{'this run' if job == own else _described(job)} ({count:g})" for count, job in by]
    rest = used - sum(count for count, _ in by)
    return [*names, f"tasks and others ({rest:g})"] if rest > _ROUNDING else names


def _amount(count: float, kind: str) -> str:
    return f"{count:g} {kind}{'' if count == 1 else 's'}"


def _held(own: str) -> tuple[dict[str, Counter[str]], list[dict[str, float]]]:
    """Return what placement groups and actors hold, by job, and the bundles that this job waits for.

    From the tables of every cluster: Ray's state API asks the dashboard, which a Ray of one's own lacks.
    """
    accessor = cluster._connect_and_get_accessor()
    held: dict[str, Counter[str]] = defaultdict(Counter)
    pending: list[dict[str, float]] = []
    for text in accessor.get_placement_group_table():
        group = tables.PlacementGroupTableData.FromString(text)
        bundles = [dict(bundle.unit_resources) for bundle in group.bundles]
        job = group.creator_job_id.hex()
        if group.state == tables.PlacementGroupTableData.CREATED:
            for bundle in bundles:
                held[job].update(bundle)
        elif group.state != tables.PlacementGroupTableData.REMOVED and job == own:
            pending += bundles
    for text in accessor.get_actor_table(None, "ALIVE"):
        actor = tables.ActorTableData.FromString(text)
        # an actor of a placement group holds nothing beside it
        for kind, count in actor.required_resources.items():
            if kind in _KINDS and count:
                held[actor.job_id.hex()][kind] += count
    return held, pending


def _described(job: str) -> str:
    """Name a job by what was run, and where."""
    for entry in cluster.job_table():
        if entry["JobID"] == job:
            command = entry.get("Entrypoint") or "a program"
            where = f"pid {entry['DriverPid']} on {entry['DriverIPAddress']}"
            return f"{shorten(command, 60, placeholder=' …')}, {where}"
    return f"job {job}"
