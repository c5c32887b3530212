"""Status of a gateway's machine and of its work, in the keys of TFaaS's ``/status`` and some more."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import psutil


class Status:
    """Counts requests since the gateway started."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self.requests = {"GET": 0, "POST": 0, "DELETE": 0}
        self.errors = 0
        psutil.cpu_percent(percpu=True)  # the first call only sets the mark

    def count(self, method: str, code: int) -> None:
        """Count one answered request."""
        self.requests[method] = self.requests.get(method, 0) + 1
        self.errors += code >= 500

    def report(self) -> dict[str, Any]:
        """Return the figures: loads, bytes, percent, and seconds since the start."""
        load1, load5, load15 = os.getloadavg()
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
            "getRequests": self.requests["GET"],
            "postRequests": self.requests["POST"],
            "deleteRequests": self.requests["DELETE"],
            "errors": self.errors,
        }
