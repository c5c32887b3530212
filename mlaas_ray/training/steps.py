"""Steps: one epoch of a network that learns from one batch after the other, all workers together."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.task import Task
from mlaas_ray.training.batches import Batch, Floats, share_out
from mlaas_ray.training.group import Group
from mlaas_ray.training.metrics import Scores, losses
from mlaas_ray.training.settings import Weighting
from mlaas_ray.training.stream import EventStream

if TYPE_CHECKING:
    from mlaas_ray.training.framework import Network

# A batch's labels and weights.
Seen = tuple[Floats, Floats]
# Steps that the workers agree on at once: so many at most, and so many are waited for.
ROUND = 64
WAITED_FOR = 4


@dataclass
class Epoch:
    """One epoch of one worker, while it goes on.

    Attributes:
        number: From 0.
        task: What is learnt.
        stream: This rank's events.
        group: The ranks.
        batch_size: Events of a step over all ranks.
        weighting: How weights count.
        scores: Of this rank's events, as they were when seen.
        rate: The step size, by the events of all ranks that were seen in this epoch.
        every_steps: Steps between checkpoints; None for none within the epoch.
        on_round: Called between rounds of steps, with whether a checkpoint is due; by all ranks together.
        on_loss: Called when a loss is no number, with the step; returns the error to raise.
        steps: Taken so far.
        events: Seen so far, by all ranks.
        computed: Seconds spent in the network.
    """

    number: int
    task: Task
    stream: EventStream
    group: Group
    batch_size: int
    weighting: Weighting
    scores: Scores
    rate: Callable[[int], float]
    every_steps: int | None = None
    on_round: Callable[[bool], None] = lambda due: None
    on_loss: Callable[[int], Exception] = lambda step: ModelError(f"the loss is not a number in step {step}")
    steps: int = 0
    events: int = 0
    computed: float = 0.0
    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def rounds(self) -> Iterator[tuple[Iterator[Batch], list[int]]]:
        """Give this rank's batches for the next steps, and the events that all ranks give to each."""
        least = WAITED_FOR * self.batch_size
        while True:
            self.stream.refill(least)
            offers = self.group.gather([self.stream.ready, int(self.stream.ended)])
            ended = offers[:, 1].astype(bool).tolist()
            most = ROUND
            if self.every_steps:
                most = min(most, self.every_steps - self.steps % self.every_steps)
            plan = share_out(offers[:, 0].tolist(), self.batch_size, ended=ended, most=most)
            if len(plan) == 0:
                return
            yield self.stream.take(plan[:, self.group.rank].tolist()), plan.sum(axis=1).tolist()
            self.steps += len(plan)
            self.events += int(plan.sum())
            self.on_round(bool(self.every_steps) and self.steps % (self.every_steps or 1) == 0)

    def weighted(self, batch: Batch) -> Batch:
        """Return a batch with the weights that it has in training."""
        weight = self.weighting.of(batch.y, batch.weight)
        return batch if weight is batch.weight else replace(batch, weight=weight)

    def count(self, answers: Floats, seen: Sequence[Seen]) -> None:
        """Add what the network answered to some batches, before it learnt from them, to the scores.

        Args:
            answers: To all of them, ``(events, outputs)``.
            seen: Each batch's ``y`` and weights.

        Raises:
            Exception: The one of ``on_loss``, when a loss is no number.
        """
        y, weight = (np.concatenate(arrays) for arrays in zip(*seen, strict=True))
        with np.errstate(invalid="ignore"):
            loss = weight * losses(self.task, answers, y)
        bad = np.flatnonzero(~np.isfinite(loss))
        if len(bad):
            ends = np.cumsum([len(own) for own, _ in seen])
            raise self.on_loss(self.steps + int(np.searchsorted(ends, bad[0], side="right")) + 1)
        self._sums[0] += float(loss.sum())
        self._sums[1] += float(weight.sum())
        self.scores.add(answers, y, weight)

    def recent_loss(self) -> float:
        """Return the mean loss of this rank's events since it was asked last."""
        total, weight = self._sums
        self._sums = [0.0, 0.0]
        return total / weight if weight else 0.0


def take_steps(network: Network, epoch: Epoch) -> None:
    """Take the steps of an epoch, each batch staged as many steps ahead as the network wants."""
    for given, totals in epoch.rounds():
        begun = time.perf_counter()
        network.set_rate(epoch.rate(epoch.events))
        seen: list[Seen] = []
        answers: list[Any] = []
        staged: deque[tuple[Any, int]] = deque()
        for batch, total in zip(given, totals, strict=True):
            batch = epoch.weighted(batch)
            seen.append((batch.y, batch.weight))
            staged.append((network.stage(batch), total))
            if len(staged) > network.steps_ahead:
                answers.append(network.step(*staged.popleft()))
        answers += [network.step(*one) for one in staged]
        collected = network.collect(answers)
        epoch.computed += time.perf_counter() - begun
        epoch.count(collected, seen)
