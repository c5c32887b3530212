from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlaas_ray.core.errors import EmptyDataError, JobError, PackageError
from mlaas_ray.core.task import Task
from mlaas_ray.streaming import first_pass, planned_events
from mlaas_ray.training.batches import block_arrays
from mlaas_ray.training.metrics import scores_of
from mlaas_ray.training.settings import Weighting
from mlaas_ray.workflows import Job, compare
from mlaas_ray.workflows.compare import Comparison, _Score, compared
from mlaas_ray.workflows.report.numbers import area_error
from tests.packaged import package_of

BINARY = Task()
Arrays = tuple[np.ndarray, np.ndarray]


def column(values: object) -> np.ndarray:
    return np.asarray(values, np.float32).reshape(-1, 1)


def noisy(y: np.ndarray, size: float, seed: int) -> np.ndarray:
    """Answers in (0, 1) that know the truth the worse, the larger the noise."""
    values = np.random.default_rng(seed).normal(y - 0.5, size)
    return column(1 / (1 + np.exp(-values)))


def labels(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, count).astype(np.float32)


def judged(one: object, other: object, y: object, weight: object = None, task: Task = BINARY) -> Comparison:
    y = np.asarray(y, np.float32)
    weight = np.ones(len(y), np.float32) if weight is None else np.asarray(weight, np.float32)
    return compared(np.asarray(one, np.float32), np.asarray(other, np.float32), y, weight, task, "test")


def test_a_model_is_not_different_from_itself() -> None:
    y = labels(500)
    answers = noisy(y, 1.0, 2)
    found = judged(answers, answers, y)
    assert (found.score.difference, found.score.error, found.score.p_value) == (0.0, 0.0, 1.0)
    assert (found.verdict, found.events, found.part) == ("not significantly different", 500, "test")
    assert found.score.first_error > 0
    assert found.sentence("a:1", "a:2").startswith(
        "a:2 is not significantly different from a:1 on 500 test events: AUC "
    )


def test_a_model_that_knows_more_is_better_and_the_other_worse() -> None:
    y = labels(1000)
    poor, good = noisy(y, 2.0, 2), noisy(y, 0.5, 3)
    found, turned = judged(poor, good, y), judged(good, poor, y)
    assert (found.verdict, turned.verdict) == ("better", "worse")
    assert turned.score.difference == -found.score.difference
    assert found.score.p_value < 1e-6
    assert found.loss.difference < 0, "the loss falls"
    assert found.sentence("old", "new").startswith("new is better than old on 1,000 test events: AUC 0.")


@pytest.mark.parametrize(
    ("scores", "y", "weight", "area"),
    [
        ([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1], [1, 1, 1, 1], 3.5 / 4),
        # of 3 * 7 pairs 3 + 3/2 * 2 + 4 + 8 are in order
        ([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1], [1, 2, 3, 4], 18 / 21),
        ([0.5, 0.5, 0.5], [0, 1, 1], [1, 5, 1], 0.5),
        ([0.9, 0.1], [0, 1], [1, 1], 0.0),
        # of 1 * (3 - 1) pairs 3 in order and -1 not
        ([0.5, 0.9, 0.2], [0, 1, 1], [1, 3, -1], 1.5),
    ],
    ids=["ties", "weights", "constant", "wrong", "negative"],
)
def test_areas_are_those_of_pairs_and_ties_count_half(
    scores: list[float], y: list[int], weight: list[float], area: float
) -> None:
    constant = column([0.5] * len(y))
    found = judged(column(scores), constant, y, weight)
    assert (found.score.first, found.score.second) == (pytest.approx(area), 0.5)


def test_errors_of_paired_events_are_small() -> None:
    y = labels(2000)
    one = noisy(y, 1.0, 2)
    other = one + np.random.default_rng(3).normal(0, 1e-3, one.shape)
    found = judged(one, other, y)
    assert found.score.error < 0.1 * found.score.first_error
    # of models that share nothing it is that of two independent numbers
    apart = judged(one, noisy(y, 1.0, 4), y).score
    assert apart.error == pytest.approx(np.hypot(apart.first_error, apart.second_error), rel=0.2)


