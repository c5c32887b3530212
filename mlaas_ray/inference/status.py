"""Status of a gateway's machine and of its work, in the keys of TFaaS's ``/status`` and some more."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter
from typing import Any

import psutil

from mlaas_ray.inference.autoscaling import Load

# Times are counted in classes that differ by a factor 2**0.25, from 50 microseconds on.
_SHORTEST_S, _CLASSES_AN_OCTAVE, _CLASSES = 50e-6, 4, 88
# Bounds between the classes of Times.buckets, seconds: 100 microseconds, and the double each time.
BUCKETS_S = tuple(_SHORTEST_S * 2**octave for octave in range(1, _CLASSES // _CLASSES_AN_OCTAVE))


class Times:
    """Counts predictions by how long they took: percentiles to 10 %, in the same memory for ever."""

    def __init__(self) -> None:
        self.requests = 0
        self.rows = 0
        self.seconds = 0.0
        self._counts = [0] * _CLASSES

    def add(self, rows: int, seconds: float, requests: int = 1) -> None:
        """Count requests that took as long."""
        self.requests += requests
        self.rows += rows
        self.seconds += seconds * requests
        place = math.log2(seconds / _SHORTEST_S) * _CLASSES_AN_OCTAVE if seconds > _SHORTEST_S else 0
        self._counts[min(int(place), _CLASSES - 1)] += requests

    def percentile(self, part: float) -> float:
        """Return the time, seconds, that this part of the requests took at most."""
        wanted = part * self.requests
        seen = 0
        for place, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return float(_SHORTEST_S * 2 ** ((place + 0.5) / _CLASSES_AN_OCTAVE))
        return 0.0

    def buckets(self) -> list[int]:
        """Return requests by time: within each of ``BUCKETS_S`` but not the one before, then the rest."""
        counts = self._counts
        return [
            sum(counts[first : first + _CLASSES_AN_OCTAVE])
            for first in range(0, _CLASSES, _CLASSES_AN_OCTAVE)
        ]

    def report(self) -> dict[str, float]:
        """Return the counts, and times in milliseconds."""
        percentiles = {f"p{part}_ms": round(self.percentile(part / 100) * 1000, 3) for part in (50, 90, 99)}
        return {"requests": self.requests, "rows": self.rows, **percentiles}


class Status:
    """Counts requests since the gateway started.

    Attributes:
        answered: Requests by method and status.
        load: What is being predicted.
        models: Times of predictions by model.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self.answered: Counter[tuple[str, int]] = Counter()
        self.load = Load()
        self.models: dict[str, Times] = {}
        psutil.cpu_percent(percpu=True)  # the first call only sets the mark

    def count(self, method: str, code: int, requests: int = 1) -> None:
        """Count answered requests."""
        self.answered[method, code] += requests

    @property
    def requests(self) -> dict[str, int]:
        """Answered requests by method."""
        found = {"GET": 0, "POST": 0, "DELETE": 0}
        for (method, _), count in self.answered.items():
            found[method] = found.get(method, 0) + count
        return found

    @property
    def errors(self) -> int:
        """Answers with status 500 and above."""
        return sum(count for (_, code), count in self.answered.items() if code >= 500)

    def predicted(self, model: str, rows: int, seconds: float, requests: int = 1) -> None:
        """Count predictions that took as long."""
        times = self.models.get(model)
        if times is None:
            times = self.models[model] = Times()
        times.add(rows, seconds, requests)

    def report(self) -> dict[str, Any]:
        """Return the figures: loads, bytes, percent, and seconds since the start."""
        load1, load5, load15 = os.getloadavg()
        requests = self.requests
        virtual, swap = psutil.virtual_memory(), psutil.swap_memory()
        return {
            "CPU": psutil.cpu_percent(percpu=True),
            "Load": {"load1": load1, "load5": load5, "load15": load15},
            "Memory": {
                "Virtual": {
                    "total": virtual.total,
                    "free": virtual.available,
                    "used": virtual.used,
                    "usedPercent": virtual.percent,
                },
                "Swap": {
                    "total": swap.total,
                    "free": swap.free,
                    "used": swap.used,
                    "usedPercent": swap.percent,
                },
            },
            # The original counts goroutines: here, tasks of the event loop.
            "NGo": len(asyncio.all_tasks()),
            "Uptime": round(time.monotonic() - self._start, 3),
            "getRequests": requests["GET"],
            "postRequests": requests["POST"],
            "deleteRequests": requests["DELETE"],
            "errors": self.errors,
            "ongoing": self.load.ongoing,
            "models": {name: times.report() for name, times in self.models.items()},
        }
