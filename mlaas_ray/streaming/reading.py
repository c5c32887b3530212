"""Reading: blocks of a plan to tables of events, fetched ahead; what cannot be read is skipped or fails.

Both modes end here: in block mode a task reads one block, in plan mode a consumer reads one after another.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlaas_ray.core.columns import Column, Columns
from mlaas_ray.core.errors import DataError, FeatureError, FileUnreadableError
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.grid import GridSpec
from mlaas_ray.core.location import locate
from mlaas_ray.core.prepare import needed_branches, prepare
from mlaas_ray.streaming.ahead import ahead
from mlaas_ray.streaming.buffers import POOL
from mlaas_ray.streaming.checksum import verify
from mlaas_ray.streaming.events import Branch, open_events
from mlaas_ray.streaming.file_cache import cached
from mlaas_ray.streaming.missing import filled
from mlaas_ray.streaming.plan import Piece, row_order
from mlaas_ray.streaming.raster import out_of_bounds, rasterise
from mlaas_ray.streaming.record import PieceRecord, Record
from mlaas_ray.streaming.scatter import Bounds, scatter
from mlaas_ray.streaming.settings import ReadingSettings
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.split import WHOLE, Part, entry_numbers, identifier_numbers, within
from mlaas_ray.streaming.transport import ByteSource

Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]
# bytes, retries, failovers
Traffic = tuple[int, int, int]


@dataclass(frozen=True)
class ReadFile:
    """One file, as readers know it.

    Attributes:
        source: Where it lies.
        tree: Name of the tree.
        uuid: Its own identifier, as the first pass saw it.
        dataset: Index of its dataset.
        label: Class of its events.
        row_bytes: Uncompressed bytes of the branches to read, of one entry.
        missing: Branches to read that it lacks: they are filled.
    """

    source: Source
    tree: str
    uuid: str
    dataset: int
    label: float
    row_bytes: float = 0.0
    missing: tuple[Branch, ...] = ()


@dataclass(frozen=True)
class Block:
    """One block to read.

    Attributes:
        reading: What it is read for, such as ``train``.
        epoch: Number of the pass, from 0.
        index: Number of the block in the epoch.
        pieces: Its entries.
        part: Which of them belong to it, an interval of [0, 1); see :mod:`.split`.
        shuffle: Whether its events are put into an order drawn from seed, epoch and index.
    """

    reading: str
    epoch: int
    index: int
    pieces: tuple[Piece, ...]
    part: Part = WHOLE
    shuffle: bool = False


@dataclass(frozen=True)
class Reader:
    """Reads blocks; pickles, so that it can be sent to whoever reads.

    Attributes:
        files: All files of the plan.
        features: The columns of ``x``; statistics are not needed.
        settings: How to read.
        key: Branches that identify an event, for the split; empty for file and entry.
        seed: Of the split and of the order.
        bounds: Least and greatest value that the first pass saw, ``(features,)`` by feature; None when it
            did not see all.
        record: Where to write down what was read; None for nowhere.
    """

    files: tuple[ReadFile, ...]
    features: FeatureSpec
    settings: ReadingSettings = field(default_factory=ReadingSettings)
    key: tuple[str, ...] = ()
    seed: int = 0
    bounds: Bounds | None = None
    record: Record | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The branches read, of the file."""
        return tuple(sorted(needed_branches(self.features) | set(self.key)))

    def tables(self, blocks: Iterable[Block]) -> Iterator[pa.Table]:
        """Read blocks one after another, the bytes of the next ones fetched meanwhile.

        Raises:
            DataError: Naming the file, tree and branch that cannot be read, where that is not skipped.
        """
        for block, parts in self.parts(blocks):
            yield self._table(block, parts)

    def parts(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, list[ReadPiece]]]:
        """Read the pieces of blocks, without making rows of them; see :meth:`tables`."""
        waiting: list[Block] = []
        parts: list[ReadPiece] = []
        jobs = self._jobs(blocks, waiting)
        for job, fetched in ahead(
            jobs,
            lambda job: job.fetch(),
            size=lambda job: job.size,
            in_flight=self.settings.in_flight,
            max_bytes=self.settings.ahead_bytes,
            is_local=lambda job: job.is_local,
        ):
            if job.piece is not None:
                parts.append(job.decoded(fetched))
            if job.last:
                self._refuse(parts)
                yield waiting.pop(0), parts
                parts = []

    def _jobs(self, blocks: Iterable[Block], waiting: list[Block]) -> Iterator[_Job]:
        """Give the pieces of all blocks in their order; each block is noted as it begins."""
        for block in blocks:
            waiting.append(block)
            lost = self.record.lost() if self.record is not None and self._skips else {}
            pieces: tuple[Piece | None, ...] = block.pieces or (None,)
            for number, piece in enumerate(pieces, start=1):
                known = lost.get(piece.file, "") if piece else ""
                yield _Job(self, block, piece, number == len(pieces), known)

    @property
    def _skips(self) -> bool:
        return self.settings.bad_files.policy == "skip"

    def _table(self, block: Block, parts: Sequence[ReadPiece]) -> pa.Table:
        """Put the events of a block's parts into one table, and write down what became of them."""
        begun = time.perf_counter()
        parts = list(parts)
        while True:
            events = [part.kept for part in parts]
            order = row_order(self.seed, block.epoch, block.index, sum(events)) if block.shuffle else None
            rows = POOL.take((sum(events), self.features.width), np.float32)
            placed = list(_places(parts, order))
            strange = [
                part.scattered(rows, places, self.features, self.bounds)
                for part, places in zip(parts, placed, strict=True)
            ]
            if not any(strange):
                break
            # what was written of it lies between the others' rows: once more without it
            parts = [
                part.refused(reason) if reason else part for part, reason in zip(parts, strange, strict=True)
            ]
            self._refuse(parts)
        table = self._tabulated(parts, placed, rows)
        if self.record is not None:
            share = (time.perf_counter() - begun) / max(1, len(parts))
            notes = [replace(part.note, seconds=part.note.seconds + share) for part in parts]
            self.record.note(block.reading, block.epoch, block.index, notes)
        return table

    def _refuse(self, parts: Sequence[ReadPiece]) -> None:
        """Raise the first error, unless bad files are skipped."""
        for part in parts:
            if part.error is not None and not self._skips:
                raise part.error

    def _tabulated(
        self, parts: Sequence[ReadPiece], placed: Sequence[Places], rows: npt.NDArray[np.float32]
    ) -> pa.Table:
        events = len(rows)
        entry = np.empty(events, np.int64)
        file, dataset = np.empty(events, np.int32), np.empty(events, np.int32)
        label = np.empty(events, np.float32)
        for part, places in zip(parts, placed, strict=True):
            if part.kept == 0:
                continue
            own = places[places >= 0]
            origin = self.files[part.piece.file]
            entry[own] = part.piece.start + np.flatnonzero(places >= 0)
            file[own], dataset[own], label[own] = part.piece.file, origin.dataset, origin.label
        return table_of(rows, label, np.ones(events, np.float32), dataset, file, entry)


