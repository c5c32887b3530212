"""Scores: what predictions are worth, over any number of events and workers; memory is bounded.

ROC curves are kept as weights per distinct score. While there are at most ``LIMIT`` of them the area is
exact; beyond, neighbouring scores are merged by dropping the last bits of their float32 (counted from 0 below
one half and from 1 above it, so that scores close to certainty stay apart), which changes the area by far
less than 1e-4.

Every number is a mean over events with the weights that count in training (see ``Weighting``), negative ones
included where they keep their sign. What these weights do not define is None, never a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.task import Task

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

LIMIT = 1 << 19
EPSILON = 1e-7
# Where the Huber loss turns from squares to absolute values, in deviations of the target.
HUBER = 1.0

_HALF = int(np.float32(0.5).view(np.int32))


def losses(task: Task, prediction: Floats, y: Floats) -> Doubles:
    """Return the loss of each event, ``(events,)``, as it is minimised.

    Args:
        task: What was to be learnt.
        prediction: The model's answers ``(events, outputs)``.
        y: Class numbers or targets.
    """
    answers = prediction.astype(np.float64)
    if task.kind == "binary":
        p = np.clip(answers[:, 0], EPSILON, 1 - EPSILON)
        return np.asarray(-np.where(y > 0.5, np.log(p), np.log1p(-p)))
    if task.kind == "multiclass":
        p = np.take_along_axis(answers, y.astype(np.int64)[:, None], axis=1)[:, 0]
        return np.asarray(-np.log(np.clip(p, EPSILON, 1.0)))
    apart = (answers - y.reshape(answers.shape)) / np.asarray(task.scale)
    return np.asarray(_regression_loss(task, apart).mean(axis=1))


def _regression_loss(task: Task, apart: Doubles) -> Doubles:
    size = np.abs(apart)
    if task.loss == "mae":
        return size
    if task.loss == "huber":
        return np.where(size < HUBER, 0.5 * apart**2, HUBER * (size - 0.5 * HUBER))
    return apart**2


def area_under(background: npt.NDArray[Any], signal: npt.NDArray[Any]) -> float | None:
    """Return the weighted area under the ROC curve: the share of pairs in the right order, ties counted half.

    Args:
        background: Sum of weights at each distinct score, in rising order.
        signal: The same of the signal.

    Returns:
        None unless both sums of weights are positive.
    """
    rest, total = float(background.sum()), float(signal.sum())
    if not (rest > 0 and total > 0):
        return None
    return float(signal @ (np.cumsum(background) - 0.5 * background)) / (rest * total)


def explained(
    unexplained: npt.NDArray[Any], variance: npt.NDArray[Any], size: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Return R² of each target; NaN where the truth does not vary.

    Args:
        unexplained: Weighted mean of the squared errors.
        variance: Weighted variance of the truth.
        size: Weighted mean of its squares, whose rounding errors are no variance.
    """
    known = variance > 1e-12 * np.abs(size)
    return np.where(known, 1.0 - unexplained / np.where(known, variance, 1.0), np.nan)


def mean_of_known(values: Sequence[float | None] | npt.NDArray[Any]) -> float | None:
    """Return the mean of the numbers that are defined; None when none is."""
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    known = numbers[np.isfinite(numbers)]
    return float(known.mean()) if len(known) else None


class Scores(Protocol):
    """Sums over events that tell what predictions are worth."""

    events: int
    weight: float

    def add(self, prediction: Floats, y: Floats, weight: Floats) -> None:
        """Count events: answers ``(events, outputs)``, class numbers or targets, weights ``(events,)``."""

    def merge(self, other: Self) -> None:
        """Count another worker's events too."""

    def summary(self) -> dict[str, Any]:
        """Return ``loss``, ``events`` and what the task is judged by, each None where it is not defined.

        ``without`` names the classes (or targets) that the AUC (or R²) leaves out, when there are some.
        """

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that was counted."""

    def load(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take over what :meth:`arrays` gave."""


def scores_of(task: Task) -> Scores:
    """Return empty scores for a task."""
    return TargetScores(task) if task.kind == "regression" else ClassScores(task)


