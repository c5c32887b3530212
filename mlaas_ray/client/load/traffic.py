"""Traffic: who of many callers sends the next request, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ssl import SSLContext
from time import perf_counter

from mlaas_ray.client.load.connection import Connection, kind_of
from mlaas_ray.client.load.reply import Head, ReplyReader
from mlaas_ray.client.load.schedule import Alarm, Schedule
from mlaas_ray.client.load.tally import Tally

# The longest that a caller waits after a refusal or a failure, seconds: it is here to make load.
_PAUSE = 0.05

Judge = Callable[[int, bytes], None]


@dataclass(frozen=True)
class Address:
    """Where a service listens: a numeric address, so that no connection waits for a name."""

    host: str
    port: int
    ssl: SSLContext | None = None
    server_hostname: str | None = None


class Traffic:
    """Requests over kept connections, one in flight on each.

    In a closed loop each connection sends the next request when it has its answer. With a schedule, a request
    is sent when it is due and a connection is free, and counts as begun when it was due.

    Args:
        address: Where the service is.
        requests: Whole requests, sent in turn.
        tally: Counts what becomes of them.
        schedule: When they are due; None for a closed loop.
        timeout: Longest wait for an answer or a connection, seconds.
        judge: Called with a request's number and the body of its answer with 2xx.
    """

    def __init__(
        self,
        address: Address,
        requests: Sequence[bytes],
        tally: Tally,
        schedule: Schedule | None,
        timeout: float,
        judge: Judge | None = None,
    ) -> None:
        self._address = address
        self._requests = requests
        self._tally = tally
        self._schedule = schedule
        self._timeout = timeout
        self._judge = judge
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._loop, self._rung) if schedule else None
        self._connections: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        # the last is taken first: the others may end unnoticed, as servers end connections that are idle
        self._idle: list[Connection] = []
        self._next = self._in_flight = 0
        self._running = True
        self._quiet = asyncio.Event()

    def start(self, concurrency: int) -> None:
        """Open the connections, and begin to ask on each as soon as it is there."""
        for _ in range(concurrency):
            self._open()

    def stop(self) -> None:
        """Send no more requests; count those that were due and for which no connection came free."""
        self._running = False
        now = perf_counter()
        while self._schedule and self._schedule.due <= now:
            self._tally.never_sent(self._schedule.take(), now)
        if not self._in_flight:
            self._quiet.set()

    async def drain(self) -> None:
        """Wait until no request is in flight any more; each ends at its timeout at the latest."""
        await self._quiet.wait()

    def give_up(self) -> None:
        """Wait for nothing that is in flight."""
        self._quiet.set()

    async def close(self) -> None:
        """Close the connections."""
        self._running = False
        for task in list(self._opening):
            task.cancel()
        for connection in list(self._connections):
            connection.abort()
        if self._alarm:
            self._alarm.close()
        while self._connections or self._opening:
            await asyncio.sleep(0.001)

    def sweep(self) -> None:
        """Give up requests that had no answer in time; to be called a few times a second."""
        limit = perf_counter() - self._timeout
        for connection in [c for c in self._connections if c.number >= 0 and c.sent < limit]:
            connection.fail("timeout")

    def opened(self, connection: Connection) -> None:
        """Ask on a new connection."""
        self._connections.add(connection)
        self._free(connection, perf_counter())

    def answered(self, connection: Connection, head: Head, reader: ReplyReader) -> None:
        """Count an answer, and ask again."""
        now = perf_counter()
        number = connection.number
        connection.number = -1
        self._in_flight -= 1
        self._tally.answer(head, connection.due, now, len(self._requests[number]), reader.size)
        if self._judge and 200 <= head.status < 300:
            self._judge(number, reader.body(head))
        if head.retry_after:
            connection.pause = min(head.retry_after, _PAUSE)
        if head.close:
            connection.close()
        elif head.retry_after and not self._schedule:
            self._loop.call_later(connection.pause, self._resume, connection)
        else:
            self._free(connection, now)
        if not self._in_flight and not self._running:
            self._quiet.set()

    def failed(self, connection: Connection, kind: str) -> None:
        """Count a request that got no answer."""
        connection.number = -1
        connection.pause = _PAUSE
        self._in_flight -= 1
        self._tally.error(kind, connection.due, perf_counter())
        if not self._in_flight and not self._running:
            self._quiet.set()

    def closed(self, connection: Connection) -> None:
        """Open another connection in its place."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._running:
            self._open(connection.pause)

    def _free(self, connection: Connection, now: float) -> None:
        """Send the next request, if one is due; otherwise keep the connection for it."""
        if not self._running:
            return
        schedule = self._schedule
        if schedule is None:
            due = now
        elif schedule.due <= now:
            due = schedule.take()
            self._tally.sent_late(due, now)
        else:
            self._idle.append(connection)
            if len(self._idle) == 1:
                self._set_alarm(now)
            return
        number = self._next
        self._next = number + 1 if number + 1 < len(self._requests) else 0
        self._in_flight += 1
        connection.send(number, self._requests[number], due, now)

    def _resume(self, connection: Connection) -> None:
        connection.pause = 0.0
        if connection in self._connections:
            self._free(connection, perf_counter())

    def _rung(self) -> None:
        """Send what is due, as far as connections are free."""
        schedule = self._schedule
        assert schedule
        now = perf_counter()
        while self._running and self._idle and schedule.due <= now:
            self._free(self._idle.pop(), now)
        if self._idle:
            self._set_alarm(perf_counter())

    def _set_alarm(self, now: float) -> None:
        assert self._schedule
        assert self._alarm
        if self._running and self._schedule.due < float("inf"):
            self._alarm.set(self._schedule.due - now)

    def _open(self, pause: float = 0.0) -> None:
        task = self._loop.create_task(self._connect(pause))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, pause: float) -> None:
        """Open a connection, however often that fails; each failure is that of a request that is due."""
        where = self._address
        while True:
            await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(self._timeout):
                    await self._loop.create_connection(
                        lambda: Connection(self),
                        where.host,
                        where.port,
                        ssl=where.ssl,
                        server_hostname=where.server_hostname,
                    )
                return
            except OSError as error:  # a timeout and a bad certificate are OSErrors too
                pause = _PAUSE
                self._miss(kind_of(error))

    def _miss(self, kind: str) -> None:
        """Count the failure of a request that could not even be sent."""
        now = perf_counter()
        if not self._running:
            return
        if self._schedule is None:
            self._tally.error(kind, now, now)
        elif self._schedule.due <= now:
            self._tally.error(kind, self._schedule.take(), now)
