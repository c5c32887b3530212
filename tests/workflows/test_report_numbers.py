"""Every number of the report is scikit-learn's; where that refuses negative weights, one sorted plainly."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from mlaas_ray.core.task import Task
from mlaas_ray.training.metrics import scores_of
from mlaas_ray.training.settings import Weighting
from mlaas_ray.workflows.report import figures
from mlaas_ray.workflows.report.answers import Answers
from mlaas_ray.workflows.report.numbers import (
    calibration,
    confusion,
    correlations,
    kolmogorov_smirnov,
    moments,
    profile,
    purities,
    roc,
    significances,
)

COUNT = 4003
TASKS = {
    2: Task(),
    5: Task(kind="multiclass", names=("u", "d", "s", "c", "b")),
}
TARGETS = Task(kind="regression", names=("E", "m"), offset=(50.0, 3.0), scale=(10.0, 2.0))
# how weights count: as read, NLO signs kept, made positive, left out, and classes balanced
KINDS = {
    "plain": (Weighting(), 0.0),
    "weighted": (Weighting((0.5,)), 0.0),
    "negative": (Weighting((1.5,), "keep"), 0.25),
    "absolute": (Weighting((1.5,), "absolute"), 0.25),
    "zero": (Weighting((1.5,), "zero"), 0.25),
    "balanced": (Weighting((3.0, 0.4, 1.0, 2.0, 0.7), "absolute"), 0.25),
}


def weights(kind: str, y: np.ndarray) -> np.ndarray:
    weighting, negative = KINDS[kind]
    random = np.random.default_rng(7)
    read = np.ones(COUNT) if kind == "plain" else random.uniform(0.2, 2.0, COUNT)
    read[random.random(COUNT) < negative] *= -1
    return weighting.of(y, read.astype(np.float32))


def classes(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Answers that are float32 numbers, some of them equal, and the truth."""
    random = np.random.default_rng(3)
    y = random.integers(0, task.classes, COUNT)
    raw = np.exp(random.normal(np.eye(task.classes)[y] * 1.5, 1.0))
    p = (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)
    return (np.round(p[:, 1:], 3) if task.kind == "binary" else p), y.astype(np.float32)


