"""Record: what became of every entry of a run, file by file; its sums always close."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mlaas_ray.core.errors import DataError
from mlaas_ray.streaming.transport import Absence

# What an entry that was planned can have become.
FATES = ("read", "cut", "elsewhere", "skipped", "earlier")


@dataclass(frozen=True)
class PieceRecord:
    """What became of one piece of a file.

    Attributes:
        file: Index of the file.
        entries: Entries planned.
        read: Given on as events.
        cut: Left out by the selection.
        elsewhere: Of the other part of the split.
        skipped: Not read, for what ``reason`` says.
        earlier: Of a block that the run had used before it was gone on with; no other fate of it is known.
        reason: Why entries were skipped; empty when none were.
        lost: Whether the whole file is out of reach, so that trying its other pieces would be in vain.
        bytes: Bytes read from storage, as stored.
        seconds: Wall time of reading, decoding and flattening.
        retries: I/O errors that were tried again.
        failovers: Changes to another server.
        counts: Further numbers to add up, such as a grid's objects outside.
    """

    file: int
    entries: int
    read: int = 0
    cut: int = 0
    elsewhere: int = 0
    skipped: int = 0
    earlier: int = 0
    reason: str = ""
    lost: bool = False
    bytes: int = 0
    seconds: float = 0.0
    retries: int = 0
    failovers: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedFile:
    """A file, as the record names it.

    Attributes:
        path: Path or URL.
        dataset: Name of its dataset.
        entries: Entries of the file.
        reason: Why the first pass could not read it; empty for what was planned.
        filled: Branches that it lacks, and that are filled.
    """

    path: str
    dataset: str
    entries: int
    reason: str = ""
    filled: tuple[str, ...] = ()


class Ledger:
    """Where readers write down what they did; an actor of Ray, see :class:`Record`.

    A block that is read again, because its node died, overwrites what it wrote before; so nothing counts
    twice.

    Args:
        files: All files, in the order of the plan.
        max_skipped: Files that may be skipped at most.
    """

    def __init__(self, files: Sequence[RecordedFile], max_skipped: int) -> None:
        self._files = list(files)
        self._max_skipped = max_skipped
        self._blocks: dict[tuple[str, int, int], tuple[PieceRecord, ...]] = {}
        self._planned: dict[tuple[str, int], dict[int, int]] = {}
        self._wanted: dict[str, tuple[int, Sequence[tuple[int, int]]]] = {}
        self._bad = {index for index, file in enumerate(files) if file.reason}
        self._lost: dict[int, str] = {}
        self._absences: dict[str, list[Absence]] = {}
        self._lines: list[str] = []

    def plan(
        self, name: str, epoch: int, entries: Mapping[int, int], used: Mapping[int, Mapping[int, int]]
    ) -> None:
        """Note how many entries of each file an epoch is to read; see :meth:`Record.plan`."""
        self._planned[name, epoch] = dict(entries)
        for block, files in used.items():
            pieces = tuple(PieceRecord(file, count, earlier=count) for file, count in files.items())
            self._blocks.setdefault((name, epoch, block), pieces)  # it may have been read in this run

    def want(self, name: str, epoch: int, done: Sequence[tuple[int, int]]) -> None:
        """Keep what the next pass of a reading is to read."""
        self._wanted[name] = (epoch, done)

    def wanted(self, name: str) -> tuple[int, Sequence[tuple[int, int]]]:
        """Return what was kept; in the beginning, all of the first epoch."""
        return self._wanted.get(name, (0, ()))

    def lost(self) -> dict[int, str]:
        """Return the files that are out of reach, with the reason."""
        return self._lost

    def note(self, name: str, epoch: int, block: int, pieces: Sequence[PieceRecord]) -> str:
        """Note what became of a block's pieces.

        Returns:
            Why the run must end, since too many files were skipped; empty when it may go on.
        """
        self._blocks[name, epoch, block] = tuple(pieces)
        for piece in pieces:
            if piece.skipped:
                self._bad.add(piece.file)
                if piece.lost:
                    self._lost[piece.file] = piece.reason
        if len(self._bad) <= self._max_skipped:
            return ""
        last = next((piece for piece in pieces if piece.skipped), None)
        reason = f", the last because: {last.reason}" if last else ""
        return (
            f"{len(self._bad)} of {len(self._files)} files could not be read, "
            f"{self._max_skipped} may be skipped{reason}"
        )

    def absent(self, absence: Absence) -> None:
        """Note that a server does not answer, or does again; many readers say so of one."""
        known = self._absences.setdefault(absence.server, [])
        begins = not known or known[-1].over
        if begins and absence.over:
            return
        if begins:
            known.append(absence)
        if begins and absence.seconds < absence.patience:
            self._lines.append(
                f"{absence.server}: {absence.fault}; waiting for it, {absence.patience:g} s at most"
            )
        if absence.over:
            self._lines.append(f"{absence.server} is back after {absence.seconds:.0f} s")
        tries = known[-1].tries + (0 if begins or absence.over else 1)
        known[-1] = replace(absence, fault=absence.fault or known[-1].fault, tries=tries)

    def lines(self, told: int) -> list[str]:
        """Return what is to be told of servers that are waited for, after so many lines."""
        return self._lines[told:]

    def document(self) -> dict[str, Any]:
        """Return the record; see :meth:`Record.document`."""
        readings = [
            _reading(name, epoch, planned, self._of(name, epoch), self._files)
            for (name, epoch), planned in sorted(self._planned.items(), key=lambda item: item[0])
            # Ray asks for the plan of an epoch that may never be run
            if self._of(name, epoch)
        ]
        return {
            "readings": readings,
            "total": _sum([reading["total"] for reading in readings]),
            "skipped_files": [
                {
                    **{name: getattr(self._files[index], name) for name in ("path", "dataset", "entries")},
                    "reason": self._files[index].reason or self._reason(index),
                }
                for index in sorted(self._bad)
            ],
            "absences": [
                {**asdict(absence), "seconds": round(absence.seconds, 1)}
                for absences in self._absences.values()
                for absence in absences
            ],
        }

    def _of(self, name: str, epoch: int) -> list[PieceRecord]:
        return [piece for key, pieces in self._blocks.items() if key[:2] == (name, epoch) for piece in pieces]

    def _reason(self, index: int) -> str:
        reasons = {
            piece.reason: None
            for pieces in self._blocks.values()
            for piece in pieces
            if piece.file == index and piece.skipped
        }
        return "; ".join(reasons)


def _reading(
    name: str,
    epoch: int,
    planned: Mapping[int, int],
    pieces: Sequence[PieceRecord],
    files: Sequence[RecordedFile],
) -> dict[str, Any]:
    by_file: dict[int, list[PieceRecord]] = {index: [] for index in planned}
    for piece in pieces:
        by_file.setdefault(piece.file, []).append(piece)
    rows = []
    for index, own in sorted(by_file.items()):
        row: dict[str, Any] = {
            "path": files[index].path,
            "dataset": files[index].dataset,
            "planned": planned.get(index, 0),
        }
        row |= _sum([_numbers(piece) for piece in own])
        row["not_reached"] = row["planned"] - sum(row[fate] for fate in FATES)
        reasons = sorted({piece.reason for piece in own if piece.reason})
        filled = dict.fromkeys(files[index].filled, row["read"])
        rows.append(row | ({"reasons": reasons} if reasons else {}) | ({"filled": filled} if filled else {}))
    return {"reading": name, "epoch": epoch, "files": rows, "total": _sum(rows)}


def _numbers(piece: PieceRecord) -> dict[str, Any]:
    numbers = {key: getattr(piece, key) for key in (*FATES, "bytes", "seconds", "retries", "failovers")}
    return numbers | dict(piece.counts)


_ZERO = dict.fromkeys((*FATES, "bytes", "retries", "failovers"), 0) | {"seconds": 0.0}


def _sum(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up what are numbers, and what was filled by branch."""
    total: dict[str, Any] = dict(_ZERO)
    filled: dict[str, int] = {}
    for row in rows:
        for key, value in row.items():
            if isinstance(value, int | float):
                total[key] = total.get(key, 0) + value
        for name, events in row.get("filled", {}).items():
            filled[name] = filled.get(name, 0) + events
    return total | ({"filled": filled} if filled else {})


