"""Visits: what one task of the first pass does with a batch of files, the next ones opened meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlaas_ray.core.errors import DataError, FileMissingError, FileUnreadableError, TreeMissingError
from mlaas_ray.core.prepare import needed_branches
from mlaas_ray.core.statistics import Sketches
from mlaas_ray.streaming.ahead import ahead
from mlaas_ray.streaming.events import Branch, Events, open_events
from mlaas_ray.streaming.measure import added, counted, measured, pieces, wishes
from mlaas_ray.streaming.memo import Memo
from mlaas_ray.streaming.missing import filled
from mlaas_ray.streaming.scan import Request, ScannedFile, SkippedFile, scan
from mlaas_ray.streaming.source import Source

# Files opened at once: opening is waiting for answers.
OPENING = 8
# Uncompressed bytes of one file that its visit measures; tasks of their own measure the rest.
VISIT_BYTES = 256_000_000

Range = tuple[int, int]

# What makes a file bad; a branch that it lacks does not.
_BAD = (FileMissingError, FileUnreadableError, TreeMissingError)


@dataclass(frozen=True)
class Job:
    """One file to visit.

    Attributes:
        source: Where it lies.
        tree: Name of the tree, as the user gave it.
        dataset: Index of its sample.
        measure: Whether to measure it, too.
        stop: Entries to measure at most; None for all.
        ranges: Entries to measure; None for what the visit finds.
        absent: Branches to fill that the file lacks.
        trusted: Whether what is remembered of a file with its identifier may be taken for it.
    """

    source: Source
    tree: str | None
    dataset: int
    measure: bool = True
    stop: int | None = None
    ranges: tuple[Range, ...] | None = None
    absent: tuple[Branch, ...] = ()
    trusted: bool = True


@dataclass(frozen=True)
class Visit:
    """What was learnt of one file.

    Attributes:
        file: Its metadata.
        sketches: Of what was measured; None for nothing.
        events: Events among it, before the selection.
        rest: Entries still to be measured.
        waits: Whether it lacks branches that expressions need: nothing was measured before they are known.
        digests: Of the values of each branch that was measured.
    """

    file: ScannedFile
    sketches: Sketches | None = None
    events: int = 0
    rest: tuple[Range, ...] = ()
    waits: bool = False
    digests: Mapping[str, int] = field(default_factory=dict)

    def extended(self, other: Visit) -> Visit:
        """Add what a later visit measured of the rest."""
        parts = [one.sketches for one in (self, other) if one.sketches is not None]
        return replace(
            self,
            sketches=Sketches.merged(parts) if parts else None,
            events=self.events + other.events,
            rest=(),
            digests=added(self.digests, other.digests),
        )


Outcome = Visit | SkippedFile


def visit(jobs: Sequence[Job], request: Request, memo: Memo | None = None) -> list[Outcome]:
    """Open, scan and measure files, several at once.

    Returns:
        What was learnt of each, or why it cannot be read where bad files are skipped.

    Raises:
        DataError: For the first that cannot be used.
    """
    opened = (
        _Opened.of(job, result, request, memo)
        for job, result in ahead(jobs, lambda job: _open(job, request), size=lambda job: 0, in_flight=OPENING)
    )
    states: list[_Opened] = []
    for piece, result in ahead(
        _pieces(opened, states),
        lambda piece: piece.fetch(),
        size=lambda piece: piece.bytes,
        in_flight=request.reading.in_flight,
        max_bytes=request.reading.ahead_bytes,
    ):
        piece.of.measure(piece, result, request)
    return [state.outcome(request) for state in states]


def _open(job: Job, request: Request) -> tuple[Events, ScannedFile] | DataError:
    try:
        source = replace(job.source, patience=request.reading.patience_s)
        events = open_events(source, job.tree, nested=request.reading.nested)
        return events, scan(events, job.source, job.dataset, request, job.absent)
    except _BAD as error:
        return error


@dataclass
class _Opened:
    """A file of the batch while it is measured."""

    job: Job
    events: Events | None = None
    file: ScannedFile | None = None
    names: list[str] = field(default_factory=list)
    counters: dict[str, str] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)
    rest: tuple[Range, ...] = ()
    waits: bool = False
    parts: list[Sketches] = field(default_factory=list)
    digests: dict[str, int] = field(default_factory=dict)
    error: DataError | None = None
    known: Visit | None = None

    @classmethod
    def of(
        cls, job: Job, result: tuple[Events, ScannedFile] | DataError, request: Request, memo: Memo | None
    ) -> _Opened:
        if isinstance(result, DataError):
            if request.reading.bad_files.policy == "fail":
                raise result
            return cls(job, error=result)
        events, file = result
        made = cls(job, events, file)
        if memo is not None and job.trusted and job.measure and job.ranges is None:
            made.known = memo.visit(file.uuid, file.size, job, request)
        if made.known is None and job.measure:
            made._plan(request)
        return made

    def _plan(self, request: Request) -> None:
        """Decide what to read."""
        assert self.file is not None
        assert self.events is not None
        if not self.file.entries:
            return
        self.names, self.counters = wishes(self.file, request, self.job.absent)
        absent = {branch.name for branch in self.job.absent}
        needed = needed_branches(request.inputs, self.names, select=bool(self.names)) - absent
        self.reads = sorted(needed | set(self.counters.values()))
        if not self.job.absent and request.reading.missing == "fill":
            # what is defined by branches that this file lacks has no kind yet
            defined = needed_branches(request.inputs, request.inputs.define)
            self.waits = not needed | defined <= set(self.events.branches)
        if self.waits or not (self.names or self.counters):
            return
        if self.job.ranges is not None:
            self.ranges = list(self.job.ranges)
            return
        ranges = pieces(self.file, request.reading.sample, self.job.stop)
        most = max(1, VISIT_BYTES * self.file.entries // max(1, self.file.bytes))
        total = 0
        for start, stop in ranges:
            if total and total + stop - start > most:
                break
            total += stop - start
            self.ranges.append((start, stop))
        self.rest = tuple(ranges[len(self.ranges) :])

    def measure(self, piece: _Piece, fetched: Any, request: Request) -> None:
        """Measure one range that was fetched."""
        if self.error is not None:
            return
        try:
            if isinstance(fetched, DataError):
                raise fetched
            assert self.events is not None
            columns = dict(self.events.decode(fetched))
            entries = piece.stop - piece.start
            columns |= filled(self.job.absent, columns, entries, request.reading.fill)
            absent = {branch.name: branch.dtype for branch in self.job.absent}
            sketches = []
            if self.names:
                assert self.file is not None
                place = f"{self.file.uuid} {piece.start}"
                own, digests = measured(columns, self.names, request.inputs, place, absent)
                sketches.append(own)
                self.digests = added(self.digests, digests)
            if self.counters:
                sketches.append(counted(columns, self.counters))
            self.parts.append(Sketches.merged(sketches))
        except _BAD as error:
            if request.reading.bad_files.policy == "fail":
                raise
            self.error = error

    def outcome(self, request: Request) -> Outcome:
        """Return what was learnt."""
        if self.error is not None:
            return SkippedFile(self.job.source, self.job.dataset, self.error.message)
        assert self.file is not None
        if self.known is not None:
            return replace(self.known, file=self.file)
        sketches = Sketches.merged(self.parts) if self.parts else None
        seen = sum(stop - start for start, stop in self.ranges)
        return Visit(self.file, sketches, seen, self.rest, self.waits, self.digests)


@dataclass
class _Piece:
    of: _Opened
    names: list[str]
    start: int
    stop: int

    @property
    def bytes(self) -> int:
        assert self.of.file is not None
        return self.of.file.bytes * (self.stop - self.start) // max(1, self.of.file.entries)

    def fetch(self) -> Any:
        assert self.of.events is not None
        try:
            return self.of.events.fetch(self.names, self.start, self.stop)
        except _BAD as error:
            return error


def _pieces(opened: Iterator[_Opened], states: list[_Opened]) -> Iterator[_Piece]:
    """Give what is to be read of all files; each file is noted as it begins."""
    for state in opened:
        states.append(state)
        if state.file is None:
            continue
        for start, stop in state.ranges:
            yield _Piece(state, state.reads, start, stop)
