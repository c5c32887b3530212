"""How fast events arrive from afar: over a link of a given delay, against uproot's own loop on the same link.

A NanoAOD-like file of some 290 MB is served by XRootD behind a proxy that delays every byte; it models no
loss and no limit of bandwidth. Each way of reading runs in a process of its own, which has read the file
locally before, so that imports and compilation do not count; opening it does.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import awkward as ak
import numpy as np
import uproot
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

EVENTS, BASKET = 240_000, 10_000
FLAT, COLLECTIONS, FIELDS = 14, 8, 9  # with the counters 94 branches
READ = [f"flat{i}" for i in range(4)] + [f"Object{i}_b{j}" for i in range(3) for j in range(4)]


def write_file(path: Path) -> None:
    """Write a tree of flat branches and of collections, in baskets of 10,000 events, ZSTD."""
    random = np.random.default_rng(0)
    with uproot.recreate(path, compression=uproot.ZSTD(1)) as file:
        tree = None
        for _ in range(EVENTS // BASKET):
            arrays: dict[str, object] = {
                f"flat{i}": random.normal(size=BASKET).astype(np.float32) for i in range(FLAT)
            }
            for collection in range(COLLECTIONS):
                counts = random.poisson(3.5, BASKET)
                fields = {
                    f"b{i}": ak.unflatten(random.normal(size=counts.sum()).astype(np.float32), counts)
                    for i in range(FIELDS)
                }
                arrays[f"Object{collection}"] = ak.zip(fields)
            if tree is None:
                tree = file.mktree(
                    "Events", {name: ak.type(array[:1]).content for name, array in arrays.items()}
                )
            tree.extend(arrays)


class Delay(asyncio.Protocol):
    """One direction of a connection: what arrives is sent on a fixed time later."""

    def __init__(self, seconds: float, ready: Callable[[Delay], None] | None = None) -> None:
        self.seconds, self.ready = seconds, ready
        self.to: asyncio.Transport | None = None
        self.own: asyncio.Transport | None = None
        self.due: deque[bytes | None] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note where this end sends."""
        self.own = transport  # type: ignore[assignment]
        if self.ready:
            self.ready(self)

    def data_received(self, data: bytes) -> None:
        """Send it on, later."""
        self._later(data)

    def connection_lost(self, error: Exception | None) -> None:
        """Close the other end, later."""
        self._later(None)

    def _later(self, data: bytes | None) -> None:
        self.due.append(data)
        asyncio.get_running_loop().call_later(self.seconds, self._send)

    def _send(self) -> None:
        data = self.due.popleft()  # not what was scheduled: timers of the same moment may swap
        if self.to is None:
            self.due.appendleft(data)
            asyncio.get_running_loop().call_later(0.001, self._send)
        elif data is None:
            self.to.close()
        else:
            self.to.write(data)


async def _proxy(target: int, seconds: float, answer: Connection) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def connect(client: Delay) -> None:
        server = Delay(seconds)
        await loop.create_connection(lambda: server, "127.0.0.1", target)
        client.to, server.to = server.own, client.own

    def accepted(client: Delay) -> None:
        tasks.add(task := loop.create_task(connect(client)))
        task.add_done_callback(tasks.discard)

    listening = await loop.create_server(lambda: Delay(seconds, accepted), "127.0.0.1", 0)
    answer.send(listening.sockets[0].getsockname()[1])
    await listening.serve_forever()


def _serve_proxy(target: int, seconds: float, answer: Connection) -> None:
    asyncio.run(_proxy(target, seconds, answer))


@contextmanager
def delayed(url: str, milliseconds: float) -> Iterator[str]:
    """Put a link of this round trip in front of a server; gives the URL to use instead."""
    parts = urlsplit(url)
    mine, its = multiprocessing.Pipe()
    arguments = (parts.port, milliseconds / 2000, its)
    process = multiprocessing.get_context("spawn").Process(target=_serve_proxy, args=arguments, daemon=True)
    process.start()
    try:
        yield parts._replace(netloc=f"127.0.0.1:{mine.recv()}").geturl()
    finally:
        process.terminate()
        process.join()


