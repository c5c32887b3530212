"""What callers saw of a service: counts of what became of their requests, and how long they took."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from mlaas_ray.client.load.histogram import Histogram
from mlaas_ray.client.load.reply import Head


class Mark(NamedTuple):
    """Where a load stands at one moment: the clock, and the processor seconds and requests until then."""

    time: float
    cpu: float
    good: int
    finished: int


class Tally:
    """Counts of the requests that were due in the measured time, and of all.

    Attributes:
        begin: When the measured time begins; what was due before is the warm-up's.
        good: Requests answered with 2xx, of the warm-up too.
        finished: Requests that ended in any way, of the warm-up too.
    """

    def __init__(self, begin: float) -> None:
        self.begin = begin
        self.good = self.finished = 0
        self.latencies = Histogram()
        self.behind = Histogram()
        self.statuses: dict[int, int] = {}
        self.errors: dict[str, int] = {}
        self.succeeded = self.refused = self.unsent = 0
        self.sent_bytes = self.received_bytes = 0

    def mark(self) -> Mark:
        """Return where the load stands."""
        return Mark(time.perf_counter(), time.process_time(), self.good, self.finished)

    def answer(self, head: Head, due: float, now: float, sent: int, received: int) -> None:
        """Count an answer: good, refused (503 or 429 with a time to ask again) or an error."""
        status = head.status
        good = 200 <= status < 300
        self.finished += 1
        if good:
            self.good += 1
        if due < self.begin:
            return
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.sent_bytes += sent
        self.received_bytes += received
        if good:
            self.succeeded += 1
            self.latencies.add(now - due)
        elif head.retry_after is not None and status in (429, 503):
            self.refused += 1
        else:
            self.errors[f"http_{status}"] = self.errors.get(f"http_{status}", 0) + 1

    def error(self, kind: str, due: float, now: float) -> None:
        """Count a request without an answer; one that timed out took as long as it was waited for."""
        self.finished += 1
        if due < self.begin:
            return
        self.errors[kind] = self.errors.get(kind, 0) + 1
        if kind == "timeout":
            self.latencies.add(now - due)

    def sent_late(self, due: float, now: float) -> None:
        """Count how long after it was due a request of an open loop is sent."""
        if due >= self.begin:
            self.behind.add(now - due)

    def never_sent(self, due: float, now: float) -> None:
        """Count a request that was due, but for which no connection came free: it waited until the end."""
        if due >= self.begin:
            self.unsent += 1
            self.latencies.add(now - due)
            self.behind.add(now - due)


@dataclass(frozen=True)
class LoadReport:
    """What a load measured.

    Attributes:
        seconds: Measured time.
        requests: Requests that ended in any way, and were due in the measured time.
        rows: Rows of the requests that were answered with 2xx.
        errors: What was neither answered with 2xx nor refused, by kind: ``http_500``, ``connection_refused``,
            ``connection_reset``, ``connection_closed``, ``timeout``, ``bad_reply``, ….
        refused: Answers 503 and 429 with Retry-After: the service sheds load.
        statuses: Answers by status code.
        req_s: Requests answered with 2xx a second.
        rows_s: Their rows a second.
        p50_ms: Latency that half of the requests did not exceed, milliseconds: of answers with 2xx, and of
            requests that timed out or were never sent, as long as they waited. Of an open loop, from when the
            request was due. The other percentiles likewise.
        behind_p50_ms: How late requests were sent in an open loop, milliseconds; likewise the others.
        unsent: Requests of an open loop that were due and still unsent at its end.
        client_cpu_us: The generator's own processor time for a request, microseconds.
        client_busy: The share of one processor that the generator took; near 1 it measures itself.
    """

    seconds: float
    requests: int
    rows: int
    errors: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    req_s: float = 0.0
    rows_s: float = 0.0
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    max_ms: float | None = None
    behind_p50_ms: float | None = None
    behind_p99_ms: float | None = None
    behind_max_ms: float | None = None
    unsent: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    client_cpu_us: float | None = None
    client_busy: float = 0.0

    @classmethod
    def of(cls, tally: Tally, begin: Mark, end: Mark, rows: int) -> LoadReport:
        """Sum up.

        Args:
            tally: What was counted.
            begin: When the measured time began.
            end: When it ended.
            rows: Rows of each request.
        """
        seconds = end.time - begin.time
        finished = end.finished - begin.finished
        good = (end.good - begin.good) / seconds if seconds > 0 else 0.0
        cpu = end.cpu - begin.cpu
        return cls(
            seconds=round(seconds, 3),
            requests=tally.succeeded + tally.refused + sum(tally.errors.values()),
            rows=tally.succeeded * rows,
            errors=dict(sorted(tally.errors.items())),
            refused=tally.refused,
            statuses=dict(sorted(tally.statuses.items())),
            req_s=round(good, 1),
            rows_s=round(good * rows, 1),
            **_milliseconds(tally.latencies, p50=0.5, p90=0.9, p99=0.99, p999=0.999, max=1.0),
            **_milliseconds(tally.behind, behind_p50=0.5, behind_p99=0.99, behind_max=1.0),
            unsent=tally.unsent,
            sent_bytes=tally.sent_bytes,
            received_bytes=tally.received_bytes,
            client_cpu_us=round(cpu / finished * 1e6, 1) if finished else None,
            client_busy=round(cpu / seconds, 3) if seconds > 0 else 0.0,
        )

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)


def _milliseconds(durations: Histogram, **shares: float) -> dict[str, Any]:
    found = {name: durations.quantile(share) for name, share in shares.items()}
    return {f"{name}_ms": None if value is None else round(value * 1e3, 4) for name, value in found.items()}
