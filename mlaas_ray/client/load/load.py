"""Load: so many callers for so long, or so many requests a second, against a running service."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from time import perf_counter
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field

from mlaas_ray.client.load.schedule import Schedule
from mlaas_ray.client.load.tally import LoadReport, Tally
from mlaas_ray.client.load.traffic import Address, Judge, Traffic
from mlaas_ray.core.errors import ServiceError
from mlaas_ray.core.settings import Settings

# Seconds between two looks for requests that are overdue.
_SWEEP_S = 0.25


class LoadSettings(Settings):
    """How much load, and for how long.

    Attributes:
        concurrency: Connections, each with at most one request in flight.
        seconds: Measured time.
        warmup: Seconds of the same load before it, which are not counted.
        rate: Requests a second, sent when they are due (an open loop); None for a closed loop, in which each
            connection sends the next request when it has its answer.
        arrivals: Whether an open loop's requests come evenly, or at random as those of many independent
            callers do.
        timeout: Longest wait for an answer, seconds.
    """

    concurrency: int = Field(default=50, ge=1)
    seconds: float = Field(default=10.0, gt=0)
    warmup: float = Field(default=1.0, ge=0)
    rate: float | None = Field(default=None, gt=0)
    arrivals: Literal["constant", "poisson"] = "constant"
    timeout: float = Field(default=30.0, gt=0)


@dataclass(frozen=True)
class Call:
    """One POST request.

    Attributes:
        path: Path, such as ``/json``.
        body: The body.
        headers: Headers beside Host and Content-Length.
        rows: Rows in the body.
    """

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    rows: int = 1


class Load:
    """Load on a service; :meth:`run` makes it.

    >>> calls = [json_call("toy", None, [row]) for row in draw_rows(1000, width=5)]
    >>> Load("http://127.0.0.1:8083", calls, LoadSettings(concurrency=200)).run().p99_ms
    41.3

    Args:
        url: Where the service is.
        calls: What is asked, in turn, over and over; all with the same number of rows.
        settings: How much.
        judge: Called with the index of a call and the body of each answer with 2xx.
        on_progress: Called a few times a second with the seconds gone (negative while it warms up), and the
            counts until then.

    Raises:
        ServiceError: When the URL is none.
    """

    def __init__(
        self,
        url: str,
        calls: Sequence[Call],
        settings: LoadSettings | None = None,
        *,
        judge: Judge | None = None,
        on_progress: Callable[[float, Tally], None] | None = None,
    ) -> None:
        if not calls:
            raise ValueError("there are no calls to make")
        self._url = url
        self._where = _split(url)
        self._settings = settings or LoadSettings()
        self._rows = calls[0].rows
        self._requests = [_request(self._where, call) for call in calls]
        self._judge = judge
        self._on_progress = on_progress

    def run(self) -> LoadReport:
        """Make the load, and return what was measured.

        Ctrl-C (in the main thread) ends it early, with what was measured until then.

        Raises:
            ServiceError: When the service cannot be reached at the start.
        """
        _allow_files(self._settings.concurrency + 100)
        # A pause of the collector would be measured as the service's: what is there already is left alone.
        gc.collect()
        gc.freeze()
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                return runner.run(self._run())
        finally:
            gc.unfreeze()

    async def _run(self) -> LoadReport:
        settings = self._settings
        address = await self._address()
        start = perf_counter()
        begin = start + settings.warmup
        end = begin + settings.seconds
        poisson = settings.arrivals == "poisson"
        schedule = Schedule(settings.rate, start, end, poisson=poisson) if settings.rate else None
        tally = Tally(begin)
        traffic = Traffic(address, self._requests, tally, schedule, settings.timeout, self._judge)
        sweeping = asyncio.create_task(self._sweep(traffic, tally))
        try:
            traffic.start(settings.concurrency)
            return await self._measure(traffic, tally, end)
        finally:
            sweeping.cancel()
            await traffic.close()

    async def _measure(self, traffic: Traffic, tally: Tally, end: float) -> LoadReport:
        interrupted = asyncio.Event()

        def interrupt() -> None:
            interrupted.set()
            traffic.give_up()

        with _ctrl_c(interrupt):
            await _wait(interrupted, tally.begin)
            first = tally.mark()
            await _wait(interrupted, end)
            last = tally.mark()
            traffic.stop()
            await traffic.drain()
        return LoadReport.of(tally, first, last, self._rows)

    async def _sweep(self, traffic: Traffic, tally: Tally) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            traffic.sweep()
            if self._on_progress:
                self._on_progress(perf_counter() - tally.begin, tally)

    async def _address(self) -> Address:
        """Return the first of the host's addresses that takes a connection."""
        loop = asyncio.get_running_loop()
        host = self._where.hostname or ""
        secure = self._where.scheme == "https"
        port = self._where.port or (443 if secure else 80)
        reason: OSError = OSError("it has no address")
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            found, reason = [], error
        for *_, place in found:
            try:
                async with asyncio.timeout(self._settings.timeout):
                    transport, _ = await loop.create_connection(asyncio.Protocol, str(place[0]), port)
            except OSError as error:
                reason = error
                continue
            transport.close()
            context = ssl.create_default_context() if secure else None
            return Address(str(place[0]), port, context, host if secure else None)
        raise ServiceError(
            f"cannot reach {self._url}: {reason}", "Is the service running? Start it with mlaas serve"
        )


def _split(url: str) -> SplitResult:
    try:
        where = urlsplit(url.rstrip("/"))
        if where.scheme in ("http", "https") and where.hostname and where.port != 0:
            return where
    except ValueError:  # a port that is no number
        pass
    raise ServiceError(f"{url!r} is no URL", "Write http://HOST:PORT")


def _request(where: SplitResult, call: Call) -> bytes:
    headers = {"Host": where.netloc.rpartition("@")[2], "User-Agent": "mlaas-bench"}
    headers |= {**call.headers, "Content-Length": str(len(call.body))}
    lines = [
        f"POST {where.path}{call.path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "\r\n"]).encode() + call.body


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes event loops: uvloop where it is installed, which takes less time a request."""
    try:
        uvloop: Any = import_module("uvloop")
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _wait(event: asyncio.Event, until: float) -> None:
    """Wait for a time, or less when the event comes."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(until - perf_counter()):
            await event.wait()


@contextlib.contextmanager
def _ctrl_c(act: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C call a function, where signals can be had: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, act)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _allow_files(count: int) -> None:
    """Raise this process's limit of open files as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        limit = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
