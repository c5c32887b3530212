"""Reading: blocks of a plan to tables of events, fetched ahead; what cannot be read is skipped or fails.

All reading ends here: a worker's own, and that of Ray Data's tasks.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import starmap
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlaas_ray.core.columns import Column
from mlaas_ray.core.errors import DataError, FeatureError, FileUnreadableError, LabelError
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.location import locate
from mlaas_ray.core.prepare import needed_branches, prepare
from mlaas_ray.streaming.ahead import ahead
from mlaas_ray.streaming.blocks import table_of
from mlaas_ray.streaming.buffers import POOL
from mlaas_ray.streaming.checksum import verify
from mlaas_ray.streaming.events import Branch, open_events
from mlaas_ray.streaming.file_cache import cached
from mlaas_ray.streaming.missing import filled
from mlaas_ray.streaming.pieces import Mask, Places, ReadPiece, Traffic, places_of
from mlaas_ray.streaming.plan import Piece, row_order
from mlaas_ray.streaming.record import Record
from mlaas_ray.streaming.scatter import Bounds
from mlaas_ray.streaming.settings import ReadingSettings
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.split import WHOLE, Part, entry_numbers, identifier_numbers, within
from mlaas_ray.streaming.transport import ByteSource, listen, trust
from mlaas_ray.streaming.truth import Truth, check_values


@dataclass(frozen=True)
class ReadFile:
    """One file, as readers know it.

    Attributes:
        source: Where it lies.
        tree: Name of the tree.
        uuid: Its own identifier, as the first pass saw it.
        dataset: Index of its dataset.
        row_bytes: Uncompressed bytes of the branches to read, of one entry.
        missing: Branches to read that it lacks: they are filled.
    """

    source: Source
    tree: str
    uuid: str
    dataset: int
    row_bytes: float = 0.0
    missing: tuple[Branch, ...] = ()

    @property
    def absent(self) -> dict[str, str]:
        """Numpy types of what is missing, by name."""
        return {branch.name: branch.dtype for branch in self.missing}


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


def planned_entries(blocks: Iterable[Block]) -> dict[int, int]:
    """Return the entries that blocks are to read of each file, by its index."""
    entries: dict[int, int] = {}
    for block in blocks:
        for piece in block.pieces:
            entries[piece.file] = entries.get(piece.file, 0) + piece.entries
    return entries


@dataclass(frozen=True)
class Reader:
    """Reads blocks; pickles, so that it can be sent to whoever reads.

    Attributes:
        files: All files of the plan.
        features: The columns of ``x``; statistics are not needed.
        truths: Labels and weights of each dataset's events.
        classes: How many classes labels tell apart; 0 for targets, or labels that nobody looks at.
        settings: How to read.
        key: Branches that identify an event, for the split; empty for file and entry.
        seed: Of the split and of the order.
        bounds: Least and greatest value that the first pass saw, ``(features,)`` by feature; None when it
            did not see all.
        record: Where to write down what was read; None for nowhere.
        bare: Whether labels, weights and the selection are all that is wanted, and no columns.
    """

    files: tuple[ReadFile, ...]
    features: FeatureSpec
    truths: tuple[Truth, ...] = (Truth(),)
    classes: int = 0
    settings: ReadingSettings = field(default_factory=ReadingSettings)
    key: tuple[str, ...] = ()
    seed: int = 0
    bounds: Bounds | None = None
    record: Record | None = None
    bare: bool = False

    @cached_property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """The branches read, of the files of each dataset."""
        every = tuple(feature.name for feature in self.features.features)

        def needed(*names: str) -> set[str]:
            return needed_branches(self.features, names) | set(self.key)

        asked = [needed(*(() if self.bare else every), *truth.names) for truth in self.truths]
        # a selection that names no branch still wants to know how many events there are
        return tuple(tuple(sorted(names or needed(*every[:1]))) for names in asked)

    def tables(self, blocks: Iterable[Block], *, threads: int = 1) -> Iterator[pa.Table]:
        """Read blocks: one table each, in their order, the bytes of the next ones fetched meanwhile.

        Args:
            blocks: What to read.
            threads: Blocks to decode at once; their tables are held in memory, and one more.

        Raises:
            DataError: Naming the file, tree and branch that cannot be read, where that is not skipped.
        """
        if threads == 1:
            yield from starmap(self._finished, self._fetched(blocks))
            return
        # one in the consumer's hands, the others being made
        for _, table in ahead(
            self._fetched(blocks),
            lambda fetched: self._finished(*fetched),
            size=lambda _: 1,
            in_flight=threads,
            max_bytes=threads + 1,
        ):
            yield table

    def parts(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, list[ReadPiece]]]:
        """Read the pieces of blocks, without making rows of them; see :meth:`tables`."""
        for block, fetched in self._fetched(blocks):
            yield block, self._decoded(fetched)

    def _fetched(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, list[_Fetched]]]:
        """Give each block with the bytes of its pieces."""
        if self.record is not None:
            listen(self.record.absent)
        waiting: list[Block] = []
        fetched: list[_Fetched] = []
        for job, content in ahead(
            self._jobs(blocks, waiting),
            lambda job: job.fetch(),
            size=lambda job: job.size,
            in_flight=self.settings.in_flight,
            max_bytes=self.settings.ahead_bytes,
            is_local=lambda job: job.is_local,
        ):
            if job.piece is not None:
                fetched.append((job, content))
            if job.last:
                yield waiting.pop(0), fetched
                fetched = []

    def _decoded(self, fetched: Sequence[_Fetched]) -> list[ReadPiece]:
        parts = []
        for job, content in fetched:
            parts.append(job.decoded(content))
            self._refuse(parts[-1:])
        return parts

    def _finished(self, block: Block, fetched: Sequence[_Fetched]) -> pa.Table:
        return self._table(block, self._decoded(fetched))

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

    def _table(self, block: Block, parts: list[ReadPiece]) -> pa.Table:
        """Put the events of a block's parts into one table, and write down what became of them."""
        begun = time.perf_counter()
        while True:
            events = [part.kept for part in parts]
            order = row_order(self.seed, block.epoch, block.index, sum(events)) if block.shuffle else None
            rows = POOL.take((sum(events), self.features.width), np.float32)
            placed = list(places_of(parts, order))
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
        y = np.empty((events, *self._target_shape), np.float32)
        weight = np.empty(events, np.float32)
        for part, places in zip(parts, placed, strict=True):
            if part.kept == 0:
                continue
            there = places >= 0
            own = places[there]
            entry[own] = part.piece.start + np.flatnonzero(there)
            file[own], dataset[own] = part.piece.file, self.files[part.piece.file].dataset
            y[own], weight[own] = part.y[there], part.weight[there]
        return table_of(rows, y, weight, dataset, file, entry)

    @property
    def _target_shape(self) -> tuple[int, ...]:
        targets = self.truths[0].targets
        return (targets,) if targets > 1 else ()


