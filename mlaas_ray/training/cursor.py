"""Cursor: how far an epoch has come, so that another group of workers sees the rest of it, each event once.

A rank's events come in *windows*: some of its blocks that lie in memory together, in an order drawn from the
seed, the epoch and the window's first block. So what was seen is a number of events of each window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlaas_ray.training.batches import Integers


@dataclass(frozen=True)
class Part:
    """A window of which some events were seen.

    Attributes:
        blocks: Its blocks.
        size: Events it holds.
        seen: How many of them, from the first of its order on.
    """

    blocks: tuple[int, ...]
    size: int
    seen: int


@dataclass(frozen=True)
class Position:
    """How far one rank has come.

    Attributes:
        taken: Blocks of its deal that are in windows, these or earlier ones.
        parts: Its windows that are in memory, in their order.
    """

    taken: int
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Cursor:
    """How far all ranks have come in an epoch; it becomes JSON.

    The blocks of an epoch are dealt to the ranks in turn, like cards. When another number of workers goes on,
    what nobody had taken is dealt again.

    Attributes:
        epoch: The epoch, from 0.
        source: The epoch whose blocks are read: an earlier one, where they are still in memory.
        dealt: For each deal, how many of its blocks each rank took.
        parts: Windows in memory, by rank.
    """

    epoch: int
    source: int
    dealt: tuple[tuple[int, ...], ...] = ()
    parts: tuple[tuple[Part, ...], ...] = ()

    @classmethod
    def start(cls, epoch: int) -> Cursor:
        """Return the beginning of an epoch."""
        return cls(epoch, epoch)

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    @classmethod
    def of(cls, document: dict[str, Any]) -> Cursor:
        """Read what :meth:`document` gave."""
        parts = tuple(
            tuple(Part(tuple(part["blocks"]), part["size"], part["seen"]) for part in own)
            for own in document["parts"]
        )
        dealt = tuple(tuple(own) for own in document["dealt"])
        return cls(document["epoch"], document["source"], dealt, parts)

    def deal(self, blocks: int, rank: int, size: int) -> Deal:
        """Return what one of ``size`` ranks is to read, of an epoch of so many blocks."""
        if len(self.parts) == size:  # the same group goes on where it was
            before, taken = self.dealt[:-1], self.dealt[-1][rank]
            parts = list(self.parts[rank])
        else:
            before, taken = self.dealt, 0
            open_parts = [part for own in self.parts for part in own if part.seen < part.size]
            parts = open_parts[rank::size]
        return Deal(before, parts, _left(blocks, before)[rank::size], taken)


@dataclass(frozen=True)
class Deal:
    """What one rank is to read.

    Attributes:
        before: Earlier deals of the epoch.
        parts: Windows to go on with.
        blocks: All blocks dealt to it now, in order.
        taken: How many of them are in ``parts``, or were used up before.
    """

    before: tuple[tuple[int, ...], ...]
    parts: list[Part]
    blocks: Integers
    taken: int


def joined(epoch: int, source: int, before: Sequence[tuple[int, ...]], ranks: Sequence[Position]) -> Cursor:
    """Put together what all ranks say of themselves."""
    taken = tuple(position.taken for position in ranks)
    return Cursor(epoch, source, (*before, taken), tuple(position.parts for position in ranks))


def _left(blocks: int, dealt: Sequence[Sequence[int]]) -> Integers:
    """Return the blocks that nobody took in some deals."""
    left: Integers = np.arange(blocks, dtype=np.int64)
    for taken in dealt:
        hands = [left[rank :: len(taken)][count:] for rank, count in enumerate(taken)]
        left = np.sort(np.concatenate(hands))
    return left
