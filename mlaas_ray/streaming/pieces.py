"""Pieces that were read: their columns, which entries are events, and how they come to their rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.columns import Columns
from mlaas_ray.core.errors import DataError, FileUnreadableError
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.grid import GridSpec
from mlaas_ray.streaming.plan import Piece
from mlaas_ray.streaming.raster import out_of_bounds, rasterise
from mlaas_ray.streaming.record import PieceRecord
from mlaas_ray.streaming.scatter import Bounds, scatter

Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]
# bytes, retries, failovers
Traffic = tuple[int, int, int]


@dataclass
class ReadPiece:
    """A piece that was read (or not).

    Attributes:
        piece: Its entries.
        where: Its file and tree, for messages.
        columns: The branches as they were read.
        prepared: The branches that the features want, after definitions and object rules.
        y: Their labels ``(entries,)``, or targets ``(entries, targets)``.
        weight: Their weights ``(entries,)``.
        mask: Which entries are events of the block; None for all.
        kept: How many.
        error: Why it could not be read.
        note: For the record.
    """

    piece: Piece
    where: str
    columns: Columns = field(default_factory=dict)
    prepared: Columns = field(default_factory=dict)
    y: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    weight: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
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


def places_of(parts: Sequence[ReadPiece], order: Places | None) -> Iterator[Places]:
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
