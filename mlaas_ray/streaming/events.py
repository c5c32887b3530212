"""Events: one tree of one open file, whatever its format; the one way everything here is read."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mlaas_ray.core.columns import Columns, Kind
from mlaas_ray.core.location import locate
from mlaas_ray.streaming.damage import naming
from mlaas_ray.streaming.formats import format_of
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.transport import ByteSource

# What becomes of vector<vector<number>>: left out, or its values of an event in one list.
Nested = Literal["leave", "flatten"]


@dataclass(frozen=True)
class Branch:
    """One branch that can be columns.

    Attributes:
        name: Its name, unique in the tree; ``<branch>.<leaf>`` style names are the file's own.
        kind: ``flat``, ``fixed`` or ``jagged``.
        type: C++ type, for people.
        length: Values of an event when ``fixed``, else 1.
        bytes: Uncompressed bytes of all entries; 0 where the format does not say.
        counter: The branch or field that holds the number of values of each event, where there is one.
        dtype: Type of a value, as numpy calls it.
    """

    name: str
    kind: Kind
    type: str
    length: int = 1
    bytes: int = 0
    counter: str | None = None
    dtype: str = "float32"


class Events(Protocol):
    """One tree of one open file. Objects are kept per process and used from several threads.

    Attributes:
        path: Path or URL, for messages.
        tree: Name of the tree; empty for formats without.
        format: ``TTree``, ``RNTuple``, ``Parquet``, ``CSV`` or ``JSON lines``.
        uuid: The file's own identifier, the same wherever a copy lies.
        entries: Events.
        size: Bytes of the file.
        data: Where its bytes come from, which counts what that took.
        beside: The file's other trees, where nobody said which is wanted.
    """

    path: str
    tree: str
    format: str
    uuid: str
    entries: int
    size: int
    data: ByteSource
    beside: tuple[str, ...]

    @property
    def branches(self) -> Mapping[str, Branch]:
        """What can be columns, by name; made when first asked for."""

    @property
    def left_out(self) -> Mapping[str, str]:
        """What cannot, with its C++ type; made when first asked for."""

    def boundaries(self, names: Sequence[str]) -> tuple[int, ...]:
        """First entry of each cluster that these branches share, and last ``entries``: ``(0, 10, 18)``."""

    def fetch(self, names: Sequence[str], start: int, stop: int) -> Any:
        """Get the bytes of some branches of the entries ``start`` to ``stop`` (not included).

        Waits for I/O and does as little else as the format allows; may be called by several threads.

        Raises:
            DataError: Naming file, tree and branch.
        """

    def decode(self, fetched: Any) -> Columns:
        """Make columns of what :meth:`fetch` got.

        Raises:
            DataError: Naming file, tree and branch.
        """


def open_events(source: Source | str, tree: str | None = None, *, nested: Nested = "leave") -> Events:
    """Open one tree of a file, or return the one this process opened before.

    Args:
        source: The file; a path or URL for one without alternatives.
        tree: Its name, with its folders; None for the one named with the file, or its only tree, or that of
            the events among several.
        nested: What becomes of lists of lists of numbers.

    Raises:
        FileMissingError: When the file is not there.
        FileUnreadableError: When it cannot be read.
        TreeMissingError: When it holds no such tree; names those it holds.
    """
    source = source if isinstance(source, Source) else Source(source)
    tree = tree or source.tree
    location = locate(source.path)
    state = None
    if location.is_local:
        with naming(source.path):
            found = os.stat(location.path)
        state = (found.st_mtime_ns, found.st_size)
    return _OPENED.get((source, tree, nested, state), lambda: _open(source, tree, nested))


def _open(source: Source, tree: str | None, nested: Nested) -> Events:
    # Each format imports this module's Branch, and most processes need one format only.
    if format_of(source.path) not in (None, "ROOT"):
        from mlaas_ray.streaming.tables import open_table

        return open_table(source, nested=nested)
    from mlaas_ray.streaming.rootfile import open_tree

    return open_tree(source, tree, nested)


class _Opened:
    """The events opened last. Threads that want the same file wait for one of them to open it.

    Args:
        limit: How many to keep: a TTree of 1,500 branches holds some 20 MB.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._futures: OrderedDict[object, Future[Events]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object, make: Callable[[], Events]) -> Events:
        """Return what was opened by this key, or open it; who fails leaves nothing behind."""
        with self._lock:
            future = self._futures.get(key)
            is_mine = future is None
            if future is None:
                future = self._futures[key] = Future()
            self._futures.move_to_end(key)
            while len(self._futures) > self._limit:
                self._futures.popitem(last=False)
        if is_mine:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    self._futures.pop(key, None)
                future.set_exception(error)
        return future.result()


_OPENED = _Opened(12)
