"""Batcher: rows of many callers gathered by model, and sent off together.

Rows wait in *lanes*. What is in one lane travels together: one call carries the rows of all models that wait
there, so that a hundred models cost hardly more calls than one. Who must not wait for whom has a lane of its
own: a model that is slow or not loaded yet, a caller with many rows.

How long a row waits follows from the load, not from a setting. When nothing of its lane is under way it
leaves at the next turn of the event loop. When something is, it waits for company: until the lane has as many
rows as its models like, or for ``linger_s``, or, once as many calls are under way as may be, for the next
answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

import numpy as np

from mlaas_ray.core.flatten import Rows
from mlaas_ray.inference.busy import BusyError
from mlaas_ray.inference.runtimes import Predictions

logger = logging.getLogger("ray.serve")

Model = TypeVar("Model", bound=Hashable)
Answer = Predictions | BaseException
# An answer that is still to come holds up nobody else of its call. It may differ by caller.
Coming = Awaitable[Predictions | list[Answer]]
# A list is told to those who asked for each row to be a caller's own.
Done = Callable[[Answer | list[Answer]], None]


@dataclass(frozen=True, slots=True)
class Lane:
    """What travels together, and how.

    Attributes:
        key: Tells lanes apart.
        calls: Most calls under way at a time.
        batch_rows: Rows that are worth a call: no row waits for more.
    """

    key: Hashable
    calls: int = 2
    batch_rows: int = 256


@dataclass(frozen=True, slots=True)
class Group(Generic[Model]):
    """The rows of one model in a call.

    Attributes:
        model: Whose.
        rows: ``(events, features)`` in the type that it takes.
        asked: Whose rows these are.
    """

    model: Model
    rows: Rows
    asked: Sequence[_Asked] = ()

    @property
    def shares(self) -> list[int]:
        """Rows of each caller, one after the other."""
        return [share for one in self.asked for share in one.shares]


# of a lane: its key, the rows, and how long the first of them waited (seconds)
Dispatch = Callable[[Hashable, list[Group[Any]], float], Awaitable[Sequence[Answer | Coming]]]


class _Asked:
    """A caller's rows, and whom to tell."""

    __slots__ = ("done", "each", "rows", "since")

    def __init__(self, rows: Rows, done: Done, since: float, each: bool) -> None:
        self.rows = rows
        self.done = done
        self.since = since
        self.each = each

    @property
    def shares(self) -> list[int]:
        return [1] * len(self.rows) if self.each else [len(self.rows)]


@dataclass(slots=True)
class _Waiting:
    """The state of a lane."""

    lane: Lane
    asked: dict[Any, list[_Asked]] = field(default_factory=dict)
    rows: int = 0
    under_way: int = 0
    leaving: asyncio.Handle | None = None
    # whether it leaves at the next turn of the loop, or lingers
    at_once: bool = False