@functools.lru_cache(maxsize=1024)
def _checked(source: Source) -> None:
    """Compare a file with the catalogue's checksum, once per process."""
    verify(source)


_told: weakref.WeakKeyDictionary[ByteSource, Traffic] = weakref.WeakKeyDictionary()
_telling = threading.Lock()


def _traffic(data: ByteSource) -> Traffic:
    """Return bytes, retries and failovers of a file since they were last asked for.

    Of pieces that are fetched at once, one is given what the others took too; their sum is right.
    """
    with _telling:
        now = (data.bytes_read, data.retries, data.failovers)
        before = _told.get(data, (0, 0, 0))
        _told[data] = now
    return now[0] - before[0], now[1] - before[1], now[2] - before[2]


def _at_hand(source: Source, settings: ReadingSettings) -> Source:
    """Return a file as it is to be read: checked, and from a copy here where copies are kept."""
    if settings.cache is not None:
        return cached(source, settings.cache)  # which checks what it copies
    if settings.checksums and source.adler32 is not None:
        _checked(source)
    return source


@dataclass
class _Job:
    """One piece of one block to fetch and decode; no piece stands for a block without any."""

    reader: Reader
    block: Block
    piece: Piece | None
    last: bool
    known: str = ""  # why its file is out of reach, if that is known already
    opened: bool = False

    @property
    def size(self) -> int:
        """Bytes that fetching it may hold, of the uncompressed."""
        return int(self.piece.entries * self._file.row_bytes) if self.piece else 0

    @property
    def is_local(self) -> bool:
        """Whether getting it waits for no network."""
        return self.piece is None or locate(self._file.source.urls[0]).is_local

    @property
    def _file(self) -> ReadFile:
        assert self.piece is not None
        return self.reader.files[self.piece.file]

    def fetch(self) -> Any:
        """Get the piece's bytes: the open file and what it fetched, or the DataError that prevented it."""
        if self.piece is None:
            return None
        if self.known:
            return FileUnreadableError(self.known)
        origin = self._file
        try:
            # a remote file that fails here has failed on every server, and every time it was tried
            self.opened = False
            source = _at_hand(origin.source, self.reader.settings)
            events = open_events(source, origin.tree, nested=self.reader.settings.nested)
            if events.uuid != origin.uuid:
                raise FileUnreadableError(
                    f"{origin.source} is not the file that the first pass saw", "Start again"
                )
            self.opened = self.is_local
            lacking = {branch.name for branch in origin.missing}
            names = [name for name in self.reader.names if name not in lacking]
            fetched = events.fetch(names, self.piece.start, self.piece.stop)
            self.opened = True
            return events, fetched
        except DataError as error:
            return error

    def decoded(self, fetched: Any) -> ReadPiece:
        """Decode and prepare what was fetched."""
        assert self.piece is not None
        begun = time.perf_counter()
        where = f"{self._file.source}, tree {self._file.tree!r}"
        try:
            if isinstance(fetched, DataError):
                raise fetched
            events, content = fetched
            columns = dict(events.decode(content))
            columns |= filled(self._file.missing, columns, self.piece.entries)
            prepared, keep = prepare(columns, self.reader.features)
            part = ReadPiece(self.piece, where, columns, prepared)
            part.choose(keep, self._chosen(columns))
            return part.spent(_traffic(events.data), time.perf_counter() - begun)
        except DataError as error:
            return ReadPiece(self.piece, where).failed(error, lost=not self.opened)
        except FeatureError as error:
            raise FeatureError(f"{error.message}, in {where}", error.remedy) from None

    def _chosen(self, columns: dict[str, Column]) -> Mask | None:
        """Tell which events belong to the block's part of the split; None for all."""
        assert self.piece is not None
        if self.block.part == WHOLE:
            return None
        reader, piece = self.reader, self.piece
        if reader.key:
            numbers = identifier_numbers([columns[name] for name in reader.key], reader.seed)  # type: ignore[misc]
        else:
            numbers = entry_numbers(self._file.uuid, piece.start, piece.stop, reader.seed)
        return within(numbers, self.block.part)


