"""Intended starts of an open loop's requests, and an alarm that rings on time for them."""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import random
import struct
from collections.abc import Callable


class Schedule:
    """When each request is due, whatever became of those before it.

    Only the next one is kept: requests start in the order in which they are due.

    Attributes:
        due: When the next request is due, on the clock of ``start``; infinity after the last.
    """

    __slots__ = ("_draw", "_end", "_next", "_number", "_rate", "_start", "due")

    def __init__(self, rate: float, start: float, end: float, *, poisson: bool = False) -> None:
        self._rate, self._start, self._end = rate, start, end
        self._number = 0
        # the same arrivals each time
        self._draw = random.Random(1).expovariate if poisson else None
        self.due = start

    def take(self) -> float:
        """Return when the next request is due, and go on to the one after."""
        due = self.due
        if self._draw is not None:
            following = due + self._draw(self._rate)
        else:
            self._number += 1
            following = self._start + self._number / self._rate
        self.due = following if following < self._end else math.inf
        return due


class Alarm:
    """Calls a function at a time, to some ten microseconds.

    The event loops' own timers count whole milliseconds, by which each request of an open loop would be late.
    Linux's timerfd does not; Python has it from 3.13 on, so it is asked for by its C name.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC)  # CLOCK_MONOTONIC
        if self._file < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._loop = loop
        self._ring = ring
        loop.add_reader(self._file, self._rung)

    def set(self, delay: float) -> None:
        """Ring once after this many seconds, in place of what was set before."""
        nanoseconds = max(1, int(delay * 1e9))
        # struct itimerspec: no interval, and the time until it rings
        time = struct.pack("4l", 0, 0, *divmod(nanoseconds, 1_000_000_000))
        self._libc.timerfd_settime(self._file, 0, time, None)

    def close(self) -> None:
        """Ring no more."""
        self._loop.remove_reader(self._file)
        os.close(self._file)

    def _rung(self) -> None:
        try:
            os.read(self._file, 8)
        except BlockingIOError:  # set anew in between
            return
        self._ring()
