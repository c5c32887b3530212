"""Scores: loss, accuracy and area under the ROC curve of a binary classifier, over any number of workers.

Memory is bounded however many events there are: the ROC curve is kept as weights per distinct score. While
there are at most ``LIMIT`` distinct scores the area is exact; beyond, neighbouring scores are merged by
dropping the last bits of their float32 (counted from 0 below one half and from 1 above it, so that scores
close to certainty stay apart), which changes the area by far less than 1e-4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

LIMIT = 1 << 19
EPSILON = 1e-7

_HALF = int(np.float32(0.5).view(np.int32))


def cross_entropy(prediction: Floats, y: Floats) -> npt.NDArray[np.float64]:
    """Return the binary cross-entropy of each event, ``(events,)``."""
    p = np.clip(prediction.astype(np.float64), EPSILON, 1 - EPSILON)
    return -np.where(y > 0.5, np.log(p), np.log1p(-p))


@dataclass
class Scores:
    """Sums over events that give loss, accuracy and AUC.

    Attributes:
        events: Events counted.
        weight: Sum of their weights.
        loss: Weighted sum of the cross-entropy.
        right: Sum of the weights of the events on the right side of 0.5.
        roc: Weights of background and signal by score.
    """

    events: int = 0
    weight: float = 0.0
    loss: float = 0.0
    right: float = 0.0
    roc: RocCounts = field(default_factory=lambda: RocCounts())

    def add(self, prediction: Floats, y: Floats, weight: Floats) -> None:
        """Count some events; each array is ``(events,)``."""
        w = weight.astype(np.float64)
        self.events += len(y)
        self.weight += float(w.sum())
        self.loss += float(w @ cross_entropy(prediction, y))
        self.right += float(w @ ((prediction > 0.5) == (y > 0.5)))
        self.roc.add(prediction, y, w)

    def merge(self, other: Scores) -> None:
        """Count another worker's events too."""
        self.events += other.events
        self.weight += other.weight
        self.loss += other.loss
        self.right += other.right
        self.roc.merge(other.roc)

    def summary(self) -> dict[str, Any]:
        """Return ``auc``, ``loss``, ``accuracy`` (0.5, 0, 0 when nothing was counted), ``events``."""
        scale = 1.0 / self.weight if self.weight else 0.0
        return {
            "auc": self.roc.area(),
            "loss": self.loss * scale,
            "accuracy": self.right * scale,
            "events": self.events,
        }


class RocCounts:
    """Weights of background and signal by score, in at most ``limit`` places.

    Args:
        limit: Distinct scores kept apart.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._shift = 0
        self._keys: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._sums = np.empty((0, 2))

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, prediction: Floats, y: Floats, weight: npt.NDArray[np.float64]) -> None:
        """Count events of these scores (in [0, 1]), labels and weights, each ``(events,)``."""
        signal = y > 0.5
        sums = np.stack([np.where(signal, 0.0, weight), np.where(signal, weight, 0.0)], axis=1)
        self._insert(_ordinal(prediction) >> self._shift, sums)

    def merge(self, other: RocCounts) -> None:
        """Count another's events too."""
        shift = max(self._shift, other._shift)
        self._keys >>= shift - self._shift
        self._shift = shift
        self._insert(other._keys >> (shift - other._shift), other._sums)

    def area(self) -> float:
        """Return the weighted area under the ROC curve, ties counted half; 0.5 without both classes."""
        background, signal = self._sums[:, 0], self._sums[:, 1]
        total = float(background.sum()) * float(signal.sum())
        if total == 0.0:
            return 0.5
        below = np.cumsum(background) - 0.5 * background
        return float(signal @ below) / total

    def _insert(self, keys: npt.NDArray[np.int64], sums: npt.NDArray[np.float64]) -> None:
        self._keys, self._sums = _grouped(
            np.concatenate([self._keys, keys]), np.concatenate([self._sums, sums])
        )
        while len(self._keys) > self._limit:
            self._shift += 1
            self._keys, self._sums = _grouped(self._keys >> 1, self._sums)


def _ordinal(prediction: Floats) -> npt.NDArray[np.int64]:
    """Number scores in their order, finely near 0 and near 1."""
    p = np.clip(prediction, np.float32(0), np.float32(1)).astype(np.float32)
    low = np.minimum(p, np.float32(1) - p).view(np.int32).astype(np.int64)
    return np.asarray(np.where(p < 0.5, low, 2 * _HALF - low), dtype=np.int64)


def _grouped(
    keys: npt.NDArray[np.int64], sums: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Add up the sums of equal keys."""
    if len(keys) == 0:
        return keys, sums
    order = np.argsort(keys, kind="stable")
    keys, sums = keys[order], sums[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(sums, starts, axis=0)