def each_class(task: Task, p: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    if task.kind == "binary":
        return [(p[:, 0], y == 1)]
    return [(p[:, number], y == number) for number in range(task.classes)]


def plain_area(score: np.ndarray, signal: np.ndarray, weight: np.ndarray) -> float:
    """Count all pairs, which takes weights of any sign."""
    own, other = score[signal], np.sort(score[~signal])
    w = weight[~signal].astype(float)[np.argsort(score[~signal], kind="stable")]
    below = np.append(0.0, np.cumsum(w))
    low, high = (below[np.searchsorted(other, own, side=side)] for side in ("left", "right"))
    return float(
        weight[signal].astype(float) @ (low + high) / 2 / (weight[signal].sum(dtype=float) * w.sum())
    )


def reference_area(score: np.ndarray, signal: np.ndarray, weight: np.ndarray) -> float:
    plain = plain_area(score, signal, weight)
    if (weight >= 0).all():
        assert sk.roc_auc_score(signal, score, sample_weight=weight) == pytest.approx(plain, rel=1e-9)
    return plain


def mean(values: np.ndarray, weight: np.ndarray) -> float:
    return float(np.average(values.astype(float), weights=weight.astype(float)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", TASKS)
def test_scores_of_classes_are_scikit_learns(count: int, kind: str) -> None:
    task = TASKS[count]
    p, y = classes(task)
    w = weights(kind, y)
    scores = scores_of(task)
    scores.add(p, y, w)
    summary = scores.summary()
    areas = [reference_area(score, signal, w) for score, signal in each_class(task, p, y)]
    assert summary["auc"] == pytest.approx(np.mean(areas), rel=1e-9)
    whole = np.column_stack([1 - p, p]) if task.kind == "binary" else p
    choice = whole.argmax(axis=1)
    own = np.clip(whole[np.arange(COUNT), y.astype(int)].astype(float), 1e-7, 1 - 1e-7)
    assert summary["accuracy"] == pytest.approx(mean(choice == y, w), rel=1e-6)
    assert summary["loss"] == pytest.approx(mean(-np.log(own), w), rel=1e-5)
    if (w >= 0).all():
        assert summary["accuracy"] == pytest.approx(sk.accuracy_score(y, choice, sample_weight=w), rel=1e-6)
        exact = np.clip(whole.astype(float), 1e-7, None)
        loss = sk.log_loss(y, exact / exact.sum(axis=1, keepdims=True), sample_weight=w)
        assert summary["loss"] == pytest.approx(loss, rel=1e-5)
        if task.kind == "multiclass":
            several = sk.roc_auc_score(np.eye(task.classes)[y.astype(int)], p, sample_weight=w)
            assert summary["auc"] == pytest.approx(several, rel=1e-9)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "balanced"])
def test_scores_of_targets_are_scikit_learns(kind: str, loss: str) -> None:
    task = TARGETS.model_copy(update={"loss": loss})
    random = np.random.default_rng(5)
    y = random.normal([50, 3], [10, 2], (COUNT, 2)).astype(np.float32)
    p = (y + random.normal(0, [4, 1], (COUNT, 2))).astype(np.float32)
    w = weights(kind, y)
    scores = scores_of(task)
    scores.add(p, y, w)
    found = scores.summary()
    apart = p.astype(float) - y
    squares = [mean(apart[:, i] ** 2, w) for i in range(2)]
    spread = [mean((y[:, i] - mean(y[:, i], w)) ** 2, w) for i in range(2)]
    assert found["r2"] == pytest.approx(1 - np.mean(np.divide(squares, spread)), rel=1e-5)
    assert found["rmse"] == pytest.approx(np.mean(np.sqrt(squares)), rel=1e-5)
    assert found["mae"] == pytest.approx(np.mean([mean(np.abs(apart[:, i]), w) for i in range(2)]), rel=1e-5)
    size = np.abs(apart / [10, 2])
    each = {"mse": size**2, "mae": size, "huber": np.where(size < 1, size**2 / 2, size - 0.5)}[loss]
    assert found["loss"] == pytest.approx(mean(each.mean(axis=1), w), rel=1e-5)
    if (w >= 0).all():
        assert found["r2"] == pytest.approx(sk.r2_score(y, p, sample_weight=w), rel=1e-5)
        assert found["mae"] == pytest.approx(sk.mean_absolute_error(y, p, sample_weight=w), rel=1e-5)
        assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(y, p, sample_weight=w), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", TASKS)
def test_curves_are_scikit_learns(count: int, kind: str) -> None:
    task = TASKS[count]
    p, y = classes(task)
    w = weights(kind, y)
    scores = scores_of(task)
    scores.add(p, y, w)
    areas = []
    for score, signal in each_class(task, p, y):
        curve = roc(score, signal, w)
        assert curve is not None
        assert curve.area == pytest.approx(reference_area(score, signal, w), rel=1e-9)
        areas.append(curve.area)
        for cut in (0.2, 0.5, 0.9):
            place = np.flatnonzero(curve.threshold >= np.float32(cut))[-1]
            passes = score >= curve.threshold[place]
            assert curve.tpr[place] == pytest.approx(mean(passes[signal], w[signal]), abs=1e-9)
            assert curve.fpr[place] == pytest.approx(mean(passes[~signal], w[~signal]), abs=1e-9)
        if (w > 0).all():
            fpr, tpr, threshold = sk.roc_curve(signal, score, sample_weight=w, drop_intermediate=False)
            np.testing.assert_allclose(curve.threshold[1:], threshold[1:])
            np.testing.assert_allclose(curve.tpr, tpr, atol=1e-6)
            np.testing.assert_allclose(curve.fpr, fpr, atol=1e-6)
    # the number beside the curve is the number of the tile
    assert np.mean(areas) == pytest.approx(scores.summary()["auc"], rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", TASKS)
def test_calibration_is_scikit_learns(count: int, kind: str) -> None:
    task = TASKS[count]
    p, y = classes(task)
    w = weights(kind, y)
    for score, signal in each_class(task, p.astype(float), y):
        found = calibration(score, signal, w)
        squares = (score - signal) ** 2
        assert found.brier == pytest.approx(mean(squares, w), rel=1e-6)
        if (w >= 0).all():
            brier = sk.brier_score_loss(signal, score, sample_weight=w)
            assert found.brier == pytest.approx(brier, rel=1e-6)
        edges = np.unique(np.quantile(score, np.linspace(0, 1, 16)))
        place = np.clip(np.searchsorted(edges, score, "right") - 1, 0, len(edges) - 2)
        there = [place == number for number in range(len(edges) - 1)]
        np.testing.assert_allclose(found.predicted, [mean(score[one], w[one]) for one in there], rtol=1e-6)
        np.testing.assert_allclose(found.observed, [mean(signal[one], w[one]) for one in there], atol=1e-6)
        apart = [abs(w[one].astype(float) @ (score[one] - signal[one])) for one in there]
        assert found.expected_error == pytest.approx(sum(apart) / w.sum(dtype=float), rel=1e-6)
        if kind == "plain" and task.kind == "multiclass":
            observed, predicted = calibration_curve(signal, score, n_bins=15, strategy="quantile")
            np.testing.assert_allclose(found.observed, observed, atol=0.005)
            np.testing.assert_allclose(found.predicted, predicted, atol=0.005)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", TASKS)
def test_efficiencies_and_purities_are_scikit_learns(count: int, kind: str) -> None:
    task = TASKS[count]
    p, y = classes(task)
    w = weights(kind, y)
    zeros = np.zeros(COUNT, np.int32)
    choice = Answers(p, y, w, zeros, COUNT).choice(task)
    matrix = np.array(
        [[w[(y == i) & (choice == j)].sum(dtype=float) for j in range(count)] for i in range(count)]
    )
    rows = matrix / matrix.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(confusion(y, choice, w, count), rows, atol=1e-6)
    purity = np.diag(matrix) / matrix.sum(axis=0)
    np.testing.assert_allclose(purities(y, choice, w, count), purity, atol=1e-6)
    if (w >= 0).all():
        known = sk.confusion_matrix(y, choice, sample_weight=w, normalize="true")
        np.testing.assert_allclose(rows, known, atol=1e-6)
        np.testing.assert_allclose(np.diag(rows), sk.recall_score(y, choice, sample_weight=w, average=None))
        np.testing.assert_allclose(purity, sk.precision_score(y, choice, sample_weight=w, average=None))


def test_a_calibrated_score_under_signed_weights_is_calibrated() -> None:
    random = np.random.default_rng(0)
    count = 200_000
    y = random.random(count) < 0.5
    x = random.normal(y * 1.0, 1, count)
    w = np.where(random.random(count) < np.where(y, 0.3, 0.0), -1.0, 1.0)
    w[y] /= w[y].mean()
    p = 1 / (1 + np.exp(-(x - 0.5)))
    assert calibration(p, y, w).expected_error < 0.01


def test_the_agreement_of_two_samples_is_scipys() -> None:
    scipy = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(4)
    one, other = random.normal(size=900), random.normal(0.08, 1, size=1100)
    distance, p = kolmogorov_smirnov(one, np.ones(900), other, np.ones(1100))
    known = scipy.ks_2samp(one, other, method="asymp")
    assert (distance, p) == (pytest.approx(known.statistic), pytest.approx(known.pvalue, rel=0.1))
    # an event and its negative are none
    more = np.append(one, [5.0, 5.0]), np.append(np.ones(900), [3.0, -3.0])
    assert kolmogorov_smirnov(*more, other, np.ones(1100))[0] == pytest.approx(distance)


@pytest.mark.parametrize("negative", [0.0, 0.3])
def test_means_profiles_and_correlations_are_weighted(negative: float) -> None:
    random = np.random.default_rng(8)
    x = random.normal(5, 2, (2000, 3))
    x[:, 1] += x[:, 0]
    w = random.uniform(0.1, 3, 2000) * np.where(random.random(2000) < negative, -1, 1)
    assert moments(x[:, 0], w) == pytest.approx(
        (mean(x[:, 0], w), np.sqrt(mean((x[:, 0] - mean(x[:, 0], w)) ** 2, w)))
    )
    about = x - [mean(x[:, i], w) for i in range(3)]
    covariance = (w[:, None] * about).T @ about / w.sum()
    known = covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    np.testing.assert_allclose(correlations(x, w), known, atol=1e-9)
    if not negative:
        # some values are not there: each pair's correlation is of the events that have both
        x[::7, 2] = np.nan
        both = np.isfinite(x[:, 2])
        pair = np.cov(x[both][:, [0, 2]].T, aweights=w[both])
        expected = pair[0, 1] / np.sqrt(pair[0, 0] * pair[1, 1])
        assert correlations(x, w)[0, 2] == pytest.approx(expected, abs=1e-9)
    edges = np.array([0.0, 4.0, 6.0, 9.0])
    found = profile(x[:, 0], x[:, 1], w, edges)
    for number, one in enumerate(found.mean):
        inside = (x[:, 0] >= edges[number]) & (x[:, 0] < edges[number + 1])
        assert one == pytest.approx(mean(x[inside, 1], w[inside]))
        spread = np.sqrt((w[inside] ** 2 * (x[inside, 1] - one) ** 2).sum()) / w[inside].sum()
        assert found.error[number] == pytest.approx(spread)


def test_a_correlation_with_what_does_not_vary_is_none() -> None:
    found = correlations(np.column_stack([np.arange(5.0), np.full(5, 2.0)]), np.ones(5))
    assert found[0, 0] == pytest.approx(1.0)
    assert np.isnan(found[0, 1])


def test_the_significance_is_that_of_the_events_that_pass() -> None:
    curve = roc([0.9, 0.8, 0.7, 0.2], np.array([True, False, True, False]), np.ones(4))
    assert curve is not None
    np.testing.assert_allclose(
        significances(curve, 8.0, 20.0),
        [0, 4 / np.sqrt(4), 4 / np.sqrt(14), 8 / np.sqrt(18), 8 / np.sqrt(28)],
    )


def legend(draw: Callable[[Figure], None], place: int = 0) -> list[str]:
    with figures.style():
        figure = Figure()
        draw(figure)
    found = figure.axes[place].get_legend()
    return [text.get_text() for text in found.get_texts()]


def test_residuals_are_told_with_their_weights() -> None:
    p, w = np.zeros((1000, 1), np.float32), np.ones(1000, np.float32)
    p[:500], w[:500] = 10, 0.001
    answers = Answers(p, np.zeros(1000, np.float32), w, np.zeros(1000, np.int32), 1000)
    task = Task(kind="regression", names=("t",))
    (text,) = legend(figures.targets(answers, task, 0), 1)
    told = [float(number) for number in re.findall(r"-?[0-9.]+", text)]
    assert told == pytest.approx([0.00999, 0.3159], rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_the_area_in_the_picture_is_that_of_training(kind: str) -> None:
    p, y = classes(TASKS[2])
    w = weights(kind, y)
    answers = Answers(p, y, w, np.zeros(COUNT, np.int32), COUNT)
    scores = scores_of(TASKS[2])
    scores.add(p, y, w)
    assert f"{scores.summary()['auc']:.4f}" in legend(figures.rocs(answers, TASKS[2]))[0]
