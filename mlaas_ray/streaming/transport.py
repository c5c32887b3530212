"""ByteSource: the bytes of one file, near or far, whatever becomes of the servers meanwhile."""

from __future__ import annotations

import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol as Interface
from typing import TypeVar
from urllib.parse import urlsplit

from mlaas_ray.core.errors import FileMissingError, FileUnreadableError
from mlaas_ray.core.location import Protocol, locate
from mlaas_ray.streaming.faults import Fault
from mlaas_ray.streaming.ranges import Range
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.webfile import WebFile
from mlaas_ray.streaming.xrootd import XRootDFile

log = logging.getLogger(__name__)

T = TypeVar("T")

# The first pause before another attempt, which doubles each time (seconds): together longer than XrdCl's
# StreamErrorWindow, during which it does not try to connect again.
PAUSE = 1.0
# A server that has not answered for this long is not asked again: XrdCl has tried to connect several times
# meanwhile, and the next place deserves the time (seconds).
PATIENCE = 8.0
# A server that did not answer is asked after the others for a while (seconds): the next of a thousand files
# need not wait for it all over.
GRUDGE = 60.0
_SILENT: dict[str, float] = {}  # server: when it was found so
# Servers that are known to be right, here or by the first pass: one of them that is away may come back.
_KNOWN: set[str] = set()
# The longest pause before a server that is away is asked again (seconds).
LONGEST_PAUSE = 5.0


@dataclass(frozen=True)
class Absence:
    """A server that does not answer, or has answered again.

    Attributes:
        server: ``host:port``.
        fault: What became of the last attempt.
        seconds: Since the first attempt that failed began.
        patience: Seconds that it is waited for.
        over: Whether it is back.
        tries: How often it was asked meanwhile, where that is known.
    """

    server: str
    fault: str
    seconds: float
    patience: float
    over: bool = False
    tries: int = 1


# Who is told of servers that are waited for, in whichever thread waits: the last who asked.
_LISTENERS: list[Callable[[Absence], None]] = []


def listen(listener: Callable[[Absence], None]) -> None:
    """Let a function be told of servers that this process waits for, instead of who was before."""
    _LISTENERS[:] = [listener]


def trust(urls: Iterable[str]) -> None:
    """Note that files have been read from servers before, so that these are waited for."""
    _KNOWN.update(urlsplit(url).netloc for url in urls)


class ByteSource(Interface):
    """The bytes of one open file; several threads may read.

    Attributes:
        path: Its name, for messages.
        size: Bytes.
        local: Whether reading it costs no waiting for a network.
        requests: Requests made so far.
        bytes_read: Bytes asked for so far.
        retries: Attempts made again so far.
        failovers: Changes of server so far.
    """

    path: str
    size: int
    local: bool
    requests: int
    bytes_read: int
    retries: int
    failovers: int

    def read(self, ranges: Sequence[Range]) -> list[memoryview]:
        """Read ranges of bytes.

        Args:
            ranges: First byte and end (not included) of each, in any order.

        Returns:
            The bytes of each range, in the order given; they stay valid after :meth:`close`.

        Raises:
            FileUnreadableError: When the file ends before a range does, or no server gives it.
            FileMissingError: When it has gone meanwhile.
        """

    def close(self) -> None:
        """Give back what the open file holds; a later read opens it again."""


def open_bytes(source: Source, *, attempts: int = 3) -> ByteSource:
    """Open a file.

    Args:
        source: The file, and where else it lies.
        attempts: Times that a failing server is asked again, with growing pauses, before the next is.

    Raises:
        FileMissingError: When it is not there, wherever it should be.
        FileUnreadableError: When it cannot be reached or read, or its size is not what the catalogue says.
    """
    if source.local is not None:
        try:
            return LocalBytes(source, source.local)
        except (FileMissingError, FileUnreadableError) as error:  # deleted to make room, or its disk failed
            log.warning("%s: its copy %s is of no use: %s", source, source.local, error.message)
            source = replace(source, local=None)
    location = locate(source.path)
    return LocalBytes(source, location.path) if location.is_local else RemoteBytes(source, attempts)