# A piece's job, and what fetching gave.
_Fetched = tuple["_Job", Any]


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
            settings = self.reader.settings
            source = _at_hand(replace(origin.source, patience=settings.patience_s), settings)
            trust(origin.source.urls)  # the first pass has read it
            events = open_events(source, origin.tree, nested=settings.nested)
            if events.uuid != origin.uuid:
                raise FileUnreadableError(
                    f"{origin.source} is not the file that the first pass saw", "Start again"
                )
            self.opened = self.is_local
            lacking = {branch.name for branch in origin.missing}
            names = [name for name in self.reader.names[origin.dataset] if name not in lacking]
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
            reader, absent = self.reader, self._file.absent
            columns |= filled(self._file.missing, columns, self.piece.entries, reader.settings.fill)
            prepared, keep = prepare(columns, reader.features, () if reader.bare else None, absent=absent)
            part = ReadPiece(self.piece, where, columns, prepared)
            part.choose(keep, self._chosen(columns))
            truth = reader.truths[self._file.dataset]
            part.y, part.weight = truth.of(columns, reader.features, self.piece.entries, absent)
            asked = (part.mask, reader.classes, where, self.piece.start, truth.texts)
            check_values(part.y, part.weight, *asked)
            return part.spent(_traffic(events.data), time.perf_counter() - begun)
        except LabelError:
            raise  # no damage of a file
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