def test_errors_are_those_of_the_textbook() -> None:
    y = labels(2000)
    score = judged(noisy(y, 1.0, 2), noisy(y, 1.0, 3), y).score
    expected = area_error(score.first, float(y.sum()), float((1 - y).sum()))
    assert score.first_error == pytest.approx(expected, rel=0.15)


def test_equally_good_models_are_called_different_once_in_twenty_times() -> None:
    y = labels(300)
    verdicts = [judged(noisy(y, 1.0, 2 * i), noisy(y, 1.0, 2 * i + 1), y).verdict for i in range(40)]
    wrong = sum(verdict != "not significantly different" for verdict in verdicts)
    assert wrong <= 6  # of an expected 2


def test_several_classes_are_judged_by_the_mean_of_each_against_the_others() -> None:
    task = Task(kind="multiclass", names=("u", "c", "b"))
    y = np.array([0, 1, 2, 2], np.float32)
    right = np.eye(3)[y.astype(int)]
    # c is taken for u: u against the others has one pair of three wrong by half, c two of three by half
    muddled = right.copy()
    muddled[1] = [1, 0, 0]
    found = judged(muddled, right, y, task=task)
    areas = [(2 + 0.5) / 3, 0.5, 1.0]
    assert (found.score.first, found.score.second) == (pytest.approx(np.mean(areas)), 1.0)


def test_targets_are_judged_by_the_variance_that_is_explained() -> None:
    task = Task(kind="regression", names=("E",))
    y = np.array([1, 2, 3, 4], np.float32)
    found = judged(column([1, 2, 3, 5]), column([1, 2, 3, 4]), y, task=task)
    # a quarter of 1.25
    assert (found.name, found.score.first, found.score.second) == ("r2", pytest.approx(0.8), 1.0)
    assert (found.loss.first, found.loss.second) == (pytest.approx(0.25), 0.0)
    assert "R² 1.0000 against 0.8000" in found.sentence("a", "b")


def test_a_difference_without_error_is_still_json() -> None:
    y = np.array([0, 1] * 50, np.float32)
    found = judged(column(1 - y), column(y), y)
    assert (found.score.error, found.verdict) == (0.0, "better")
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert (document["auc"]["difference"], document["auc"]["deviations"]) == (1.0, None)
    assert (document["auc"]["p_value"], document["verdict"], document["events"]) == (0.0, "better", 100)


@pytest.mark.parametrize(
    ("y", "weight", "named"),
    [([1, 1], [1, 1], "background"), ([0, 1], [1, -1], "signal"), ([0, 1], [-1, -1], "background, signal")],
)
def test_events_that_define_no_area_are_refused(y: list[int], weight: list[int], named: str) -> None:
    with pytest.raises(
        EmptyDataError, match=f"2 test events define no auc: there is nothing to judge {named} by"
    ):
        judged(column([0.1, 0.9]), column([0.9, 0.1]), y, weight)


