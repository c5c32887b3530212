"""States: size and time of change of many files at once, without opening them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mlaas_ray.core.location import Parts, Protocol, locate
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.xrootd import configure_xrootd

# Questions to XRootD servers at once, and seconds to wait for one: 1,000 files at 50 ms take 0.4 s.
AT_ONCE = 200
PATIENCE = 15
THREADS = 32

# How finely a server tells the time of change (seconds): a file that was changed within it might be changed
# again and look the same.
_FINE = 0.05
_COARSE = 1.1


@dataclass(frozen=True)
class State:
    """What tells one version of a file from another.

    Attributes:
        size: Bytes.
        changed: Time of change or the server's tag of the version.
        settled: Time after which another change would show (seconds since 1970).
    """

    size: int
    changed: str
    settled: float

    def key(self) -> list[Any]:
        """Return what is compared."""
        return [self.size, self.changed]


def states(sources: Sequence[Source]) -> list[State | None]:
    """Ask for the state of each file; None where nobody tells it.

    What cannot be asked at one place is asked at the next, as when it is read.
    """
    found: list[State | None] = [None] * len(sources)
    places = max((1 + len(source.alternatives) for source in sources), default=0)
    for place in range(places):
        asked: dict[Protocol, list[tuple[int, str]]] = {}
        for index, source in enumerate(sources):
            urls = (source.path, *source.alternatives)
            if found[index] is None and place < len(urls):
                location = locate(urls[place])
                asked.setdefault(location.protocol, []).append((index, location.path))
        for protocol, questions in asked.items():
            answers = _ASK[protocol]([path for _, path in questions])
            for (index, _), answer in zip(questions, answers, strict=True):
                found[index] = answer
    return found


def wait_until_settled(found: Sequence[State | None]) -> None:
    """Wait, about a second at most, until no file that is read from now on can change unnoticed."""
    latest = max((state.settled for state in found if state is not None), default=0.0)
    time.sleep(min(_COARSE, max(0.0, latest - time.time())))


def _local(paths: Sequence[str]) -> list[State | None]:
    def one(path: str) -> State | None:
        try:
            seen = os.stat(path)
        except OSError:
            return None
        return State(seen.st_size, str(seen.st_mtime_ns), seen.st_mtime + _FINE)

    return [one(path) for path in paths]


def _xrootd(urls: Sequence[str]) -> list[State | None]:
    """Ask many at once, each one round trip: in threads, since callbacks stand in the way of a fork."""
    configure_xrootd()
    from XRootD.client import FileSystem  # type: ignore[attr-defined]

    split = [locate(url).parts for url in urls]
    systems = {host: FileSystem(host) for host in {parts.host for parts in split}}  # type: ignore[no-untyped-call]

    def one(parts: Parts) -> State | None:
        if "?" in parts.path:  # nor can it be opened
            return None
        path = parts.path[1:] if parts.path.startswith("//") else parts.path
        system: Any = systems[parts.host]
        status, answer = system.stat(path + parts.query, timeout=PATIENCE)
        if not status.ok or answer is None:
            return None
        return State(int(answer.size), str(answer.modtime), answer.modtime + _COARSE)

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="states") as pool:
        return list(pool.map(one, split))


def _fsspec(urls: Sequence[str]) -> list[State | None]:
    import fsspec

    def one(url: str) -> State | None:
        with contextlib.suppress(Exception):  # each file system has errors of its own; opening will tell
            if locate(url).protocol is Protocol.S3:
                system = fsspec.filesystem("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))
                seen = system.info(url, refresh=True)  # not from a listing of earlier times
            else:
                seen = fsspec.filesystem("http").info(url)
            changed = seen.get("ETag") or seen.get("LastModified") or seen.get("Last-Modified")
            if changed is None or seen.get("size") is None:
                return None
            moment = seen.get("LastModified")
            settled = moment.timestamp() + _COARSE if isinstance(moment, datetime) else 0.0
            return State(int(seen["size"]), str(changed), settled)
        return None

    with ThreadPoolExecutor(THREADS, thread_name_prefix="states") as pool:
        return list(pool.map(one, urls))


_ASK: dict[Protocol, Callable[[Sequence[str]], list[State | None]]] = {
    Protocol.LOCAL: _local,
    Protocol.XROOTD: _xrootd,
    Protocol.HTTP: _fsspec,
    Protocol.S3: _fsspec,
}
