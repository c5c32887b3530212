"""Autoscaling by what there is to do: rows not answered yet, how long they waited, and CPU time.

Serve counts calls. A call here carries one row or a thousand, so replicas report rows. Where a process is
busy, rows wait before it sees them, in the sockets: so it reports its CPU time too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlaas_ray.inference.settings import Scale

ROWS, WAITED, CPUS = "rows", "waited_ms", "cpus"
# CPU seconds a second that one thread may have before another process is worth it.
BUSY = 0.7
# Serve's own 10 and 30 seconds are long for a load that comes in one step.
REPORT_S, LOOK_BACK_S = 1.0, 4.0


class Load:
    """Counts the rows a replica has taken and not answered, over the time since the last report."""

    def __init__(self) -> None:
        self._ongoing = 0
        self._area = 0.0
        self._waited = 0.0
        self._behind = self._calls = 0.0
        self._changed = self._reported = time.monotonic()
        self._cpu = time.process_time()

    @property
    def ongoing(self) -> int:
        """Rows not answered yet."""
        return self._ongoing

    @contextmanager
    def of(self, rows: int, *, waited_s: float = 0.0, behind: float = 0.0) -> Iterator[None]:
        """Count rows as ongoing while the block runs.

        Args:
            rows: How many.
            waited_s: How long the first of them had waited before, seconds.
            behind: Rows that still wait elsewhere, this replica's share of them.
        """
        self.change(rows)
        self._waited = max(self._waited, waited_s)
        self._behind += behind
        self._calls += 1
        try:
            yield
        finally:
            self.change(-rows)

    def change(self, rows: int) -> None:
        """Count rows that came, or, below 0, were answered."""
        now = time.monotonic()
        self._area += self._ongoing * (now - self._changed)
        self._changed = now
        self._ongoing += rows

    def report(self) -> dict[str, float]:
        """Return what there was to do since the last report.

        Returns:
            The mean of rows to be answered, the longest wait (milliseconds), CPU seconds a second.
        """
        self.change(0)
        now = time.monotonic()
        passed = now - self._reported
        mean = self._area / passed if passed > 0 else float(self._ongoing)
        if self._calls:
            mean += self._behind / self._calls
        cpu = time.process_time()
        cpus = (cpu - self._cpu) / passed if passed > 0 else 0.0
        report = {ROWS: mean, WAITED: self._waited * 1000, CPUS: cpus}
        self._cpu = cpu
        self._area = self._waited = self._behind = self._calls = 0.0
        self._reported = now
        return report


class ByRows:
    """Serve's autoscaling policy for a deployment whose replicas report :class:`Load`.

    Args:
        rows: Rows that one replica should have at a time.
        waited_ms: A wait that is too long: one replica more than there are.
        threads: Threads that a replica computes with.
    """

    def __init__(self, rows: float, waited_ms: float, threads: int = 1) -> None:
        self._rows = rows
        self._waited_ms = waited_ms
        self._cpus = BUSY * threads

    def __call__(self, context: Any) -> tuple[int | float, dict[str, Any]]:
        """Say how many replicas there should be; Serve keeps it within its bounds and delays.

        Args:
            context: Serve's AutoscalingContext.
        """
        metrics = context.aggregated_metrics or {}
        wanted = max(
            sum(metrics.get(ROWS, {}).values()) / self._rows,
            sum(metrics.get(CPUS, {}).values()) / self._cpus,
        )
        if max(metrics.get(WAITED, {}).values(), default=0.0) > self._waited_ms:
            wanted = max(wanted, context.current_num_replicas + 1)
        # Calls that wait for a first replica, where there is none: Serve counts those.
        if context.total_num_requests > 0:
            wanted = max(wanted, 1)
        # A little over a whole number is no reason for another replica.
        return math.ceil(wanted - 0.1), {}


def options(scale: Scale, *, rows: float, waited_ms: float = 200.0, threads: int = 1) -> dict[str, Any]:
    """Return a deployment's options for so many replicas.

    Args:
        scale: Fewest and most replicas.
        rows: Rows that one replica should have at a time.
        waited_ms: A wait that is too long.
        threads: Threads that a replica computes with.
    """
    if scale.fewest == scale.most:
        return {"num_replicas": scale.most}
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    return {
        "num_replicas": None,
        "autoscaling_config": AutoscalingConfig(
            min_replicas=scale.fewest,
            initial_replicas=max(1, scale.fewest),
            max_replicas=scale.most,
            upscale_delay_s=1.0,
            downscale_delay_s=20.0,
            # Deprecated for two settings of the environment, which Serve 2.60 does not read yet.
            metrics_interval_s=REPORT_S,
            look_back_period_s=LOOK_BACK_S,
            policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
                policy_function=ByRows,
                policy_kwargs={"rows": rows, "waited_ms": waited_ms, "threads": threads},
            ),
        ),
    }
