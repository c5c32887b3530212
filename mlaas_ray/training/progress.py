"""Epoch reports on their way from Ray Train's controller, a process somewhere, to the caller's function."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.train import UserCallback

from mlaas_ray.training.settings import EpochReport


class _Mailbox:
    """An actor: reports go in, and come out one by one in their order; None ends them."""

    def __init__(self) -> None:
        self._reports: asyncio.Queue[EpochReport | None] = asyncio.Queue()

    async def put(self, report: EpochReport | None) -> None:
        await self._reports.put(report)

    async def take(self) -> EpochReport | None:
        return await self._reports.get()


class EpochCallback(UserCallback):
    """Runs in the controller: posts each epoch's report of rank 0."""

    def __init__(self, mailbox: Any, epochs: int) -> None:
        self._mailbox = mailbox
        self._epochs = epochs

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Post the report, unless it is the last one, which is of no epoch."""
        entry = metrics[0].get("epoch")
        if entry is not None:
            self._mailbox.put.remote(EpochReport(epochs=self._epochs, **entry))


@contextlib.contextmanager
def epoch_callbacks(
    on_epoch: Callable[[EpochReport], None] | None, epochs: int
) -> Iterator[list[UserCallback]]:
    """Give the callbacks that bring reports to ``on_epoch``, which a thread of this process calls.

    What ``on_epoch`` raises is raised at the end of the block.
    """
    if on_epoch is None:
        yield []
        return
    mailbox: Any = ray.remote(num_cpus=0)(_Mailbox).remote()
    failures: list[BaseException] = []

    def deliver() -> None:
        while (report := ray.get(mailbox.take.remote())) is not None:
            try:
                on_epoch(report)
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=deliver, name="epoch reports", daemon=True)
    thread.start()
    try:
        yield [EpochCallback(mailbox, epochs)]
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(mailbox.put.remote(None))
        thread.join()
        ray.kill(mailbox)
    if failures:
        raise failures[0]
