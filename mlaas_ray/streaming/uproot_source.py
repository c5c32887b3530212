"""What uproot reads from: a ByteSource in the shape of uproot's Source, with few round trips for metadata."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Sequence
from typing import Any

import uproot
from uproot.source.chunk import Chunk
from uproot.source.futures import TrivialFuture

from mlaas_ray.streaming.ranges import Range
from mlaas_ray.streaming.transport import ByteSource

# What is fetched of a remote file before anything is asked for: its header and first directory lie at the
# beginning; the trees, the list of keys and the streamers are written last.
HEAD = 16 << 10
TAIL = 256 << 10
# A small read of metadata brings what follows too, for that is mostly asked for next.
STEP = 64 << 10


def identifier(file: Any, source: ByteSource) -> str:
    """Return a ROOT file's UUID; of one without, what stands for its content.

    ROOT gives all files that are to be reproducible (``a.root?reproducible``) the UUID 0.

    Args:
        file: uproot's file.
        source: Its bytes.
    """
    if file.uuid.int:
        return str(file.uuid)
    size = source.size
    ends = source.read([(0, min(STEP, size)), (max(0, size - STEP), size)])
    return hashlib.sha256(b"%d" % size + ends[0] + ends[1]).hexdigest()[:32]


def uproot_source(source: ByteSource) -> type[uproot.source.chunk.Source]:
    """Return what to give uproot as its ``handler``, as in ``uproot.open({path: None}, handler=...)``.

    Args:
        source: The open file. It is not closed when uproot's file is.
    """

    class Opened(UprootSource):
        def __init__(self, file_path: str, **_options: Any) -> None:
            super().__init__(source)

    return Opened


class UprootSource(uproot.source.chunk.Source):  # type: ignore[misc]  # published without types
    """An open file for uproot; it starts no threads."""

    def __init__(self, source: ByteSource) -> None:
        super().__init__()
        self._source = source
        self._file_path = source.path
        self._num_bytes = source.size
        self._kept = _Kept(source) if not source.local else None
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._file_path!r}>"

    def __enter__(self) -> UprootSource:
        return self

    def __exit__(self, *_error: object) -> None:
        self._closed = True

    @property
    def closed(self) -> bool:
        """Whether uproot's file was closed."""
        return self._closed

    def chunk(self, start: int, stop: int) -> Chunk:
        """Read one range; near the file's end it may be shorter, for uproot asks beyond it."""
        return self._read([(int(start), int(stop))], self._kept)[0]

    def chunks(self, ranges: Sequence[Range], notifications: queue.Queue[Chunk]) -> list[Chunk]:
        """Read several ranges at once, and announce each."""
        chunks = self._read([(int(start), int(stop)) for start, stop in ranges], None)
        for chunk in chunks:
            notifications.put(chunk)
        return chunks

    def _read(self, ranges: Sequence[Range], kept: _Kept | None) -> list[Chunk]:
        if self._closed:
            raise OSError(f"file {self._file_path!r} is closed")
        spans = [(min(start, self._num_bytes), min(stop, self._num_bytes)) for start, stop in ranges]
        data = [kept.read(*span) for span in spans] if kept else self._source.read(spans)
        self._num_requests += 1
        self._num_requested_chunks += len(ranges)
        self._num_requested_bytes += sum(stop - start for start, stop in ranges)
        return [
            Chunk(self, start, stop, TrivialFuture(part))
            for (start, stop), part in zip(ranges, data, strict=True)
        ]


class _Kept:
    """Parts of a remote file that stay in memory, since its metadata are read in many small steps."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._parts: list[tuple[int, int, memoryview]] = []

    def read(self, start: int, stop: int) -> memoryview:
        """Return bytes, from what is kept where that has them."""
        with self._lock:
            if not self._parts:
                self._keep_ends()
            for first, last, data in self._parts:
                if first <= start and stop <= last:
                    return data[start - first : stop - first]
            end = min(max(stop, start + STEP), self._source.size)
            [data] = self._source.read([(start, end)])
            if stop - start < STEP:
                self._parts.append((start, end, data))
            return data[: stop - start]

    def _keep_ends(self) -> None:
        size = self._source.size
        ends = [(0, min(HEAD, size)), (max(size - TAIL, min(HEAD, size)), size)]
        if size <= HEAD + TAIL:
            ends = [(0, size)]
        self._parts = [
            (start, stop, data) for (start, stop), data in zip(ends, self._source.read(ends), strict=True)
        ]