@dataclass
class ReadPiece:
    """A piece that was read (or not).

    Attributes:
        piece: Its entries.
        where: Its file and tree, for messages.
        columns: The branches as they were read.
        prepared: The branches that the features want, after definitions and object rules.
        mask: Which entries are events of the block; None for all.
        kept: How many.
        error: Why it could not be read.
        note: For the record.
    """

    piece: Piece
    where: str
    columns: Columns = field(default_factory=dict)
    prepared: Columns = field(default_factory=dict)
    mask: Mask | None = None
    kept: int = 0
    error: DataError | None = None
    note: PieceRecord = field(init=False)

    def __post_init__(self) -> None:
        self.note = PieceRecord(self.piece.file, self.piece.entries)

    def choose(self, keep: Mask | None, chosen: Mask | None) -> None:
        """Note the events that the selection keeps and the split chooses."""
        entries = self.piece.entries
        own = entries if chosen is None else int(chosen.sum())
        self.mask = chosen if keep is None else keep if chosen is None else keep & chosen
        self.kept = entries if self.mask is None else int(self.mask.sum())
        self.note = replace(self.note, read=self.kept, cut=own - self.kept, elsewhere=entries - own)

    def spent(self, traffic: Traffic, seconds: float) -> ReadPiece:
        """Note what reading took."""
        size, retries, failovers = traffic
        self.note = replace(self.note, bytes=size, retries=retries, failovers=failovers, seconds=seconds)
        return self

    def failed(self, error: DataError, *, lost: bool = False) -> ReadPiece:
        """Turn into a part without events."""
        self.error, self.columns, self.prepared, self.mask, self.kept = error, {}, {}, None, 0
        self.note = PieceRecord(
            self.piece.file,
            self.piece.entries,
            skipped=self.piece.entries,
            reason=error.message,
            lost=lost,
        )
        return self

    def refused(self, reason: str) -> ReadPiece:
        """Turn into a part without events, for its values cannot be right."""
        return self.failed(FileUnreadableError(reason, "The file may be damaged: copy it again"))

    def scattered(
        self,
        rows: npt.NDArray[np.float32],
        places: Places,
        features: FeatureSpec,
        bounds: Bounds | None,
    ) -> str:
        """Write the events to their rows; return what is wrong with their values, if anything."""
        if self.kept == 0:
            return ""
        outside = self._written(rows, places, features, bounds)
        if bounds is None or not outside.any():
            return ""
        worst = int(np.argmax(outside))
        name = features.features[worst].name
        return (
            f"cannot read {self.where}, branch {name!r}, entries {self.piece.start} to {self.piece.stop}: "
            f"{int(outside[worst])} values outside the range that the first pass saw"
        )

    def _written(
        self, rows: npt.NDArray[np.float32], places: Places, features: FeatureSpec, bounds: Bounds | None
    ) -> npt.NDArray[np.int64]:
        """Write the events; return how many values of each branch are out of bounds."""
        if not isinstance(features, GridSpec):
            return scatter(self.prepared, features, rows, places, bounds=bounds)
        counts = rasterise(self.prepared, features, rows, places)
        self.note = replace(self.note, counts=counts.flat())
        if bounds is None:
            return np.zeros(0, np.int64)
        return out_of_bounds(self.prepared, features, bounds)


