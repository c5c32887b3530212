"""Seen: which rows of an epoch's blocks were seen, where Ray Data chooses who gets which."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]
# Block, row and rows of the block, ``(3, events)``.
Places = npt.NDArray[np.int32]


class Seen:
    """Rows of blocks that were seen.

    Attributes:
        done: Blocks of which all were.
        some: By block, which of its rows, of those that are not done.
    """

    def __init__(self) -> None:
        self.done: set[int] = set()
        self.some: dict[int, Flags] = {}

    def add(self, places: Places) -> None:
        """Add rows by their places."""
        for block in np.unique(places[0]).tolist():
            _, row, rows = places[:, places[0] == block]
            flags = np.zeros(rows[0], dtype=bool)
            flags[row] = True
            self._join(block, flags)

    def merge(self, other: Seen) -> None:
        """Add what another has."""
        for block in other.done:
            self._finish(block)
        for block, flags in other.some.items():
            self._join(block, flags)

    def unseen(self, places: Places) -> Flags | None:
        """Return which of some rows were not seen; None for all."""
        if not (self.done or self.some):
            return None
        flags = np.ones(places.shape[1], dtype=bool)
        for block in np.unique(places[0]).tolist():
            there = places[0] == block
            if block in self.done:
                flags[there] = False
            elif block in self.some:
                flags[there] = ~self.some[block][places[1, there]]
        return None if flags.all() else flags

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The numbers of blocks that are done, from and to."""
        found: list[tuple[int, int]] = []
        for block in sorted(self.done):
            if found and found[-1][1] == block - 1:
                found[-1] = (found[-1][0], block)
            else:
                found.append((block, block))
        return found

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        some = {
            str(block): [len(flags), base64.b85encode(zlib.compress(np.packbits(flags).tobytes())).decode()]
            for block, flags in sorted(self.some.items())
        }
        return {"done": self.ranges, "some": some}

    @classmethod
    def of(cls, document: dict[str, Any]) -> Seen:
        """Read what :meth:`document` gave."""
        seen = cls()
        for first, last in document["done"]:
            seen.done.update(range(first, last + 1))
        for block, (rows, text) in document["some"].items():
            bits = np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8)
            seen.some[int(block)] = np.unpackbits(bits, count=rows).astype(bool)
        return seen

    def _join(self, block: int, flags: Flags) -> None:
        if block in self.done:
            return
        known = self.some.get(block)
        flags = flags if known is None else known | flags
        if flags.all():
            self._finish(block)
        else:
            self.some[block] = flags

    def _finish(self, block: int) -> None:
        self.done.add(block)
        self.some.pop(block, None)


@dataclass(frozen=True)
class ShardCursor:
    """How far all ranks have come in an epoch that Ray Data reads; it becomes JSON.

    Attributes:
        epoch: The epoch, from 0.
        source: The epoch whose blocks are read: an earlier one, where they are still in memory.
        seen: What was seen of it, as :meth:`Seen.document` has it.
    """

    epoch: int
    source: int
    seen: dict[str, Any] = field(default_factory=lambda: Seen().document())

    @classmethod
    def start(cls, epoch: int) -> ShardCursor:
        """Return the beginning of an epoch."""
        return cls(epoch, epoch)

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"epoch": self.epoch, "source": self.source, "seen": self.seen}

    @classmethod
    def joined(cls, epoch: int, source: int, ranks: Sequence[Seen]) -> ShardCursor:
        """Put together what all ranks have seen."""
        total = Seen()
        for seen in ranks:
            total.merge(seen)
        return cls(epoch, source, total.document())
