"""Reading ahead: several fetches under way at once, their results in order, bounded in bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


def ahead(
    jobs: Iterable[J],
    fetch: Callable[[J], R],
    *,
    size: Callable[[J], int],
    in_flight: int = 6,
    max_bytes: int = 200_000_000,
    is_local: Callable[[J], bool] | None = None,
) -> Iterator[tuple[J, R]]:
    """Fetch jobs before their turn, in threads, and give their results in the order of the jobs.

    Jobs are drawn in the consumer's thread, in their order; what was drawn is fetched while the consumer is
    busy. Ending the iteration early cancels what has not begun; what has begun ends by itself.

    Args:
        jobs: In the order in which the results are wanted.
        fetch: Called with one job in a thread of its own, several at once; who wants to go on after an error
            returns it, since one that is raised ends the iteration.
        size: Bytes that a job's result will hold, about.
        in_flight: Fetches at once.
        max_bytes: Bytes of all results that are being fetched, wait, or are in the consumer's hands; a job
            that is larger is fetched alone.
        is_local: Whether a job waits for no network: then it is fetched in its turn, without a thread.

    Yields:
        Each job with its result.

    Raises:
        Exception: What ``fetch`` raised, in the job's turn.
    """
    pool = ThreadPoolExecutor(in_flight, thread_name_prefix="ahead")  # threads start as there is work

    def begin(job: J) -> Callable[[], R]:
        if is_local is not None and is_local(job):
            return partial(fetch, job)
        return pool.submit(fetch, job).result

    try:
        # twice as many as are fetched at once, so that a slow one in front leaves the others something to do
        for job, result in _window(jobs, begin, size, most=2 * in_flight, max_bytes=max_bytes):
            yield job, result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _window(
    jobs: Iterable[J], begin: Callable[[J], R], size: Callable[[J], int], *, most: int, max_bytes: int
) -> Iterator[tuple[J, R]]:
    """Give each job and what beginning it returned, in order; begin others before, within bounds."""
    begun: deque[tuple[J, R, int]] = deque()
    held = 0
    for job in jobs:
        due = size(job)
        while begun and (len(begun) >= most or held + due > max_bytes):
            first, result, spent = begun.popleft()
            yield first, result
            held -= spent
        begun.append((job, begin(job), due))
        held += due
    while begun:
        first, result, _ = begun.popleft()
        yield first, result
