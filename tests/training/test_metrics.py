from __future__ import annotations

import numpy as np
import pytest

from mlaas_ray.core.task import Task
from mlaas_ray.training.metrics import RocCounts, losses, scores_of

BINARY = Task()


def brute_force(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    signal, background = y > 0.5, y <= 0.5
    above = (p[signal][:, None] > p[background]) + 0.5 * (p[signal][:, None] == p[background])
    pairs = w[signal].astype(float)[:, None] * w[background]
    return float((above * pairs).sum() / pairs.sum())


def toy(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = (random.random(count) < 0.3).astype(np.float32)
    p = 1 / (1 + np.exp(-random.normal(y * 1.5, 2.0)))
    return p.astype(np.float32), y, random.uniform(0.1, 2.0, count).astype(np.float32)


def area(p: np.ndarray, y: np.ndarray, w: np.ndarray, limit: int) -> float:
    counts = RocCounts(limit)
    for part in np.array_split(np.arange(len(p)), 5):
        counts.add(p[part], y[part], w[part].astype(float))
    assert len(counts) <= limit
    return counts.area()


def test_the_area_is_that_of_all_pairs() -> None:
    p, y, w = toy(2000)
    assert area(p, y, w, 1 << 19) == pytest.approx(brute_force(p, y, w), abs=1e-12)


def test_ties_count_half() -> None:
    p, y, w = toy(2000)
    p = np.round(p, 1)
    assert area(p, y, w, 1 << 19) == pytest.approx(brute_force(p, y, w), abs=1e-12)


def test_bounded_memory_changes_the_area_by_less_than_1e_4() -> None:
    p, y, w = toy(400_000)
    assert area(p, y, w, 4096) == pytest.approx(area(p, y, w, 1 << 19), abs=1e-4)


@pytest.mark.parametrize("squeeze", [lambda p: 0.5 + (p - 0.5) * 1e-2, lambda p: 1 - (1 - p) * 1e-3])
def test_scores_in_a_narrow_range_stay_apart(squeeze: object) -> None:
    p, y, w = toy(400_000)
    p = squeeze(p.astype(np.float64)).astype(np.float32)  # type: ignore[operator]
    assert area(p, y, w, 4096) == pytest.approx(area(p, y, w, 1 << 19), abs=1e-4)


def test_merging_workers_equals_one_worker() -> None:
    p, y, w = toy(30_000)
    alone, parts = scores_of(BINARY), [scores_of(BINARY) for _ in range(3)]
    alone.add(p[:, None], y, w)
    for part, chosen in zip(parts, np.array_split(np.arange(len(p)), 3), strict=True):
        part.add(p[chosen, None], y[chosen], w[chosen])
    total = scores_of(BINARY)
    for part in parts:
        total.merge(part)
    assert total.summary() == pytest.approx(alone.summary(), abs=1e-12)


def test_merging_keeps_to_the_coarser_of_two() -> None:
    p, y, w = toy(50_000)
    fine, coarse = RocCounts(1 << 19), RocCounts(1000)
    fine.add(p[:100], y[:100], w[:100].astype(float))
    coarse.add(p[100:], y[100:], w[100:].astype(float))
    fine.merge(coarse)
    assert fine.area() == pytest.approx(area(p, y, w, 1 << 19), abs=1e-3)


def test_loss_and_accuracy_are_weighted_means() -> None:
    scores = scores_of(BINARY)
    scores.add(
        np.array([[0.9], [0.2], [0.6]], np.float32),
        np.array([1, 0, 0], np.float32),
        np.array([1, 2, 1], np.float32),
    )
    summary = scores.summary()
    assert summary["loss"] == pytest.approx((-np.log(0.9) - 2 * np.log(0.8) - np.log(0.4)) / 4, rel=1e-6)
    assert summary["accuracy"] == pytest.approx(0.75)
    assert summary["events"] == 3


def test_certain_and_wrong_is_a_finite_loss() -> None:
    loss = losses(BINARY, np.array([[0.0], [1.0]], np.float32), np.array([1, 0], np.float32))
    assert np.isfinite(loss).all()
    assert loss.min() > 15


def test_one_class_alone_has_no_curve() -> None:
    scores = scores_of(BINARY)
    scores.add(np.full((3, 1), 0.5, np.float32), np.ones(3, np.float32), np.ones(3, np.float32))
    summary = scores.summary()
    assert (summary["auc"], summary["without"]) == (None, ["background"])
    empty = scores_of(BINARY).summary()
    assert (empty["auc"], empty["loss"], empty["accuracy"]) == (None, None, None)


def test_a_class_without_events_is_named_and_left_out_of_the_mean() -> None:
    task = Task(kind="multiclass", names=("a", "b", "c"))
    scores = scores_of(task)
    y = np.array([0, 1] * 50, np.float32)
    p = np.where(y[:, None] == np.arange(3), 0.9, 0.05).astype(np.float32)
    scores.add(p, y, np.ones(100, np.float32))
    summary = scores.summary()
    assert (summary["auc"], summary["without"]) == (1.0, ["c"])
    assert summary["auc_by_class"] == {"a": 1.0, "b": 1.0, "c": None}


def test_a_class_whose_weights_come_to_nothing_has_no_curve() -> None:
    scores = scores_of(BINARY)
    y = np.array([0, 0, 1, 1], np.float32)
    scores.add(np.array([[0.1], [0.2], [0.7], [0.9]], np.float32), y, np.array([1, 1, 2, -2], np.float32))
    assert (scores.summary()["auc"], scores.summary()["without"]) == (None, ["signal"])


def test_a_target_that_does_not_vary_is_named_and_left_out() -> None:
    task = Task(kind="regression", names=("m", "n"))
    y = np.stack([np.arange(6.0), np.full(6, 0.3)], axis=1).astype(np.float32)
    scores = scores_of(task)
    scores.add(y + np.float32(0.1), y, np.ones(6, np.float32))
    summary = scores.summary()
    assert summary["r2"] == pytest.approx(1 - 0.01 / np.var(np.arange(6.0)), rel=1e-4)
    assert summary["without"] == ["n"]


def test_several_classes_are_judged_each_against_the_others() -> None:
    task = Task(kind="multiclass", names=("a", "b", "c"))
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 3000).astype(np.float32)
    p = random.random((3000, 3)) + 2 * (y[:, None] == np.arange(3))
    p = (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    weight = random.uniform(0.5, 1.5, 3000).astype(np.float32)
    scores = scores_of(task)
    scores.add(p, y, weight)
    summary = scores.summary()
    expected = np.mean([brute_force(p[:, i], (y == i).astype(float), weight) for i in range(3)])
    assert summary["auc"] == pytest.approx(expected, abs=1e-9)
    assert summary["accuracy"] == pytest.approx(weight[p.argmax(axis=1) == y].sum() / weight.sum(), rel=1e-5)
    own = p[np.arange(3000), y.astype(int)].astype(float)
    assert summary["loss"] == pytest.approx(-(weight * np.log(own)).sum() / weight.sum(), rel=1e-5)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_targets_are_judged_in_their_units(loss: str) -> None:
    task = Task(kind="regression", names=("m", "pt"), offset=(100.0, 0.0), scale=(10.0, 2.0), loss=loss)
    random = np.random.default_rng(0)
    y = random.normal([100.0, 0.0], [10.0, 2.0], (2000, 2)).astype(np.float32)
    p = (y + random.normal(0.0, [5.0, 1.0], (2000, 2))).astype(np.float32)
    weight = np.ones(2000, np.float32)
    halves = [scores_of(task), scores_of(task)]
    halves[0].add(p[:700], y[:700], weight[:700])
    halves[1].add(p[700:], y[700:], weight[700:])
    halves[0].merge(halves[1])
    summary = halves[0].summary()
    apart = (p - y).astype(float)
    assert summary["mae"] == pytest.approx(np.abs(apart).mean(), rel=1e-6)
    assert summary["rmse"] == pytest.approx(np.sqrt((apart**2).mean(axis=0)).mean(), rel=1e-6)
    assert summary["r2"] == pytest.approx((1 - (apart**2).mean(axis=0) / y.var(axis=0)).mean(), abs=1e-4)
    scaled = np.abs(apart / [10.0, 2.0])
    kinds = {"mse": scaled**2, "mae": scaled, "huber": np.where(scaled < 1, 0.5 * scaled**2, scaled - 0.5)}
    assert summary["loss"] == pytest.approx(kinds[loss].mean(), rel=1e-5)


@pytest.mark.parametrize(
    "task", [BINARY, Task(kind="multiclass", names=("a", "b", "c")), Task(kind="regression", names=("x",))]
)
def test_what_was_counted_can_be_kept(task: Task) -> None:
    random = np.random.default_rng(0)
    y = random.integers(0, max(2, task.classes), 500).astype(np.float32)
    p = random.random((500, task.outputs)).astype(np.float32)
    scores, again = scores_of(task), scores_of(task)
    scores.add(p, y, np.ones(500, np.float32))
    again.load(scores.arrays())
    for one in (scores, again):
        one.add(p[:100], y[:100], np.ones(100, np.float32))
    assert again.summary() == scores.summary()