def iterate(where: str, handler: type | None) -> int:
    """Read with uproot's loop, 10,000 entries at a time."""
    steps = uproot.iterate({where: "Events"}, READ, step_size=BASKET, handler=handler, how=dict)
    return sum(len(arrays[READ[0]]) for arrays in steps)


def ours(where: str) -> int:
    """Read the same pieces, fetched ahead."""
    from mlaas_ray.streaming.ahead import ahead
    from mlaas_ray.streaming.events import open_events

    events = open_events(where, "Events")
    edges = events.boundaries(READ)
    pieces = list(itertools.pairwise(edges))
    size = events.size * len(READ) // len(events.branches)
    read = 0
    for _, fetched in ahead(
        pieces,
        lambda piece: events.fetch(READ, *piece),
        size=lambda piece: size * (piece[1] - piece[0]) // events.entries,
    ):
        read += len(events.decode(fetched)[READ[0]])
    return read


WAYS: dict[str, Callable[[str], int]] = {
    "iterate": lambda where: iterate(where, None if where.startswith("root:") else uproot.MemmapSource),
    "iterate_xrootd": lambda where: iterate(
        where, uproot.XRootDSource if where.startswith("root:") else uproot.MemmapSource
    ),
    "ours": ours,
}
TITLES = {
    "iterate": "uproot.iterate, as it comes (fsspec)",
    "iterate_xrootd": "uproot.iterate, XRootDSource",
    "ours": "open_events, read ahead",
}


def time_once(way: str, local: Path, url: str) -> float:
    """Return the seconds that one way takes, in a process of its own."""
    command = [sys.executable, __file__, "--way", way, str(local), url]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def run_way(way: str, local: str, url: str) -> None:
    """Read locally, then from afar, and print the seconds of the latter."""
    from mlaas_ray.streaming.xrootd import load_xrootd

    load_xrootd()
    WAYS[way](local)
    begun = time.perf_counter()
    read = WAYS[way](url)
    seconds = time.perf_counter() - begun
    if read != EVENTS:
        raise SystemExit(f"{way} read {read} events of {EVENTS}")
    print(seconds)


def measure(milliseconds: float, rounds: int) -> dict[str, float]:
    """Return the median events/s of each way; the ways take turns."""
    from tests.xrootd_server import running_xrootd

    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "a.root"
        write_file(local)
        with running_xrootd(Path(folder)) as (server, _), delayed(f"{server}/a.root", milliseconds) as url:
            for _ in range(rounds):
                for way in WAYS:
                    seconds[way].append(time_once(way, local, url))
    return {way: EVENTS / statistics.median(times) for way, times in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--delay", type=float, default=50, help="milliseconds of a round trip")
    parser.add_argument("--rounds", type=int, default=3, help="times each way is measured")
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    parser.add_argument("--way", nargs=3, metavar=("WAY", "FILE", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        run_way(*options.way)
        return
    if shutil.which("xrootd") is None:
        print("skipped: no xrootd on this machine (Debian: apt install xrootd-server)", file=sys.stderr)
        return
    rates = measure(options.delay, options.rounds)
    best = max(rate for way, rate in rates.items() if way != "ours")
    ratio = rates["ours"] / best
    if options.json:
        print(json.dumps({"delay_ms": options.delay, "events_per_s": rates, "ours_over_iterate": ratio}))
        return
    table = Table("", "events/s", title=f"{EVENTS:,} events, {len(READ)} branches, {options.delay:g} ms")
    for way, rate in rates.items():
        table.add_row(TITLES[way], f"{rate:,.0f}")
    Console().print(table)
    Console().print(f"ours over the better of the others: {ratio:.2f}")


if __name__ == "__main__":
    main()
