"""Progress: reports of rank 0 on their way to the caller's functions, in whichever process they are."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mlaas_ray.training.settings import EpochReport, StepReport

Report = EpochReport | StepReport

# Longest wait for a report to arrive, in seconds; it usually takes some milliseconds.
_ARRIVAL_S = 10.0


class _Box:
    """An actor: reports go in, and come out one by one in their order; None ends them."""

    def __init__(self) -> None:
        self._reports: asyncio.Queue[Report | None] = asyncio.Queue()

    async def put(self, report: Report | None) -> None:
        await self._reports.put(report)

    async def take(self) -> Report | None:
        return await self._reports.get()


class Mailbox:
    """Where a worker posts its reports; it pickles."""

    def __init__(self) -> None:
        # on the caller's own node, so that it is there as long as the caller
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(_Box)
        self._box = actor.options(num_cpus=0, scheduling_strategy=here).remote()

    def post(self, report: Report) -> None:
        """Send a report, and wait until it is there, but not until anybody takes it."""
        # an asyncio actor may begin calls in another order than they were made in, from whichever process
        ray.wait([self._box.put.remote(report)], timeout=_ARRIVAL_S)

    def take(self) -> Report | None:
        """Wait for the next report; None when there are no more."""
        report: Report | None = ray.get(self._box.take.remote())
        return report

    def end(self) -> None:
        """Say that no more will come."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._box.put.remote(None))

    def close(self) -> None:
        """Be gone."""
        ray.kill(self._box)


@contextlib.contextmanager
def delivered(
    on_epoch: Callable[[EpochReport], None] | None, on_step: Callable[[StepReport], None] | None
) -> Iterator[Mailbox | None]:
    """Give the mailbox whose reports go to the functions, which a thread of this process calls.

    What they raise is raised at the end of the block.
    """
    if on_epoch is None and on_step is None:
        yield None
        return
    mailbox = Mailbox()
    failures: list[BaseException] = []

    def deliver() -> None:
        while (report := mailbox.take()) is not None:
            try:
                if isinstance(report, EpochReport):
                    if on_epoch is not None:
                        on_epoch(report)
                elif on_step is not None:
                    on_step(report)
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=deliver, name="reports", daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        mailbox.end()
        thread.join()
        mailbox.close()
    if failures:
        raise failures[0]
