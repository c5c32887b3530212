"""Progress: reports of rank 0 on their way to the caller's functions, in whichever process they are."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mlaas_ray.training.settings import EpochReport, StepReport

Report = EpochReport | StepReport

# Longest wait for a report to arrive, in seconds; it usually takes some milliseconds.
_ARRIVAL_S = 10.0


class Mailbox:
    """Where a worker posts its reports; it pickles.

    The reports come out one by one in their order; None ends them. They are bytes on the way, so that the
    queue's process imports nothing to hold them.
    """

    def __init__(self) -> None:
        # on the caller's own node, so that it is there as long as the caller
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._box: Any = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def post(self, report: Report) -> None:
        """Send a report, and wait until it is there, but not until anybody takes it."""
        # an asyncio actor may begin calls in another order than they were made in, from whichever process
        ray.wait([self._box.actor.put.remote(pickle.dumps(report))], timeout=_ARRIVAL_S)

    def take(self) -> Report | None:
        """Wait for the next report; None when there are no more."""
        report: Report | None = pickle.loads(self._box.get())
        return report

    def end(self) -> None:
        """Say that no more will come."""
        with contextlib.suppress(ray.exceptions.RayError):
            self._box.put(pickle.dumps(None))

    def close(self) -> None:
        """Be gone."""
        self._box.shutdown(force=True)


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