class Batcher(Generic[Model]):
    """Gathers rows; for one event loop.

    Args:
        dispatch: Sends groups off; gives an answer ``(events, outputs…)``, what went wrong, or an awaitable
            of the former, for each.
        linger_s: Longest wait for company while calls are under way, seconds.
        queue_rows: Most rows that wait in a lane; one caller may bring more when none is waiting.
        timeout_s: Longest wait of a row before it is sent off, seconds.
        call_rows: Most rows in a call, unless one caller brings more.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        *,
        linger_s: float = 0.001,
        queue_rows: int = 20_000,
        timeout_s: float = 60.0,
        call_rows: int = 4096,
    ) -> None:
        self._dispatch = dispatch
        self._linger_s = linger_s
        self._queue_rows = queue_rows
        self._timeout_s = timeout_s
        self._call_rows = call_rows
        self._lanes: dict[Hashable, _Waiting] = {}
        # asyncio keeps no strong reference to a task.
        self._tasks: set[asyncio.Task[None]] = set()
        self.calls = 0
        self.rows = 0

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        # Asking for it each time is a system call (getpid, in CPython 3.11).
        return asyncio.get_running_loop()

    @property
    def waiting(self) -> int:
        """Rows that wait to be sent off."""
        return sum(lane.rows for lane in self._lanes.values())

    def waiting_in(self, chosen: Callable[[Any], bool]) -> int:
        """Rows that wait in the lanes of chosen keys."""
        return sum(lane.rows for key, lane in self._lanes.items() if chosen(key))

    @property
    def ongoing(self) -> int:
        """Calls under way."""
        return sum(lane.under_way for lane in self._lanes.values())

    def add(self, lane: Lane, model: Model, rows: Rows, done: Done, *, each: bool = False) -> None:
        """Let rows wait for their answer.

        Args:
            lane: Where they wait.
            model: Whose they are.
            rows: ``(events, features)``, fit for the model and of its type.
            done: Called once, in the event loop, with the answer ``(events, outputs…)`` or an error.
            each: Whether each row is a caller's own: ``done`` may then be given a list, of each row's answer.

        Raises:
            BusyError: When too many are waiting already.
        """
        waiting = self._lanes.get(lane.key)
        if waiting is None:
            waiting = self._lanes[lane.key] = _Waiting(lane)
        waiting.lane = lane
        count = len(rows)
        if waiting.rows and waiting.rows + count > self._queue_rows:
            raise BusyError(
                f"{waiting.rows} rows are waiting already", "Try again in a moment, or with more replicas"
            )
        asked = _Asked(rows, done, self._loop.time(), each)
        present = waiting.asked.get(model)
        if present is None:
            waiting.asked[model] = [asked]
        else:
            present.append(asked)
        waiting.rows += count
        if not waiting.at_once:
            self._plan(waiting)

    async def predict(self, lane: Lane, model: Model, rows: Rows) -> Predictions:
        """Do :meth:`add` and wait for the answer.

        Raises:
            BusyError: When too many are waiting already.
            TimeoutError: When they waited too long.
            Exception: What went wrong with them.
        """
        future: asyncio.Future[Predictions] = self._loop.create_future()

        def done(answer: Answer | list[Answer]) -> None:
            if future.done():  # the caller went away
                return
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:  # one caller gets no list
                future.set_result(cast(Predictions, answer))

        self.add(lane, model, rows, done)
        return await future

    def _plan(self, waiting: _Waiting) -> None:
        """Decide when the lane leaves."""
        if waiting.under_way >= waiting.lane.calls:
            return
        if waiting.under_way == 0 or waiting.rows >= waiting.lane.batch_rows:
            if waiting.leaving is not None:
                waiting.leaving.cancel()
            waiting.at_once = True
            waiting.leaving = self._loop.call_soon(self._leave, waiting)
        elif waiting.leaving is None:
            waiting.leaving = self._loop.call_later(self._linger_s, self._leave, waiting)

    def _leave(self, waiting: _Waiting) -> None:
        waiting.leaving = None
        waiting.at_once = False
        parts, late = self._take(waiting)
        if parts:
            waiting.under_way += 1
            self.calls += 1
            self._start(self._carry(waiting, parts))
        if waiting.asked:
            self._plan(waiting)
        else:
            self._forget(waiting)
        # Last, for who is told may ask again at once.
        for one in late:
            _tell(one.done, TimeoutError("the rows waited too long"))

    def _forget(self, waiting: _Waiting) -> None:
        """Drop a lane in which nothing is left."""
        if not waiting.under_way and self._lanes.get(waiting.lane.key) is waiting:
            del self._lanes[waiting.lane.key]

    def _take(self, waiting: _Waiting) -> tuple[list[tuple[Any, list[_Asked]]], list[_Asked]]:
        """Take what leaves now: whole callers, as many as a call holds; and those who waited too long."""
        oldest = self._loop.time() - self._timeout_s
        late: list[_Asked] = []
        parts: list[tuple[Any, list[_Asked]]] = []
        count = 0
        for model in list(waiting.asked):
            asked = waiting.asked.pop(model)
            taken: list[_Asked] = []
            for position, one in enumerate(asked):
                if count and count + len(one.rows) > self._call_rows:
                    waiting.asked[model] = asked[position:]
                    break
                waiting.rows -= len(one.rows)
                if one.since < oldest:
                    late.append(one)
                    continue
                count += len(one.rows)
                taken.append(one)
            if taken:
                parts.append((model, taken))
            if model in waiting.asked:
                break
        self.rows += count
        return parts, late

    async def _carry(self, waiting: _Waiting, parts: list[tuple[Any, list[_Asked]]]) -> None:
        """Make one call and tell everybody."""
        answers: Sequence[Answer | Coming]
        waited_s = self._loop.time() - min(asked[0].since for _, asked in parts)
        try:
            groups = [
                Group(
                    model,
                    asked[0].rows if len(asked) == 1 else np.concatenate([one.rows for one in asked]),
                    asked,
                )
                for model, asked in parts
            ]
            answers = await self._dispatch(waiting.lane.key, groups, waited_s)
        except BaseException as error:  # the callers want to hear of it, whatever it is
            answers = [error] * len(parts)
            if not isinstance(error, Exception):
                raise
        finally:
            waiting.under_way -= 1
            if not waiting.asked:
                self._forget(waiting)
            elif not waiting.at_once:
                self._plan(waiting)
            for (_, asked), answer in zip(parts, answers, strict=True):
                if isinstance(answer, np.ndarray | BaseException):
                    _share(asked, answer)
                else:
                    self._start(_share_later(asked, answer))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _share_later(asked: list[_Asked], coming: Coming) -> None:
    try:
        answer = await coming
    except BaseException as error:  # the callers want to hear of it, whatever it is
        _share(asked, error)
        if not isinstance(error, Exception):
            raise
        return
    _share(asked, answer)


def _share(asked: list[_Asked], answer: Answer | list[Answer]) -> None:
    """Give every caller its own rows' part of an answer."""
    if isinstance(answer, list):
        start = 0
        for one in asked:
            end = start + len(one.shares)
            _tell(one.done, answer[start:end] if one.each else answer[start])
            start = end
        return
    if isinstance(answer, BaseException):
        for one in asked:
            _tell(one.done, answer)
        return
    start = 0
    for one in asked:
        end = start + len(one.rows)
        _tell(one.done, answer[start:end])
        start = end


def _tell(done: Done, answer: Answer | list[Answer]) -> None:
    try:
        done(answer)
    except Exception:
        # One caller's trouble (its connection, say) is not the others'.
        logger.exception("an answer could not be handed over")
