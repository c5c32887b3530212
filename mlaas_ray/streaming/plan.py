"""Plan: which entries of which files make each block of an epoch; pure arithmetic, no file is opened.

A block is what one task reads and one table holds. Every block has its share of every dataset, so that
whoever trains on it sees the mixture: exact to a cluster, since a cluster is cut only where a block is due
less than one. The order is drawn from the seed and the epoch alone: it does not depend on how many read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

# A block's bytes of rows: large enough that Ray's cost per block vanishes, small enough for many in memory.
BLOCK_BYTES = 110_000_000
# Blocks may be this much larger where that spares cutting a cluster, whose baskets would be decoded twice
# (Ray splits blocks of more than 200 MB).
STRETCH = 1.7
# Files that are read at the same time, of all datasets together: opening one costs as much as reading
# thousands of events, and a reader keeps the last few open.
OPEN_FILES = 8
# So many blocks at least, where decoding baskets twice costs little: for data smaller than this.
MIN_BLOCKS = 8
SMALL_BYTES = 200_000_000


@dataclass(frozen=True)
class Extent:
    """The entries of one file.

    Attributes:
        dataset: Index of the dataset it belongs to.
        boundaries: First entry of each cluster, and last the number of entries: ``(0, 1000, 1800)``.
    """

    dataset: int
    boundaries: Sequence[int]

    @property
    def entries(self) -> int:
        """Entries of the file."""
        return self.boundaries[-1]


@dataclass(frozen=True)
class Piece:
    """Contiguous entries of one file.

    Attributes:
        file: Index of the file.
        start: First entry.
        stop: One past the last entry.
    """

    file: int
    start: int
    stop: int

    @property
    def entries(self) -> int:
        """Number of entries."""
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """Blocks for every epoch.

    Args:
        extents: The files.
        row_bytes: Bytes of one event in a block.
        shares: Parts of the datasets in every block, by index, in any unit; None for what there is of each.
            With given shares an epoch ends when one dataset is used up, and takes from the others what
            belongs to it: another selection in every epoch when ``shuffle``.
        seed: Of the order.
        shuffle: Whether each epoch has an order of its own, or all that of the files.
        max_events: Of each dataset, the first so many at most.
    """

    extents: tuple[Extent, ...]
    row_bytes: int
    shares: Mapping[int, float] | None = None
    seed: int = 0
    shuffle: bool = False
    max_events: int | None = None

    @property
    def planned(self) -> dict[int, int]:
        """Events of one epoch, by dataset."""
        there = self._there
        if self.shares is None:
            return there
        scale = min(there[dataset] / share for dataset, share in self.shares.items() if share > 0)
        return {
            dataset: min(events, round(scale * self.shares.get(dataset, 0.0)))
            for dataset, events in there.items()
        }

    @property
    def blocks(self) -> int:
        """Number of blocks, the same in every epoch."""
        events = sum(self.planned.values())
        return max(1, round(events / self._block_events(events)))

    def epoch(self, epoch: int) -> list[tuple[Piece, ...]]:
        """Return the pieces of each block of an epoch (from 0)."""
        planned, count = self.planned, self.blocks
        blocks: list[list[Piece]] = [[] for _ in range(count)]
        for dataset, events in planned.items():
            pieces = self._pieces(dataset, events / count)
            if self.shuffle:
                random = np.random.default_rng([self.seed, epoch, dataset])
                pieces = shuffled(pieces, max(1, OPEN_FILES // len(planned)), random)
            for block, piece in _dealt(_first(pieces, events), events, count):
                blocks[block].append(piece)
        return [tuple(pieces) for pieces in blocks]

    @property
    def _there(self) -> dict[int, int]:
        """Events there are, by dataset."""
        there = dict.fromkeys(sorted({extent.dataset for extent in self.extents}), 0)
        for extent in self.extents:
            there[extent.dataset] += extent.entries
        limit = self.max_events
        return there if limit is None else {dataset: min(n, limit) for dataset, n in there.items()}

    def _pieces(self, dataset: int, share: float) -> list[Piece]:
        """Cut a dataset's files, in their order, into pieces that deal out well into shares of blocks."""
        pieces = [
            Piece(file, start, stop)
            for file, extent in enumerate(self.extents)
            if extent.dataset == dataset
            for start, stop in cut(extent.boundaries, share)
        ]
        return _first(pieces, self._there[dataset])

    def _block_events(self, events: int) -> float:
        """Return events of a block: whole clusters of every dataset, if such a block is not too large."""
        most = BLOCK_BYTES / self.row_bytes
        small = events * self.row_bytes <= SMALL_BYTES
        target = max(1.0, min(most, events / MIN_BLOCKS) if small else most)
        # a block with one cluster of each dataset, in the proportions of the datasets
        whole = max(
            (
                self._cluster(dataset) * events / planned
                for dataset, planned in self.planned.items()
                if planned
            ),
            default=target,
        )
        if whole > (target if small else target * STRETCH):
            return target
        return whole * max(1, round(target / whole))

    def _cluster(self, dataset: int) -> float:
        """Return the usual entries of a cluster."""
        sizes = [
            size
            for extent in self.extents
            if extent.dataset == dataset
            for size in np.diff(extent.boundaries).tolist()
        ]
        return float(np.median(sizes)) if sizes else 1.0


