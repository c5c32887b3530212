"""Numbers of a report: curves, tests and tables, of weighted events; arrays in, arrays out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Roc:
    """A ROC curve.

    Attributes:
        fpr: Share of the background that is let through ``(points,)``, rising from 0 to 1.
        tpr: Share of the signal.
        error: Standard error of ``tpr``.
        threshold: Score above which events are let through.
        area: Area below the curve, ties counted half.
        area_error: Its standard error.
    """

    fpr: Array
    tpr: Array
    error: Array
    threshold: Array
    area: float
    area_error: float


def effective(weight: npt.ArrayLike) -> float:
    """Return how many events of equal weight would fluctuate as much: (sum w)² / sum w²."""
    w = np.asarray(weight, np.float64)
    squares = float((w**2).sum())
    return float(w.sum()) ** 2 / squares if squares > 0 else 0.0


def roc(score: npt.ArrayLike, signal: npt.NDArray[np.bool_], weight: npt.ArrayLike) -> Roc | None:
    """Return the ROC curve of weighted scores; None without events of both kinds.

    The error of the area is that of Hanley and McNeil, Radiology 143 (1982) 29, with effective numbers.
    """
    s, w = np.asarray(score, np.float64), np.asarray(weight, np.float64)
    order = np.argsort(-s, kind="stable")
    s, w, signal = s[order], w[order], signal[order]
    last = np.append(s[1:] != s[:-1], True)
    passed, through = np.cumsum(np.where(signal, w, 0.0)), np.cumsum(np.where(signal, 0.0, w))
    total, rest = passed[-1] if len(s) else 0.0, through[-1] if len(s) else 0.0
    if total <= 0 or rest <= 0:
        return None
    tpr, fpr = np.append(0.0, passed[last] / total), np.append(0.0, through[last] / rest)
    area = float(np.trapezoid(tpr, fpr))
    n_signal, n_background = effective(w[signal]), effective(w[~signal])
    clipped = np.clip(tpr, 0.0, 1.0)  # weights may be negative
    error = np.sqrt(clipped * (1 - clipped) / n_signal)
    threshold = np.append(np.inf, s[last])
    return Roc(fpr, tpr, error, threshold, area, area_error(area, n_signal, n_background))


def area_error(area: float, n_signal: float, n_background: float) -> float:
    """Return the standard error of an area under a ROC curve, after Hanley and McNeil."""
    if min(n_signal, n_background) <= 0:
        return math.inf
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (n_signal - 1) * (q1 - area**2) + (n_background - 1) * (q2 - area**2)
    return math.sqrt(max(0.0, variance) / (n_signal * n_background))


def kolmogorov_smirnov(
    one: npt.ArrayLike, one_weight: npt.ArrayLike, other: npt.ArrayLike, other_weight: npt.ArrayLike
) -> tuple[float, float]:
    """Compare two weighted samples.

    Returns:
        The largest distance of their cumulative distributions, and the probability of at least that if both
        come from one distribution (asymptotic, with effective numbers); NaN when one sample is empty.
    """
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    wa, wb = np.asarray(one_weight, np.float64), np.asarray(other_weight, np.float64)
    if wa.sum() <= 0 or wb.sum() <= 0:
        return math.nan, math.nan
    values = np.unique(np.concatenate([a, b]))
    distance = float(np.abs(_cumulated(a, wa, values) - _cumulated(b, wb, values)).max())
    na, nb = effective(wa), effective(wb)
    n = math.sqrt(na * nb / (na + nb))
    x = (n + 0.12 + 0.11 / n) * distance
    terms = [2 * (-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101)]
    return distance, min(1.0, max(0.0, sum(terms))) if x > 0.2 else 1.0


def _cumulated(values: Array, weight: Array, at: Array) -> Array:
    order = np.argsort(values)
    below = np.append(0.0, np.cumsum(weight[order]))
    return np.asarray(below[np.searchsorted(values[order], at, side="right")] / below[-1])


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities mean what they say.

    Attributes:
        predicted: Mean prediction of each bin with events.
        observed: Share of signal among them.
        error: Standard error of that.
        brier: Mean squared distance of prediction and truth.
        expected_error: Mean distance of prediction and share, by bin.
    """

    predicted: Array
    observed: Array
    error: Array
    brier: float
    expected_error: float


def calibration(
    score: npt.ArrayLike, signal: npt.NDArray[np.bool_], weight: npt.ArrayLike, bins: int = 15
) -> Calibration:
    """Compare predicted probabilities with what came, in bins of equally many events."""
    s, w = np.asarray(score, np.float64), np.maximum(np.asarray(weight, np.float64), 0.0)
    edges = np.unique(np.quantile(s, np.linspace(0, 1, bins + 1))) if len(s) else np.zeros(1)
    place = np.clip(np.searchsorted(edges, s, side="right") - 1, 0, max(0, len(edges) - 2))
    count = max(1, len(edges) - 1)
    sums = np.bincount(place, w, count)
    there = sums > 0
    sums = sums[there]
    predicted = np.bincount(place, w * s, count)[there] / sums
    observed = np.bincount(place, w * signal, count)[there] / sums
    n = sums**2 / np.bincount(place, w**2, count)[there]
    error = np.sqrt(np.clip(observed * (1 - observed), 0.25 / n, None) / n)
    total = float(w.sum()) or 1.0
    brier = float(w @ (s - signal) ** 2) / total
    return Calibration(predicted, observed, error, brier, float(sums @ np.abs(predicted - observed)) / total)


def confusion(truth: npt.ArrayLike, choice: npt.ArrayLike, weight: npt.ArrayLike, classes: int) -> Array:
    """Return the share of each true class (rows) that was taken for each class (columns)."""
    cells = np.asarray(truth, np.int64) * classes + np.asarray(choice, np.int64)
    matrix = np.bincount(cells, np.asarray(weight, np.float64), classes**2).reshape(classes, classes)
    totals = matrix.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0))


def best_cut(curve: Roc, signal: float, background: float) -> tuple[float, float]:
    """Return the threshold at which S/√(S+B) is largest, and what it is there.

    Args:
        curve: The ROC curve.
        signal: Expected signal events before the cut.
        background: Expected background events.
    """
    s, b = signal * curve.tpr, background * curve.fpr
    with np.errstate(invalid="ignore", divide="ignore"):
        significance = np.where(s + b > 0, s / np.sqrt(s + b), 0.0)
    best = int(np.argmax(significance))
    return float(curve.threshold[best]), float(significance[best])
