"""Numbers of a report: curves, tests and tables, of weighted events; arrays in, arrays out.

Weights may be negative: every sum is of the weights as they are given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlaas_ray.training.metrics import area_under

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
    """Return the ROC curve of weighted scores; None unless the weights of both kinds come to more than 0.

    The error of the area is that of Hanley and McNeil, Radiology 143 (1982) 29, with effective numbers.
    """
    s, w = np.asarray(score, np.float64), np.asarray(weight, np.float64)
    order = np.argsort(-s, kind="stable")
    s, w, signal = s[order], w[order], signal[order]
    last = np.append(s[1:] != s[:-1], True)[: len(s)]
    passed, through = np.cumsum(np.where(signal, w, 0.0)), np.cumsum(np.where(signal, 0.0, w))
    tpr, fpr = np.append(0.0, passed[last]), np.append(0.0, through[last])
    area = area_under(np.diff(fpr)[::-1], np.diff(tpr)[::-1])
    if area is None:
        return None
    tpr, fpr = tpr / tpr[-1], fpr / fpr[-1]
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
        predicted: Mean prediction of each bin whose weights come to more than 0.
        observed: Share of signal among its events.
        error: Standard error of that.
        brier: Mean squared distance of prediction and truth; NaN unless all weights come to more than 0.
        expected_error: Mean distance of prediction and share, by bin; all bins count.
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
    s, w = np.asarray(score, np.float64), np.asarray(weight, np.float64)
    edges = np.unique(np.quantile(s, np.linspace(0, 1, bins + 1))) if len(s) else np.zeros(1)
    place = np.clip(np.searchsorted(edges, s, side="right") - 1, 0, max(0, len(edges) - 2))
    count = max(1, len(edges) - 1)
    sums, squares = np.bincount(place, w, count), np.bincount(place, w**2, count)
    promised, came = np.bincount(place, w * s, count), np.bincount(place, w * signal, count)
    total = float(w.sum()) if w.sum() > 0 else math.nan
    brier = float(w @ (s - signal) ** 2) / total
    expected_error = float(np.abs(promised - came).sum()) / total
    there = sums > 0
    observed = np.divide(came, sums, out=np.zeros_like(sums), where=there)
    spread = np.sqrt(np.bincount(place, w**2 * (signal - observed[place]) ** 2, count))
    # at least that of half an event
    error = np.maximum(spread[there], 0.5 * squares[there] / sums[there]) / sums[there]
    return Calibration(promised[there] / sums[there], observed[there], error, brier, expected_error)


def confusion(truth: npt.ArrayLike, choice: npt.ArrayLike, weight: npt.ArrayLike, classes: int) -> Array:
    """Return the share of each true class (rows) that was taken for each class (columns)."""
    matrix = _taken(truth, choice, weight, classes)
    totals = matrix.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0))


def purities(truth: npt.ArrayLike, choice: npt.ArrayLike, weight: npt.ArrayLike, classes: int) -> Array:
    """Return what share of the events taken for each class is of it; NaN where none is taken for it."""
    matrix = _taken(truth, choice, weight, classes)
    totals = matrix.sum(axis=0)
    return np.asarray(np.divide(np.diag(matrix), totals, out=np.full(classes, np.nan), where=totals > 0))


def _taken(truth: npt.ArrayLike, choice: npt.ArrayLike, weight: npt.ArrayLike, classes: int) -> Array:
    cells = np.asarray(truth, np.int64) * classes + np.asarray(choice, np.int64)
    found: Array = np.bincount(cells, np.asarray(weight, np.float64), classes**2).astype(np.float64)
    return found.reshape(classes, classes)


def moments(values: npt.ArrayLike, weight: npt.ArrayLike) -> tuple[float, float]:
    """Return weighted mean and standard deviation; NaN where the weights do not define them."""
    v, w = np.asarray(values, np.float64), np.asarray(weight, np.float64)
    total = float(w.sum())
    if not total > 0:
        return math.nan, math.nan
    mean = float(w @ v) / total
    variance = float(w @ (v - mean) ** 2) / total
    return mean, math.sqrt(variance) if variance >= 0 else math.nan


def correlations(columns: npt.ArrayLike, weight: npt.ArrayLike) -> Array:
    """Return weighted linear correlations of columns ``(events, columns)``, each where both are finite.

    NaN where one of them does not vary.
    """
    x, w = np.asarray(columns, np.float64), np.asarray(weight, np.float64)
    there = np.isfinite(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        # about their means, which changes nothing but digits
        x = np.where(there, x - (w @ np.where(there, x, 0.0)) / (w @ there), 0.0)
        weighted, seen = w[:, None] * x, there.astype(np.float64)
        n = (w[:, None] * seen).T @ seen
        first, second = weighted.T @ seen / n, (weighted * x).T @ seen / n
        spread = np.sqrt((second - first**2) * (second - first**2).T)
        return np.asarray((weighted.T @ x / n - first * first.T) / spread)


@dataclass(frozen=True)
class Profile:
    """Weighted mean of a number in bins of another.

    Attributes:
        edges: Of the bins ``(bins + 1,)``.
        mean: Of the events in each; NaN where their weights do not come to more than 0.
        error: Standard error of it.
    """

    edges: Array
    mean: Array
    error: Array


def profile(at: npt.ArrayLike, values: npt.ArrayLike, weight: npt.ArrayLike, edges: Array) -> Profile:
    """Return the mean of values in bins of another number; what lies outside the edges is left out."""
    a, v, w = (np.asarray(array, np.float64) for array in (at, values, weight))
    count = len(edges) - 1
    place = np.searchsorted(edges, a, side="right") - 1
    place[a == edges[-1]] = count - 1
    inside = (place >= 0) & (place < count)
    place, v, w = place[inside], v[inside], w[inside]
    sums = np.bincount(place, w, count)
    sums = np.where(sums > 0, sums, np.nan)
    mean = np.bincount(place, w * v, count) / sums
    return Profile(edges, mean, np.sqrt(np.bincount(place, w**2 * (v - mean[place]) ** 2, count)) / sums)


def significances(curve: Roc, signal: float, background: float) -> Array:
    """Return S/√(S+B) at each threshold of a ROC curve, for so much expected signal and background."""
    s, b = signal * curve.tpr, background * curve.fpr
    return np.where(s + b > 0, s / np.sqrt(np.where(s + b > 0, s + b, 1.0)), 0.0)


def best_cut(curve: Roc, signal: float, background: float) -> tuple[float, float]:
    """Return the threshold at which S/√(S+B) is largest, and what it is there.

    Args:
        curve: The ROC curve.
        signal: Expected signal events before the cut.
        background: Expected background events.
    """
    significance = significances(curve, signal, background)
    best = int(np.argmax(significance))
    return float(curve.threshold[best]), float(significance[best])
