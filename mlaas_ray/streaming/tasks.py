"""Spreading a function over the cluster, a bounded number at a time, with a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mlaas_ray.core.cluster import ray_address
from mlaas_ray.core.errors import MlaasError

T = TypeVar("T")


def ensure_ray() -> None:
    """Start a Ray of this process's own, or join that of ``RAY_ADDRESS``, unless it is on one already.

    Raises:
        ServiceError: When there is none at ``RAY_ADDRESS``.
    """
    if not ray.is_initialized():
        ray.init(address=ray_address())


def spread(
    function: Callable[..., T],
    arguments: Iterable[tuple[Any, ...]],
    *,
    description: str,
    progress: bool | None = None,
    sizes: Sequence[int] | None = None,
) -> list[T]:
    """Call a function of an importable module once for each set of arguments, in Ray tasks.

    Args:
        function: Module-level, with arguments and results that pickle.
        arguments: One tuple a call.
        description: What the progress bar says.
        progress: Whether to show a bar on standard error; None for only when that is a terminal.
        sizes: What each call counts for in the bar; None for 1.

    Returns:
        The results, in the order of the arguments.

    Raises:
        MlaasError: The first that a call raised, as it was raised.
    """
    calls = list(arguments)
    ensure_ray()
    task = ray.remote(function)
    # Enough in flight to keep every CPU busy, few enough that results do not pile up.
    window = max(4, 2 * int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
    results: dict[int, T] = {}
    waiting: dict[ray.ObjectRef[T], int] = {}
    queue = iter(enumerate(calls))
    shown = sys.stderr.isatty() if progress is None else progress
    with _bar(disable=not shown or not calls) as bar:
        line = bar.add_task(description, total=len(calls) if sizes is None else sum(sizes))
        try:
            while len(results) < len(calls):
                while len(waiting) < window and (item := next(queue, None)) is not None:
                    index, values = item
                    waiting[task.remote(*values)] = index
                (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
                index = waiting.pop(ready)
                results[index] = ray.get(ready)
                bar.advance(line, 1 if sizes is None else sizes[index])
        except ray.exceptions.RayTaskError as error:
            # What is in flight may finish by itself: cancelling it by force can bring Ray's driver down.
            if isinstance(error.cause, MlaasError):
                raise error.cause from None
            raise
    return [results[index] for index in range(len(calls))]


def _bar(*, disable: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=disable,
    )