def _places(parts: Sequence[ReadPiece], order: Places | None) -> Iterator[Places]:
    """Give each part the rows of its entries ``(entries,)``, -1 for those that are no events of the block."""
    position = 0
    for part in parts:
        entries = part.piece.entries
        if part.kept == 0:
            yield np.full(entries, -1, dtype=np.int64)
            continue
        stop = position + part.kept
        own = np.arange(position, stop, dtype=np.int64) if order is None else order[position:stop]
        position = stop
        if part.mask is None:
            yield own
        else:
            places = np.full(entries, -1, dtype=np.int64)
            places[part.mask] = own
            yield places


def block_schema(width: int) -> pa.Schema:
    """Return the schema of every block: the agreement between the streaming and the training layer."""
    return pa.schema(
        {
            "x": pa.fixed_shape_tensor(pa.float32(), (width,)),
            "y": pa.float32(),
            "weight": pa.float32(),
            "dataset": pa.int32(),
            "file": pa.int32(),
            "entry": pa.int64(),
        }
    )


def table_of(x: npt.NDArray[np.float32], *others: npt.NDArray[Any]) -> pa.Table:
    """Make the table of a block, over the same memory.

    Args:
        x: Rows ``(events, features)``.
        others: ``y``, ``weight``, ``dataset``, ``file`` and ``entry``, ``(events,)`` each.
    """
    schema = block_schema(x.shape[1])
    # Arrow's own tensor type over the same memory: measured a fifth cheaper than Ray's, without a copy.
    storage = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    tensor = pa.ExtensionArray.from_storage(schema.field("x").type, storage)
    return pa.table([tensor, *(pa.array(values) for values in others)], schema=schema)