class LocalBytes:
    """A file of this machine, mapped: ranges are views, and nothing is copied."""

    local = True

    def __init__(self, source: Source, path: str) -> None:
        self.path = source.path
        self.requests = self.bytes_read = self.retries = self.failovers = 0
        try:
            with open(path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                _check_size(source, self.size)
                # The map is never closed but dropped: views of it may still be in use.
                self._bytes = memoryview(
                    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
                )
        except OSError as error:
            raise _explain(source, [(path, _local_fault(error))]) from error

    def read(self, ranges: Sequence[Range]) -> list[memoryview]:
        """See :class:`ByteSource`."""
        self.requests += 1
        self.bytes_read += _check_ranges(self.path, self.size, ranges)
        return [self._bytes[start:stop] for start, stop in ranges]

    def close(self) -> None:
        """See :class:`ByteSource`."""


class Handle(Interface):
    """One open file of one server.

    Attributes:
        url: Where it was opened.
        size: Bytes.
        server: Who serves it now.
    """

    @property
    def url(self) -> str: ...  # noqa: D102

    @property
    def size(self) -> int: ...  # noqa: D102

    @property
    def server(self) -> str: ...  # noqa: D102

    def read(self, ranges: Sequence[Range]) -> tuple[list[memoryview], int]:
        """Return the bytes of each range, and how many requests that took.

        Raises:
            Fault: When it does not succeed.
        """

    def close(self) -> None:
        """Close it without waiting."""


class RemoteBytes:
    """A file of one or several servers: opened where it can be, and again when it was lost."""

    local = False

    def __init__(self, source: Source, attempts: int) -> None:
        self.path = source.path
        self.requests = self.bytes_read = self.retries = self.failovers = 0
        self._source = source
        self._attempts = attempts
        self._lock = threading.Lock()
        self._place = _first_place(source.urls)  # of source.urls: where the file is, or is to be, opened
        self._opened: Future[Handle] | None = None
        self._server = ""
        self._away = ""  # the server that is waited for
        self.size = self._persist(lambda handle: handle.size)

    def read(self, ranges: Sequence[Range]) -> list[memoryview]:
        """See :class:`ByteSource`."""
        wanted = _check_ranges(self.path, self.size, ranges)
        data, requests = self._persist(lambda handle: handle.read(ranges))
        with self._lock:
            self.requests += requests
            self.bytes_read += wanted
        return data

    @property
    def server(self) -> str:
        """``host:port`` that it came from last."""
        return self._server

    def close(self) -> None:
        """See :class:`ByteSource`."""
        with self._lock:
            opened, self._opened = self._opened, None
        _close(opened)

    def _persist(self, action: Callable[[Handle], T]) -> T:
        """Do something with the open file, at one place after the other, until it succeeds."""
        urls = self._source.urls
        failed: dict[int, Fault] = {}
        lost = began = time.monotonic()
        tries = 0
        while True:
            place = self._place
            opened = self._open()
            try:
                handle = opened.result()
                result = action(handle)
            except Fault as fault:
                self._drop(opened)
                waited = time.monotonic() - began if fault.kind == "refused" else 0.0
                if fault.may_pass and tries < self._attempts and waited < PATIENCE:
                    self._pause(urls[place], fault, tries)
                    tries += 1
                    continue
                failed[place] = fault
                if fault.kind == "refused":
                    _SILENT[urlsplit(urls[place]).netloc] = time.monotonic()
                if len(failed) == len(urls):
                    self._wait(failed, lost)
                    failed = {at: why for at, why in failed.items() if not why.may_pass}
                self._move(place, failed, fault)
                began, tries = time.monotonic(), 0
            else:
                self._notice(handle)
                if self._away:
                    self._tell(Absence(self._away, "", time.monotonic() - lost, self._source.patience, True))
                    self._away = ""
                return result

    def _open(self) -> Future[Handle]:
        """Return the open file; one thread opens it, and the others share what comes of it."""
        with self._lock:
            if self._opened is not None:
                return self._opened
            mine = self._opened = Future()
            url = self._source.urls[self._place]
        try:
            handle = _open_handle(url)
            if self._source.size not in (None, handle.size):
                handle.close()
                raise Fault("wrong", f"it has {handle.size:,} bytes instead of {self._source.size:,}")
            mine.set_result(handle)
        except BaseException as error:
            mine.set_exception(error)
            if not isinstance(error, Fault):
                self._drop(mine)
                raise
        return mine

    def _drop(self, opened: Future[Handle]) -> None:
        """Forget an open file that failed, unless another thread has already."""
        with self._lock:
            if self._opened is not opened:
                return
            self._opened = None
        _close(opened)

    def _pause(self, url: str, fault: Fault, tries: int) -> None:
        seconds = PAUSE * 2**tries
        log.warning("%s: %s; attempt %d of %d in %g s", url, fault, tries + 2, self._attempts + 1, seconds)
        with self._lock:
            self.retries += 1
        time.sleep(seconds)

    def _wait(self, failed: dict[int, Fault], lost: float) -> None:
        """Wait before all places are asked again, if one of them answered before and may come back.

        Raises:
            FileMissingError: When no place has the file.
            FileUnreadableError: When there is none to wait for, or it has been waited for long enough.
        """
        seconds, patience = time.monotonic() - lost, 0.0
        told = [(self._source.urls[at], why) for at, why in failed.items()]
        servers = ((urlsplit(url).netloc, why) for url, why in told if why.may_pass)
        away = next((one for one in servers if one[0] in _KNOWN), None)
        if away is not None and self._source.patience:
            patience = self._source.patience
            self._away = away[0]
            self._tell(Absence(away[0], str(away[1]), seconds, patience))
        left = patience - seconds
        if left <= 0:
            raise _explain(self._source, told, waited=seconds if patience else 0.0)
        with self._lock:
            self.retries += 1
        time.sleep(min(left, LONGEST_PAUSE, PAUSE + seconds))

    def _tell(self, absence: Absence) -> None:
        log.warning("%s: %s", self.path, absence)
        for listener in _LISTENERS:
            listener(absence)

    def _move(self, place: int, failed: dict[int, Fault], fault: Fault) -> None:
        """Go on at the next place that has not failed, unless another thread has gone to one already."""
        urls = self._source.urls
        with self._lock:
            if self._place != place and self._place not in failed:
                return
            around = (at % len(urls) for at in range(place + 1, place + len(urls) + 1))
            self._place = next(at for at in around if at not in failed)
            if self._place == place:
                return
            self.failovers += 1
            self._server = ""
            log.warning("%s: %s; next is %s", urls[place], fault, urls[self._place])

    def _notice(self, handle: Handle) -> None:
        """Count it when the file now comes from another server behind the same redirector."""
        server = handle.server
        _KNOWN.add(urlsplit(handle.url).netloc)
        with self._lock:
            if self._server and server != self._server:
                self.failovers += 1
                log.warning("%s: from %s now, no longer %s", self.path, server, self._server)
            self._server = server


def _open_handle(url: str) -> Handle:
    return XRootDFile(url) if locate(url).protocol is Protocol.XROOTD else WebFile(url)


def _first_place(urls: Sequence[str]) -> int:
    """Return the index of the first place whose server has not just been found silent."""
    since = time.monotonic() - GRUDGE
    hosts = [urlsplit(url).netloc for url in urls]
    return next((at for at, host in enumerate(hosts) if _SILENT.get(host, since) <= since), 0)


def _close(opened: Future[Handle] | None) -> None:
    if opened is not None and opened.done() and opened.exception() is None:
        opened.result().close()


def _local_fault(error: OSError) -> Fault:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Fault("missing")
    if isinstance(error, PermissionError):
        return Fault("denied")
    return Fault("wrong", "it is a folder" if isinstance(error, IsADirectoryError) else str(error))


def _check_size(source: Source, size: int) -> None:
    if source.size not in (None, size):
        raise Fault("wrong", f"it has {size:,} bytes instead of {source.size:,}")


def _check_ranges(path: str, size: int, ranges: Sequence[Range]) -> int:
    """Refuse ranges outside the file, and return how many bytes they are."""
    for start, stop in ranges:
        if not 0 <= start <= stop <= size:
            raise FileUnreadableError(
                f"cannot read {path}: it has {size:,} bytes, and bytes {start:,} to {stop:,} were asked for",
                "It may be cut short or damaged: copy it again, or leave it out",
            )
    return sum(stop - start for start, stop in ranges)


def _explain(
    source: Source, failed: Sequence[tuple[str, Fault]], waited: float = 0.0
) -> FileMissingError | FileUnreadableError:
    """Make the error for the user of what every place said, at last after waiting for so many seconds."""
    faults = [fault for _, fault in failed]
    where = source.path
    if len(failed) > 1:
        where += "; tried " + "; ".join(f"{url}: {fault}" for url, fault in failed)
    if all(fault.kind == "missing" for fault in faults):
        return FileMissingError(f"no such file: {where}", "Check the path or URL")
    if len(failed) == 1:
        where += f": {faults[0]}"
    if waited:
        where += f", for {waited:.0f} s"
    kinds = {fault.kind for fault in faults} - {"missing"}
    if kinds == {"denied"}:
        remedy = "Check that your credentials are valid"
    elif kinds == {"wrong"}:
        remedy = "Copy it again, or leave it out"
    else:
        remedy = "Check that the server answers and that your credentials are valid"
    return FileUnreadableError(f"cannot read {where}", remedy)
