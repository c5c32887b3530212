"""XRootD: its settings, which every process needs, what its errors mean, and one open file of a server."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlaas_ray.core.location import locate
from mlaas_ray.streaming.faults import Fault, Kind
from mlaas_ray.streaming.ranges import Range, gather, plan

# XrdCl's defaults take 8 to 12 minutes to report a server that is gone. With these a refused connection is
# reported in 10 s, a server that never answers in 18 s, and one that stops in the middle in 33 s (seconds;
# measured against Debian's server 5.5.3).
SETTINGS = {
    "XRD_CONNECTIONWINDOW": "5",
    "XRD_CONNECTIONRETRY": "3",
    "XRD_REQUESTTIMEOUT": "60",
    "XRD_STREAMTIMEOUT": "15",
    "XRD_TIMEOUTRESOLUTION": "1",
    "XRD_STREAMERRORWINDOW": "5",
}
# The same by the names XrdCl's own environment uses.
_KEYS = {
    "XRD_CONNECTIONWINDOW": "ConnectionWindow",
    "XRD_CONNECTIONRETRY": "ConnectionRetry",
    "XRD_REQUESTTIMEOUT": "RequestTimeout",
    "XRD_STREAMTIMEOUT": "StreamTimeout",
    "XRD_TIMEOUTRESOLUTION": "TimeoutResolution",
    "XRD_STREAMERRORWINDOW": "StreamErrorWindow",
}

# What servers allow in one vectored read unless told otherwise: ranges, and bytes of each (XProtocol,
# kXR_readv; readv_iov_max and readv_ior_max of the server's configuration).
RANGES = 1024
RANGE_BYTES = 2_097_136
# Bytes of one request: several of them are under way at once, and each must arrive within REQUESTTIMEOUT.
REQUEST_BYTES = 8 << 20
IN_FLIGHT = 8
CLOSE_SECONDS = 10

# Server's error codes (XProtocol, XErrorCode), and XrdCl's own (XrdClStatus.hh).
_CODES: dict[int, Kind] = {3010: "denied", 3030: "denied", 3011: "missing", 3015: "wrong", 3016: "wrong"}
_MEANING = {3005: "the file ends too early", 3015: "it is no file", 3016: "it is a folder"}
_STATUS: dict[int, Kind] = {
    101: "refused",  # no such host
    103: "refused",
    108: "refused",
    204: "denied",
    206: "refused",  # expired
    304: "missing",
}


def configure_xrootd() -> None:
    """Give XRootD its time-outs, where the user has not: before it loads, or at the latest now."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # When Python ends, XRootD looks at every object there is, also at one that PyTorch has deprecated.
    warnings.filterwarnings("ignore", "`torch.distributed.reduce_op` is deprecated", FutureWarning)
    if "pyxrootd" in sys.modules:
        # Somebody imported it first. XrdCl looks these up at each new connection, and refuses to change what
        # came from the environment when it was loaded, which is what the user wanted.
        from XRootD.client import env

        put: Any = env.EnvPutInt
        for name, key in _KEYS.items():
            put(key, int(os.environ[name]))


def load_xrootd() -> Any:
    """Import XRootD, with its settings made; returns its client module."""
    configure_xrootd()
    from XRootD import client

    return client


def code(error: BaseException) -> str | None:
    """Return the server's error code (``3011``) that an exception reports, if any."""
    match = re.search(r"\[(30\d\d)\]", str(error))
    return match[1] if match else None


def why(error: BaseException) -> str:
    """Say on one line what an I/O error means."""
    number = code(error)
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if number is None or isinstance(error, Fault):
        return text
    return str(fault(400, int(number), text))


def fault(status: int, number: int, text: str) -> Fault:
    """Say what an error of XRootD means.

    Args:
        status: XrdCl's status code.
        number: The server's error code, when it was the server who said so (status 400).
        text: XrdCl's message.
    """
    if status == 400:
        return Fault(_CODES.get(number, "failing"), text, _MEANING.get(number, ""))
    return Fault(_STATUS.get(status, "failing"), text)