class _Sums:
    """What all scores count.

    Attributes:
        events: Events counted.
        weight: Sum of their weights.
        loss: Weighted sum of their losses.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.events = 0
        self.weight = 0.0
        self.loss = 0.0

    def _count(self, prediction: Floats, y: Floats, w: Doubles) -> None:
        self.events += len(y)
        self.weight += float(w.sum())
        self.loss += float(w @ losses(self.task, prediction, y))

    def _merge(self, other: _Sums) -> None:
        self.events += other.events
        self.weight += other.weight
        self.loss += other.loss

    def _mean(self, total: float) -> float | None:
        return total / self.weight if self.weight > 0 else None

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that was counted."""
        return {"sums": np.array([self.events, self.weight, self.loss])}

    def load(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take over what :meth:`arrays` gave."""
        events, self.weight, self.loss = arrays["sums"].tolist()
        self.events = int(events)


class ClassScores(_Sums):
    """Loss, accuracy and area under the ROC curve, over classes the mean of each against the others."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.right = 0.0
        self.rocs = [RocCounts() for _ in range(task.outputs)]

    def add(self, prediction: Floats, y: Floats, weight: Floats) -> None:
        """Count some events; see :class:`Scores`."""
        w = weight.astype(np.float64)
        self._count(prediction, y, w)
        if self.task.kind == "binary":
            self.right += float(w @ ((prediction[:, 0] > 0.5) == (y > 0.5)))
            self.rocs[0].add(prediction[:, 0], y, w)
            return
        self.right += float(w @ (prediction.argmax(axis=1) == y)) if len(y) else 0.0
        for number, roc in enumerate(self.rocs):
            roc.add(prediction[:, number], (y == number).astype(np.float32), w)

    def merge(self, other: ClassScores) -> None:
        """Count another worker's events too."""
        self._merge(other)
        self.right += other.right
        for own, theirs in zip(self.rocs, other.rocs, strict=True):
            own.merge(theirs)

    def summary(self) -> dict[str, Any]:
        """Return ``auc``, ``loss``, ``accuracy`` and ``events``; of several classes also ``auc_by_class``.

        A class whose weights do not come to more than 0 has no curve: the mean is that of the others.
        """
        names = self.task.names
        areas = [roc.area() for roc in self.rocs]
        sums = self.rocs[0].sums if self.task.kind == "binary" else [roc.sums[1] for roc in self.rocs]
        without = [name for name, total in zip(names, sums, strict=True) if not total > 0]
        several = self.task.kind == "multiclass"
        return {
            "auc": mean_of_known(areas),
            "loss": self._mean(self.loss),
            "accuracy": self._mean(self.right),
            "events": self.events,
            **({"auc_by_class": dict(zip(names, areas, strict=True))} if several else {}),
            **({"without": without} if without else {}),
        }

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that was counted."""
        rocs = {
            f"{name}_{number}": values
            for number, roc in enumerate(self.rocs)
            for name, values in roc.arrays().items()
        }
        return {**super().arrays(), "right": np.array(self.right), **rocs}

    def load(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take over what :meth:`arrays` gave."""
        super().load(arrays)
        self.right = float(arrays["right"])
        for number, roc in enumerate(self.rocs):
            roc.load(*(arrays[f"{name}_{number}"] for name in ("keys", "weights", "shift")))


class TargetScores(_Sums):
    """Loss, mean absolute and root mean square error, and the share of the variance that is explained."""

    _counted = ("absolute", "squares", "first", "second")

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        count = len(task.names)
        self.absolute, self.squares = np.zeros(count), np.zeros(count)
        # of the targets, about the task's offset: sums that do not lose digits
        self.first, self.second = np.zeros(count), np.zeros(count)

    def add(self, prediction: Floats, y: Floats, weight: Floats) -> None:
        """Count some events; see :class:`Scores`."""
        w = weight.astype(np.float64)
        self._count(prediction, y, w)
        truth = y.reshape(prediction.shape).astype(np.float64)
        apart = prediction - truth
        about = truth - np.asarray(self.task.offset)
        self.absolute += w @ np.abs(apart)
        self.squares += w @ apart**2
        self.first += w @ about
        self.second += w @ about**2

    def merge(self, other: TargetScores) -> None:
        """Count another worker's events too."""
        self._merge(other)
        for name in self._counted:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def summary(self) -> dict[str, Any]:
        """Return ``r2``, ``loss``, ``mae``, ``rmse`` (of several targets the means) and ``events``."""
        weight = self.weight if self.weight > 0 else np.nan
        size, unexplained = self.second / weight, self.squares / weight
        r2 = explained(unexplained, size - (self.first / weight) ** 2, size)
        without = [name for name, value in zip(self.task.names, r2, strict=True) if np.isnan(value)]
        with np.errstate(invalid="ignore"):  # weights may be negative
            errors = np.sqrt(unexplained)
        return {
            "r2": mean_of_known(r2),
            "loss": self._mean(self.loss),
            "mae": mean_of_known(self.absolute / weight),
            "rmse": mean_of_known(errors),
            "events": self.events,
            **({"without": without} if without else {}),
        }

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that was counted."""
        return {**super().arrays(), "targets": np.stack([getattr(self, name) for name in self._counted])}

    def load(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take over what :meth:`arrays` gave."""
        super().load(arrays)
        for name, values in zip(self._counted, arrays["targets"], strict=True):
            setattr(self, name, values)


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

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that was counted."""
        return {"keys": self._keys, "weights": self._sums, "shift": np.array(self._shift)}

    def load(self, keys: npt.NDArray[Any], weights: npt.NDArray[Any], shift: npt.NDArray[Any]) -> None:
        """Take over what :meth:`arrays` gave."""
        self._keys, self._sums, self._shift = keys, weights, int(shift)

    @property
    def sums(self) -> tuple[float, float]:
        """Sums of weights of background and signal."""
        background, signal = self._sums.sum(axis=0).tolist()
        return background, signal

    def area(self) -> float | None:
        """Return the weighted area under the ROC curve; see :func:`area_under`."""
        return area_under(self._sums[:, 0], self._sums[:, 1])

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
