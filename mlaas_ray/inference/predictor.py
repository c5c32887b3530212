"""Predictor: hands rows to what holds the models, gathered by model, and knows how each of them behaves."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from ray.serve.handle import DeploymentHandle

from mlaas_ray.core.errors import MlaasError
from mlaas_ray.core.flatten import Rows
from mlaas_ray.inference.batcher import Answer, Batcher, Coming, Done, Group, Lane
from mlaas_ray.inference.busy import BusyError
from mlaas_ray.inference.catalog import Entry
from mlaas_ray.inference.placement import light
from mlaas_ray.inference.pool import ModelPool
from mlaas_ray.inference.runtimes import Predictions
from mlaas_ray.inference.settings import ServiceSettings
from mlaas_ray.inference.shipment import (
    ModelKey,
    ModelRows,
    Outcome,
    PackedOutcomes,
    pack,
    unpack_outcomes,
)
from mlaas_ray.inference.threads import EXAMINATIONS

logger = logging.getLogger("ray.serve")

# A model whose calls take longer has a lane of its own: the others do not wait for it.
SLOW_S = 0.01
# So many rows of one caller are not gathered with others'.
BULK_ROWS = 1024
# Calls are made so often, should replicas die under them.
ATTEMPTS = 3
# No batch is held to be large enough below this: a call has its own cost.
LEAST_BATCH = 128
# So many parts of rows that failed together are halved at a time.
MOST_PARTS = 64
# Versions of which something is remembered.
MOST_VERSIONS = 5000
# Weight of the latest call in what a model is held to take.
LATEST = 0.2
# Where models are that have no replicas of their own: in those for all, or in this process. No model has such
# a name.
SHARED, HERE = "", ":here"


class Holder(Protocol):
    """What holds models and runs rows through them."""

    async def run(
        self, loads: Sequence[ModelRows], *, patient: bool, waited_s: float, behind: float
    ) -> list[Outcome]:
        """Run rows; see :meth:`ModelPool.run`, and :meth:`ModelReplica.run` for what else it is told."""
        ...

    async def prepare(self, key: ModelKey) -> dict[str, Any]:
        """Bring a version into memory, everywhere, and return what is known of it."""
        ...

    async def loaded(self) -> list[dict[str, Any]]:
        """Return what each process holds."""
        ...


class Replicas:
    """The model replicas of a deployment.

    Args:
        handle: The deployment.
        settings: Time-outs.
    """

    def __init__(self, handle: DeploymentHandle[Any], settings: ServiceSettings) -> None:
        self._handle = handle
        self._settings = settings

    async def run(
        self, loads: Sequence[ModelRows], *, patient: bool, waited_s: float, behind: float
    ) -> list[Outcome]:
        """Run rows; asked again where a replica died under them."""
        from ray.exceptions import RayError

        shipment = pack(loads)
        for attempt in range(ATTEMPTS):
            try:
                packed: PackedOutcomes = await self._handle.run.remote(shipment, patient, waited_s, behind)
                return unpack_outcomes(packed)
            except RayError:
                # The replica died under the rows; a prediction may be asked again.
                if attempt + 1 == ATTEMPTS:
                    raise
        raise AssertionError

    async def prepare(self, key: ModelKey) -> dict[str, Any]:
        """Have every replica load a version.

        Raises:
            TimeoutError: When none does in time.
            ModelError: When the model does not load, or fails.
            PackageError: When the package is damaged.
        """
        timeout_s = self._settings.load_timeout_s
        answers = await self._everywhere("prepare", tuple(key), timeout_s=timeout_s)
        if not answers:
            # There is none: who asks for one has Serve start it.
            async with asyncio.timeout(timeout_s):
                answers = [await self._handle.prepare.remote(tuple(key))]
        return dict(json.loads(answers[0]))

    async def loaded(self) -> list[dict[str, Any]]:
        """Return what each replica holds.

        Raises:
            TimeoutError: When no replica answers.
        """
        return await self._everywhere("loaded", timeout_s=10.0)

    async def _everywhere(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """Ask every replica; there may be none."""
        answers = await ask_all(self._handle, method, *args, timeout_s=timeout_s)
        good = [answer for answer in answers if not isinstance(answer, BaseException)]
        for answer in answers:
            if isinstance(answer, BaseException):
                error = getattr(answer, "cause", answer)
                if isinstance(error, MlaasError):
                    raise error
                # One that is on its way out does not speak for the others.
                if not good:
                    raise answer
        return good


async def ask_all(handle: DeploymentHandle[Any], method: str, *args: Any, timeout_s: float) -> list[Any]:
    """Ask every replica of a deployment; there may be none.

    Returns:
        What each answered, or its exception.

    Raises:
        TimeoutError: When they do not answer in time.
    """
    from ray.serve.exceptions import DeploymentUnavailableError

    try:
        return await handle.broadcast(method, *args).results_async(
            timeout_s=timeout_s, return_exceptions=True
        )
    except DeploymentUnavailableError:
        return []


class OwnModels:
    """Models in this very process.

    Args:
        pool: They.
    """

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    async def run(
        self, loads: Sequence[ModelRows], *, patient: bool, waited_s: float, behind: float
    ) -> list[Outcome]:
        """Run rows."""
        return await self._pool.run(loads, patient=patient)

    async def prepare(self, key: ModelKey) -> dict[str, Any]:
        """Load a version."""
        runtime = await self._pool.prepare(key)
        return dict(runtime.examination.model_dump(mode="json"))

    async def loaded(self) -> list[dict[str, Any]]:
        """Return what this process holds."""
        return [{"models": [str(key) for key in self._pool.loaded()], "memory": self._pool.bytes}]


@dataclass(slots=True)
class _Behaviour:
    """What is known of a version.

    Attributes:
        seconds: What a call takes, about.
        facts: What was found when it was loaded.
        pool: What holds it.
        lane: Where its rows wait.
    """

    seconds: float
    facts: dict[str, Any]
    pool: str
    lane: Lane = field(init=False)


class Predictor:
    """Predictions from versions that can answer.

    Args:
        settings: Limits, and where models live.
        shared: The replicas for all models; None where there are none.
        here: The models in this process; None where there are to be none.
    """

    def __init__(self, settings: ServiceSettings, *, shared: Holder | None, here: Holder | None) -> None:
        self._settings = settings
        self._common = {SHARED: shared} if shared else {}
        self._common |= {HERE: here} if here else {}
        self._holders: dict[str, Holder] = dict(self._common)
        self._behaviour: dict[ModelKey, _Behaviour] = {}
        self._processes: dict[str, int] = {}
        self.batcher: Batcher[ModelKey] = Batcher(
            self._dispatch,
            linger_s=settings.linger_ms / 1000,
            queue_rows=settings.queue_rows,
            timeout_s=settings.predict_timeout_s,
        )

    def set_holders(self, own: dict[str, Holder]) -> list[str]:
        """Say which models have replicas of their own; return those for which that is new."""
        changed = []
        for name in {*self._holders, *own} - {SHARED, HERE}:
            if (name in own) != (name in self._holders):
                changed.append(name)
                # What was known was known of the others.
                for key in [key for key in self._behaviour if key.name == name]:
                    del self._behaviour[key]
        self._holders = self._common | own
        return changed

    async def prepare(self, entry: Entry) -> None:
        """Bring a version into memory, wherever it is going to be asked.

        Raises:
            BusyError: When that takes too long.
            ModelError: When it does not load, or fails.
            PackageError: When it is damaged.
        """
        try:
            pool = await self._place(entry)
            facts = await self._holders[pool].prepare(entry.key)
        except TimeoutError:
            raise BusyError(f"{entry.key} is being loaded", "Try again in some seconds") from None
        seconds = float(next(iter(facts.get("seconds", {}).values()), 0.0))
        self._remember(entry.key, _Behaviour(seconds, facts, pool))

    async def loaded(self) -> dict[str, list[dict[str, Any]]]:
        """Return what each process holds, by the model that it is for; those for any model under ''."""
        found: dict[str, list[dict[str, Any]]] = {}
        for name, holder in list(self._holders.items()):
            try:
                found[name] = await holder.loaded()
            except Exception as error:  # one that does not answer says nothing of the others
                logger.warning("the replicas %sdo not answer: %s", f"of {name} " if name else "", error)
                found[name] = []
            self._count(name, max(1, len(found[name])))
        return found

    def facts(self, key: ModelKey) -> dict[str, Any]:
        """Return what was found when a version was loaded: its runtime and what that takes."""
        behaviour = self._behaviour.get(key)
        return behaviour.facts if behaviour else {}

    def add(self, entry: Entry, rows: Rows, done: Done) -> None:
        """Let rows wait for their predictions, each of a caller of its own; see :meth:`Batcher.add`."""
        self.batcher.add(self._lane_of(entry.key, len(rows)), entry.key, rows, done, each=True)

    async def predict(self, entry: Entry, rows: Rows) -> Predictions:
        """Return the predictions ``(events, outputs…)`` of rows ``(events, features)``.

        Raises:
            BusyError: When too many rows are waiting already.
            TimeoutError: When they waited too long.
            ModelError: When the model fails.
        """
        return await self.batcher.predict(self._lane_of(entry.key, len(rows)), entry.key, rows)

    def _lane_of(self, key: ModelKey, rows: int) -> Lane:
        behaviour = self._behaviour.get(key)
        if behaviour is not None and rows < BULK_ROWS:
            return behaviour.lane
        pool = behaviour.pool if behaviour else self._usual(key.name)
        return Lane((pool, key, "bulk"), self._calls(pool), batch_rows=1)

    async def _place(self, entry: Entry) -> str:
        """Say what is to hold a version."""
        pool = self._usual(entry.key.name)
        if pool != SHARED or HERE not in self._holders:
            return pool
        return HERE if await EXAMINATIONS.run(light, entry.package, self._settings) else SHARED

    def _usual(self, name: str) -> str:
        """Say what holds a model's versions of which nothing is known."""
        if name in self._holders:
            return name
        return SHARED if SHARED in self._holders else HERE

    def _count(self, pool: str, processes: int) -> None:
        """Note how many processes there are, which is how many calls may be under way."""
        if self._processes.get(pool) == processes:
            return
        self._processes[pool] = processes
        for key, behaviour in self._behaviour.items():
            if behaviour.pool == pool:
                behaviour.lane = self._lane(key, behaviour)

    def _calls(self, pool: str) -> int:
        """Return how many calls may be under way: in other processes one more than there are.

        So each finds its next call when it has answered one; more would only make calls smaller.
        """
        return 1 if pool == HERE else self._processes.get(pool, 1) + 1

    def _lane(self, key: ModelKey, behaviour: _Behaviour) -> Lane:
        own = key if behaviour.seconds > SLOW_S else None
        liked = int(behaviour.facts.get("batch_rows", LEAST_BATCH))
        calls = self._calls(behaviour.pool)
        return Lane((behaviour.pool, own), calls, batch_rows=max(liked, LEAST_BATCH))

    async def _dispatch(
        self, lane: Hashable, groups: list[Group[ModelKey]], waited_s: float
    ) -> Sequence[Answer | Coming]:
        pool, own, bulk = lane[0], lane[1] is not None, len(lane) > 2  # type: ignore[index,arg-type]
        holder = self._holders.get(pool) or self._holders[self._usual("")]
        loads = [(group.model, group.rows) for group in groups]
        behind = self.batcher.waiting_in(lambda other: other[0] == pool) / self._processes.get(pool, 1)
        async with asyncio.timeout(self._settings.predict_timeout_s):
            outcomes = await holder.run(loads, patient=own, waited_s=waited_s, behind=behind)
        answers: list[Answer | Coming] = []
        for group, outcome in zip(groups, outcomes, strict=True):
            if outcome.answer is None:
                # Not in that process's memory: its callers wait for it, the others do not.
                answers.append(self._wait_for(holder, group))
                continue
            if not bulk:  # what thousands of rows take says nothing of one
                self._learn(group.model, pool, outcome.seconds)
            if outcome.by_rows and len(group.shares) > 1:
                answers.append(self._take_apart(holder, group))
            else:
                answers.append(outcome.answer)
        return answers

    async def _wait_for(self, holder: Holder, group: Group[ModelKey]) -> Predictions | list[Answer]:
        key = group.model
        async with asyncio.timeout(self._settings.predict_timeout_s):
            outcome = (await holder.run([(key, group.rows)], patient=True, waited_s=0.0, behind=0.0))[0]
        if outcome.by_rows and len(group.shares) > 1:
            return await self._take_apart(holder, group)
        if outcome.answer is None or isinstance(outcome.answer, MlaasError):
            raise outcome.answer or BusyError(f"{key} is being loaded", "Try again in some seconds")
        return outcome.answer

    async def _take_apart(self, holder: Holder, group: Group[ModelKey]) -> list[Answer]:
        """Answer callers whose rows failed together: halves are tried until it is known whose rows fail.

        All parts still in question go in one call: there are as many calls as the callers can be halved. Of
        a model that fails whatever it is given, :data:`MOST_PARTS` bounds what is tried.

        Returns:
            For each caller its rows' answer, or error.
        """
        ends = list(accumulate(group.shares, initial=0))
        answers: dict[int, Answer] = {}
        trouble: Exception = BusyError("rows of other callers make the model fail", "Send the same again")
        parts = _halves(0, len(group.shares))
        try:
            async with asyncio.timeout(self._settings.predict_timeout_s):
                while parts:
                    loads = [(group.model, group.rows[ends[first] : ends[last]]) for first, last in parts]
                    outcomes = await holder.run(loads, patient=True, waited_s=0.0, behind=0.0)
                    tried, parts = parts, []
                    for (first, last), outcome in zip(tried, outcomes, strict=True):
                        answer = outcome.answer
                        if outcome.by_rows and last - first > 1:
                            if len(parts) < 2 * MOST_PARTS:
                                parts += _halves(first, last)
                            continue
                        for caller in range(first, last):
                            if isinstance(answer, np.ndarray):
                                answers[caller] = answer[
                                    ends[caller] - ends[first] : ends[caller + 1] - ends[first]
                                ]
                            elif answer is not None:
                                answers[caller] = answer
        except Exception as error:  # those of whom it is known have their answers
            trouble = error
        return [answers.get(caller, trouble) for caller in range(len(group.shares))]

    def _learn(self, key: ModelKey, pool: str, seconds: float) -> None:
        behaviour = self._behaviour.get(key)
        if behaviour is None:
            self._remember(key, _Behaviour(seconds, {}, pool))
            return
        before = behaviour.seconds
        behaviour.seconds += LATEST * (seconds - before)
        if (before > SLOW_S) != (behaviour.seconds > SLOW_S):
            behaviour.lane = self._lane(key, behaviour)

    def _remember(self, key: ModelKey, behaviour: _Behaviour) -> None:
        behaviour.lane = self._lane(key, behaviour)
        self._behaviour[key] = behaviour
        if len(self._behaviour) > MOST_VERSIONS:
            del self._behaviour[next(iter(self._behaviour))]


def _halves(first: int, last: int) -> list[tuple[int, int]]:
    middle = (first + last) // 2
    return [(first, middle), (middle, last)]
