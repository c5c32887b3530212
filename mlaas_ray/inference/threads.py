"""Threads: each kind of work that blocks has its own, so that slow work of one kind does not hold up another.

The event loop's own threads are few (Ray Serve makes five for 0.1 CPUs), and a model that is examined may
hold one for minutes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from mlaas_ray.inference.busy import BusyError

T = TypeVar("T")


class Threads:
    """Threads for one kind of work.

    Args:
        what: The work, as who is refused is told.
        threads: How much of it is done at a time.
        most: How much of it is done or waits; more is refused.
    """

    def __init__(self, what: str, threads: int = 4, most: int = 256) -> None:
        self._what = what
        self._most = most
        self._room = threading.Semaphore(most)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=what.replace(" ", "-"))

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in one of the threads.

        Raises:
            BusyError: When too much is waiting already.
            Exception: What the function raises.
        """
        if not self._room.acquire(blocking=False):
            raise BusyError(f"{self._most} {self._what} are under way already", "Try again in some seconds")
        work = self._threads.submit(function, *arguments)
        # not when the caller goes away: the thread is busy still
        work.add_done_callback(lambda _: self._room.release())
        return await asyncio.wrap_future(work)


# Bodies that are long, read and written.
BODIES = Threads("long bodies", most=64)
# What lies in the repository.
LOOKUPS = Threads("look-ups")
# Files of uploads, and of versions that are deleted.
FILES = Threads("changes of files")
# Uploads that are unpacked, examined and published.
UPLOADS = Threads("uploads")
# Versions of which it is found out where they are to live.
EXAMINATIONS = Threads("examinations")
# Replicas of a model's own that start or stop.
DEPLOYMENTS = Threads("changes of deployments")