class XRootDFile:
    """One open file of one server; several threads may read.

    Behind a redirector, XrdCl goes to another server by itself when one is lost in the middle of a read, for
    files opened with the READ flag only.

    Args:
        url: ``root://host//path``.

    Attributes:
        url: As given.
        size: Bytes.

    Raises:
        Fault: When it cannot be opened.
    """

    def __init__(self, url: str) -> None:
        client = load_xrootd()
        if "?" in locate(url).parts.path:
            # XrdCl would open what stands before it, which may be another file
            raise Fault("wrong", "XRootD takes what follows a '?' for options: rename the file")
        self.url = url
        self._file = client.File()
        _start_closing(os.getpid())
        _check(self._file.open(url, client.flags.OpenFlags.READ)[0])
        status, stat = self._file.stat()  # the answer came with the file
        _check(status)
        self.size = int(stat.size)

    @property
    def server(self) -> str:
        """``host:port`` of the data server that serves it now."""
        return str(self._file.get_property("DataServer"))

    def read(self, ranges: Sequence[Range]) -> tuple[list[memoryview], int]:
        """Read ranges of bytes.

        Args:
            ranges: First byte and end of each, within the file.

        Returns:
            The bytes of each range, and the number of requests it took.

        Raises:
            Fault: When one of the requests failed.
        """
        parts = plan(ranges, largest=RANGE_BYTES, lone=REQUEST_BYTES)
        requests = list(_requests(parts))
        if len(requests) > 1:
            answers = list(_threads(os.getpid()).map(self._ask, requests))
        else:
            answers = [self._ask(request) for request in requests]
        got = {
            part: memoryview(data)
            for request, answer in zip(requests, answers, strict=True)
            for part, data in zip(request, answer, strict=True)
        }
        return gather(ranges, got), len(requests)

    def close(self) -> None:
        """Close it, without waiting: the server may be gone."""
        _CLOSING.put(self._file)

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # else XrdCl's destructor would wait for an answer
            self.close()

    def _ask(self, parts: Sequence[Range]) -> list[bytes]:
        """Read parts in one request, and wait for the answer.

        XrdCl could call back instead, but then its threads want Python's lock, which a thread holds that
        forks (to start a program, say) while XrdCl stops its threads: that stood still (decision 17).
        """
        try:
            if len(parts) == 1:
                [(start, stop)] = parts
                status, data = self._file.read(start, stop - start)
                _check(status)
                answer = [data or b""]
            else:
                status, read = self._file.vector_read([(start, stop - start) for start, stop in parts])
                _check(status)
                answer = [part.buffer for part in read.chunks]
        except ValueError as closed:  # by another thread, for which it had failed
            raise Fault("failing", str(closed)) from closed
        for (start, stop), data in zip(parts, answer, strict=True):
            if len(data) != stop - start:
                raise Fault("failing", f"{len(data)} bytes instead of {stop - start}")
        return answer


# Files to close. Unlike an executor, this queue may be used by a destructor at any moment.
_CLOSING: queue.SimpleQueue[Any] = queue.SimpleQueue()


def _close_all() -> None:
    while True:
        with contextlib.suppress(ValueError):  # closed already
            _CLOSING.get().close(timeout=CLOSE_SECONDS)


@functools.cache
def _threads(_process: int) -> ThreadPoolExecutor:
    """Return the threads of this process that wait for answers; a forked process has none of its parent's."""
    return ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="xrootd")


@functools.cache
def _start_closing(_process: int) -> None:
    threading.Thread(target=_close_all, name="xrootd-close", daemon=True).start()


def _requests(parts: Sequence[Range]) -> Iterator[list[Range]]:
    """Share parts out to requests: a large one has its own, a plain read; others go together, vectored."""
    request: list[Range] = []
    size = 0
    for start, stop in parts:
        if stop - start > RANGE_BYTES:
            yield [(start, stop)]
            continue
        if request and (len(request) == RANGES or size + stop - start > REQUEST_BYTES):
            yield request
            request, size = [], 0
        request.append((start, stop))
        size += stop - start
    if request:
        yield request


def _check(status: Any) -> None:
    if not status.ok:
        raise fault(status.code, status.errno, status.message)