def shuffled(pieces: Sequence[Piece], window: int, random: np.random.Generator) -> list[Piece]:
    """Shuffle pieces: the files, and then the pieces of every few files that follow each other.

    Args:
        pieces: Of one dataset.
        window: Files whose pieces are mixed.
        random: The source of chance.
    """
    by_file: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_file.setdefault(piece.file, []).append(piece)
    files = list(by_file.values())
    order = random.permutation(len(files))
    mixed: list[Piece] = []
    for start in range(0, len(files), window):
        group = [piece for i in order[start : start + window] for piece in files[i]]
        mixed += [group[i] for i in random.permutation(len(group))]
    return mixed


def _first(pieces: Sequence[Piece], events: int) -> list[Piece]:
    """Return pieces up to a number of events; the last is cut to fit."""
    taken: list[Piece] = []
    for piece in pieces:
        if events <= 0:
            break
        taken.append(Piece(piece.file, piece.start, min(piece.stop, piece.start + events)))
        events -= taken[-1].entries
    return taken


def _dealt(pieces: Sequence[Piece], events: int, blocks: int) -> list[tuple[int, Piece]]:
    """Give each piece the block in which its middle lies, so that every block has an equal share."""
    dealt, position = [], 0
    for piece in pieces:
        middle = position + piece.entries / 2
        dealt.append((min(blocks - 1, int(middle * blocks / events)), piece))
        position += piece.entries
    return dealt


def cut(boundaries: Sequence[int], share: float) -> list[tuple[int, int]]:
    """Cut a file's entries into contiguous ranges that deal out well into shares of blocks.

    They end on cluster boundaries, so that no basket is fetched and decoded twice; only a cluster of more
    than a share (and a quarter) is cut inside. Small clusters are taken together, up to a quarter of a share.

    Args:
        boundaries: First entry of each cluster, and last the number of entries: ``[0, 1000, 1800]``.
        share: Entries that a block is due.

    Returns:
        ``(start, stop)`` that together cover every entry once, in order.
    """
    ranges: list[tuple[int, int]] = []
    for start, stop in pairwise(boundaries):
        if stop - start > max(1.0, share * 1.25):
            pieces = math.ceil((stop - start) / max(1.0, share))
            ranges += pairwise(start + (stop - start) * i // pieces for i in range(pieces + 1))
        elif ranges and stop - ranges[-1][0] <= share / 4:
            ranges[-1] = (ranges[-1][0], stop)
        elif stop > start:
            ranges.append((start, stop))
    return ranges


def row_order(seed: int, epoch: int, block: int, events: int) -> npt.NDArray[np.int64]:
    """Return the place of each event of a block in its shuffled rows ``(events,)``."""
    return np.random.default_rng([seed, epoch, block, 1]).permutation(events)