class Record:
    """The record of a run, which all its readers write to.

    Args:
        files: All files, in the order of the plan; those the first pass could not read have a reason.
        max_skipped: Files that may be skipped at most.
    """

    def __init__(self, files: Sequence[RecordedFile], max_skipped: int = 0) -> None:
        # On the driver's own node: the record outlives any other.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Ledger)
        self._ledger = actor.options(num_cpus=0, scheduling_strategy=here).remote(files, max_skipped)

    def plan(
        self,
        name: str,
        epoch: int,
        entries: Mapping[int, int],
        used: Mapping[int, Mapping[int, int]] | None = None,
    ) -> None:
        """Note how many entries of each file an epoch is to read.

        Args:
            name: Of the reading.
            epoch: Its epoch.
            entries: By file.
            used: The entries, by file, of blocks that were used before, and are not read again.
        """
        ray.get(self._ledger.plan.remote(name, epoch, dict(entries), used or {}))

    def want(self, name: str, epoch: int, done: Sequence[tuple[int, int]]) -> None:
        """Keep what the next pass of a reading is to read: an epoch without blocks of some numbers."""
        ray.get(self._ledger.want.remote(name, epoch, tuple(done)))

    def wanted(self, name: str) -> tuple[int, Sequence[tuple[int, int]]]:
        """Return what was kept."""
        wanted: tuple[int, Sequence[tuple[int, int]]] = ray.get(self._ledger.wanted.remote(name))
        return wanted

    def lost(self) -> dict[int, str]:
        """Return the files that are known to be out of reach, with the reason."""
        lost: dict[int, str] = ray.get(self._ledger.lost.remote())
        return lost

    def note(self, name: str, epoch: int, block: int, pieces: Sequence[PieceRecord]) -> None:
        """Note what became of a block's pieces.

        Raises:
            DataError: When more files were skipped than may be.
        """
        over = ray.get(self._ledger.note.remote(name, epoch, block, tuple(pieces)))
        if over:
            raise DataError(over, "Look at the files, or raise reading.bad_files.max_fraction")

    def absent(self, absence: Absence) -> None:
        """Note, without waiting, that a server does not answer, or does again."""
        self._ledger.absent.remote(absence)

    def lines(self, told: int) -> list[str]:
        """Return what is to be told of servers that are waited for, after so many lines."""
        lines: list[str] = ray.get(self._ledger.lines.remote(told))
        return lines

    def document(self) -> dict[str, Any]:
        """Return the record of all readings so far.

        Returns:
            ``readings``: for each pass over the data (``reading``, ``epoch``) its ``files`` and ``total``,
            with entries ``planned`` = ``read`` + ``cut`` (by the selection) + ``elsewhere`` (in the other
            part of the split) + ``skipped`` + ``earlier`` (used before the run was gone on with) +
            ``not_reached`` (the run ended before), ``bytes`` as stored, ``seconds``, ``retries`` and
            ``failovers``, ``reasons``, and ``filled``, the events read for which a branch that the file lacks
            was filled, by branch; the sum of their ``total``; ``skipped_files``; and ``absences``: servers
            that were waited for, how often they were asked, for how many seconds, and whether they came back.
        """
        document: dict[str, Any] = ray.get(self._ledger.document.remote())
        return document

    def write(self, path: Path) -> None:
        """Write the record as JSON; a reader sees the whole file or none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        passing = path.with_name(f".{path.name}-{os.getpid()}")
        passing.write_text(json.dumps(self.document(), indent=1))
        passing.replace(path)