def test_a_class_without_events_is_named_and_left_out() -> None:
    task = Task(kind="multiclass", names=("u", "c", "b"))
    y = np.array([0, 1] * 20, np.float32)
    right = np.eye(3)[y.astype(int)]
    found = judged(right, np.full((40, 3), 1 / 3), y, task=task)
    assert (found.score.first, found.score.second, found.without) == (1.0, 0.5, ("b",))
    assert "without b" in found.sentence("one", "other")
    assert found.document()["without"] == ["b"]


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_errors_are_of_the_numbers_that_training_tells(kind: str) -> None:
    """Nominal values are the scores of training; the quick way of the replicas gives the same."""
    random = np.random.default_rng(3)
    task = {
        "binary": BINARY,
        "multiclass": Task(kind="multiclass", names=("u", "c", "b")),
        "regression": Task(kind="regression", names=("E", "m"), offset=(1.0, 0.0), scale=(2.0, 3.0)),
    }[kind]
    y = random.integers(0, task.classes or 2, 300).astype(np.float32)
    if kind == "regression":
        y = random.normal(size=(300, 2)).astype(np.float32)
    p = random.random((300, task.outputs)).astype(np.float32)
    weight = Weighting((1.5,) * max(1, task.classes), "keep").of(y, random.normal(1, 1, 300).astype("f4"))
    scores = scores_of(task)
    scores.add(p, y, weight)
    found = judged(p, 1 - p, y, weight, task)
    assert (found.score.first, found.loss.first) == (scores.summary()[task.score], scores.summary()["loss"])
    assert _Score(p, y, task).of(weight.astype(float)) == pytest.approx(found.score.first, rel=1e-6)


@pytest.fixture
def job(write_job: Callable[..., Path]) -> Job:
    return Job.load(write_job(split={"validation": 0.2, "test": 0.3}))


def brute_area(score: np.ndarray, y: np.ndarray) -> float:
    signal, background = score[y == 1][:, None], score[y == 0][None]
    return float(((signal > background) + 0.5 * (signal == background)).mean())


@pytest.mark.usefixtures("ray_local")
def test_models_are_asked_about_the_held_out_events_on_columns_of_their_own(job: Job, tmp_path: Path) -> None:
    found = first_pass(job.samples({}), job.wanted, key=job.split.key, progress=False)
    slope = {"Jet_btag_0": 4.0, "Jet_btag_1": 4.0}
    good = package_of(tmp_path / "good", found.features, slope)
    narrow = job.wanted.model_copy(update={"include": ("MET_pt",)})
    few = first_pass(job.samples({}), narrow, key=job.split.key, progress=False)
    poor = package_of(tmp_path / "poor", few.features, {"MET_pt": 0.01})
    result = compare(poor, good, job, progress=False)
    # read once more, without a cluster
    events = planned_events(found, part=job.split.held_out, seed=job.seed, classes=2)
    rows = [
        rows
        for table in events.tables(0, range(events.blocks(0)))
        for rows in block_arrays(table, ("x", "y"))
    ]
    x, y = (np.concatenate([one[name] for one in rows]) for name in ("x", "y"))
    columns = found.features.columns
    scores = {
        "first": x[:, columns.index("MET_pt")],
        "second": np.nan_to_num(x[:, [columns.index(name) for name in slope]]).sum(axis=1),
    }
    assert (result.events, result.part, result.verdict) == (len(y), "test", "better")
    assert 0.25 < len(y) / 6000 < 0.35
    for name, score in scores.items():
        assert getattr(result.score, name) == pytest.approx(brute_area(score, y), abs=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_models_that_select_other_events_cannot_be_compared(job: Job, tmp_path: Path) -> None:
    wanted = job.wanted.model_copy(update={"include": ("MET_pt",)})
    all_of_them = first_pass(job.samples({}), wanted, key=job.split.key, progress=False)
    some = first_pass(
        job.samples({}),
        wanted.model_copy(update={"select": "MET_pt > 30"}),
        key=job.split.key,
        progress=False,
    )
    one, other = (
        package_of(tmp_path / name, found.features, {}) for name, found in (("a", all_of_them), ("b", some))
    )
    with pytest.raises(JobError, match="the two models do not select the same events"):
        compare(one, other, job, progress=False)


def test_models_of_other_tasks_cannot_be_compared(job: Job, tmp_path: Path, onnx_package) -> None:
    task = Task(kind="regression", names=("E",))
    other = package_of(tmp_path / "other", onnx_package.features, {}, task=task)
    with pytest.raises(PackageError, match=r"one model is binary, 1 outputs, the other regression, 1\."):
        compare(onnx_package, other, job)
