from __future__ import annotations

import html.parser
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlaas_ray.core.features import Feature, FeatureSpec, Statistics
from mlaas_ray.core.task import Task
from mlaas_ray.streaming import Census
from mlaas_ray.streaming.census import Count, DatasetCensus
from mlaas_ray.training.evaluation import write_rows
from mlaas_ray.workflows import Job
from mlaas_ray.workflows.report import write_report
from mlaas_ray.workflows.report.answers import Answers
from mlaas_ray.workflows.report.numbers import (
    area_error,
    best_cut,
    calibration,
    confusion,
    effective,
    kolmogorov_smirnov,
    roc,
)
from mlaas_ray.workflows.report.page import page_of
from mlaas_ray.workflows.report.write import _figures, weights_said

ONES = np.ones(4)


class TestRoc:
    def test_the_area_is_that_of_pairs_and_ties_count_half(self) -> None:
        curve = roc([0.1, 0.4, 0.4, 0.8], np.array([False, False, True, True]), ONES)
        assert curve is not None
        # three of four pairs are in order, one is tied
        assert curve.area == pytest.approx(3.5 / 4)
        np.testing.assert_allclose(curve.fpr, [0, 0, 0.5, 1])
        np.testing.assert_allclose(curve.tpr, [0, 0.5, 1, 1])
        np.testing.assert_array_equal(curve.threshold, [np.inf, *np.array([0.8, 0.4, 0.1])])

    def test_weights_count(self) -> None:
        curve = roc([0.1, 0.4, 0.4, 0.8], np.array([False, False, True, True]), [1, 2, 3, 4])
        assert curve is not None
        assert curve.area == pytest.approx(18 / 21)
        np.testing.assert_allclose(curve.tpr, [0, 4 / 7, 1, 1])

    def test_the_band_is_binomial_in_effective_numbers(self) -> None:
        signal = np.array([True] * 4 + [False])
        curve = roc([4, 3, 2, 1, 0], signal, [2, 2, 2, 2, 5])
        assert curve is not None
        np.testing.assert_allclose(curve.error[:5], np.sqrt([0, 3 / 64, 1 / 16, 3 / 64, 0]))

    @pytest.mark.parametrize("signal", [[True] * 4, [False] * 4])
    def test_events_of_one_kind_have_none(self, signal: list[bool]) -> None:
        assert roc([0.1, 0.2, 0.3, 0.4], np.array(signal), ONES) is None

    def test_no_events_have_none(self) -> None:
        assert roc([], np.empty(0, bool), []) is None

    def test_negative_weights_leave_the_band_real(self) -> None:
        curve = roc([4, 3, 2, 1], np.array([True, True, True, False]), [3, -1, 1, 1])
        assert curve is not None
        assert np.isfinite(curve.error).all()

    def test_the_error_of_the_area_is_that_of_hanley_and_mcneil(self) -> None:
        # without a signal, (n + m + 1) / (12 n m): that of the rank sum
        assert area_error(0.5, 30, 20) == pytest.approx(math.sqrt(51 / (12 * 30 * 20)))
        assert area_error(1.0, 30, 20) == 0.0
        assert area_error(0.7, 0, 20) == math.inf

    def test_the_error_is_how_far_samples_lie_apart(self) -> None:
        random, areas, told = np.random.default_rng(5), [], 0.0
        for _ in range(300):
            signal = np.arange(200) < 100
            curve = roc(random.normal(signal * 1.0, 1.0), signal, np.ones(200))
            assert curve is not None
            areas.append(curve.area)
            told += curve.area_error / 300
        assert told == pytest.approx(np.std(areas), rel=0.15)


@pytest.mark.parametrize(
    ("weights", "number"), [([1, 1, 1], 3.0), ([2, 2], 2.0), ([3, 1], 1.6), ([1, -1], 0.0), ([], 0.0)]
)
def test_the_effective_number_of_events(weights: list[float], number: float) -> None:
    assert effective(weights) == pytest.approx(number)


class TestKolmogorovSmirnov:
    def test_equal_samples_are_equal(self) -> None:
        values = np.random.default_rng(1).normal(size=100)
        assert kolmogorov_smirnov(values, np.ones(100), values, np.ones(100)) == (0.0, 1.0)

    def test_the_distance_is_the_largest_of_the_cumulated_shares(self) -> None:
        distance, _ = kolmogorov_smirnov([1, 2, 3, 4], ONES, [3, 4, 5, 6], ONES)
        assert distance == 0.5
        # after 2 all that weighs is on one side
        distance, _ = kolmogorov_smirnov([1, 2, 3, 4], [1, 1, 0, 0], [3, 4, 5, 6], ONES)
        assert distance == 1.0

    def test_the_probability_is_the_usual_one(self) -> None:
        # the critical value for one in twenty: 1.358 of sqrt((n + m) / nm), for many events
        count = 20_000
        shift = 1.358 * math.sqrt(2 / count)
        uniform = (np.arange(count) + 0.5) / count
        ones = np.ones(count)
        distance, p = kolmogorov_smirnov(uniform, ones, uniform + shift, ones)
        assert distance == pytest.approx(shift, abs=2 / count)
        assert p == pytest.approx(0.05, abs=0.003)

    def test_scaled_weights_change_nothing(self) -> None:
        random = np.random.default_rng(2)
        one, other = random.normal(size=200), random.normal(0.2, 1, size=300)
        plain = kolmogorov_smirnov(one, np.ones(200), other, np.ones(300))
        assert kolmogorov_smirnov(one, np.full(200, 7.0), other, np.full(300, 0.1)) == pytest.approx(plain)

    def test_nothing_cannot_be_compared(self) -> None:
        assert all(math.isnan(value) for value in kolmogorov_smirnov([], [], [1], [1]))


class TestCalibration:
    def test_probabilities_that_are_right_have_no_error(self) -> None:
        score = np.repeat([0.25, 0.75], 4)
        signal = np.array([1, 0, 0, 0, 1, 1, 1, 0], bool)
        found = calibration(score, signal, np.ones(8))
        np.testing.assert_allclose(found.predicted, [0.25, 0.75])
        np.testing.assert_allclose(found.observed, [0.25, 0.75])
        assert found.expected_error == pytest.approx(0.0)
        # three times 1/16 and once 9/16, of four
        assert found.brier == pytest.approx(12 / 64)

    def test_a_score_that_promises_too_much_is_seen(self) -> None:
        found = calibration(np.full(10, 0.9), np.arange(10) < 4, np.ones(10))
        assert (found.predicted, found.observed) == (pytest.approx([0.9]), pytest.approx([0.4]))
        assert found.expected_error == pytest.approx(0.5)
        assert found.error == pytest.approx([math.sqrt(0.4 * 0.6 / 10)])

    def test_bins_hold_equally_many_events(self) -> None:
        score = np.random.default_rng(3).uniform(0, 1, 1500) ** 4
        found = calibration(score, score > 0.5, np.ones(1500), bins=15)
        np.testing.assert_allclose(found.predicted, np.sort(score).reshape(15, 100).mean(axis=1), atol=1e-3)

    def test_an_event_and_its_negative_change_nothing(self) -> None:
        plain = calibration([0.2, 0.8], np.array([False, True]), [1, 1], bins=1)
        more = calibration([0.2, 0.8, 0.8, 0.8], np.array([False, True, False, False]), [1, 1, 5, -5], bins=1)
        assert (more.brier, more.observed) == (pytest.approx(plain.brier), pytest.approx(plain.observed))

    def test_weights_that_come_to_nothing_calibrate_nothing(self) -> None:
        found = calibration([0.2, 0.8], np.array([False, True]), [1, -1], bins=1)
        assert math.isnan(found.brier)
        assert math.isnan(found.expected_error)
        assert len(found.predicted) == 0


def test_confusion_is_by_true_class() -> None:
    matrix = confusion([0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 2, 7], 3)
    np.testing.assert_allclose(matrix, [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 0]])


def test_the_best_cut_is_where_the_significance_is_largest() -> None:
    curve = roc([0.9, 0.8, 0.3, 0.2], np.array([True, True, False, False]), ONES)
    assert curve is not None
    # all of the signal, none of the background: 10 / sqrt(10)
    assert best_cut(curve, 10.0, 1000.0) == (pytest.approx(0.8), pytest.approx(math.sqrt(10)))
    # where there is no background, nothing is cut away that need not be
    assert best_cut(curve, 0.0, 0.0)[1] == 0.0


def test_the_class_an_event_is_taken_for_is_the_likeliest() -> None:
    def answers(prediction: list[list[float]]) -> Answers:
        count = len(prediction)
        zeros = np.zeros(count, np.float32)
        return Answers(np.array(prediction, np.float32), zeros, zeros, zeros.astype(np.int32), count)

    assert answers([[0.2], [0.5], [0.6]]).choice(Task()).tolist() == [0, 0, 1]
    three = Task(kind="multiclass", names=("a", "b", "c"))
    assert answers([[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]).choice(three).tolist() == [1, 2]


TASKS = {
    "binary": Task(names=("background", "<signal>")),
    "multiclass": Task(kind="multiclass", names=("u", "c", "b")),
    "many": Task(kind="multiclass", names=tuple(f"class {number}" for number in range(20))),
    "regression": Task(kind="regression", names=("E", "m"), offset=(0.0, 0.0), scale=(1.0, 1.0)),
}
COMMON = {"history", "importance", "time", "inputs", "correlations", "against"}
OF_CLASSES = {"roc", "scores", "calibration", "confusion"}
FIGURES = {
    "binary": COMMON | OF_CLASSES | {"cut"},
    "multiclass": COMMON | OF_CLASSES,
    "many": COMMON | OF_CLASSES,
    "regression": COMMON | {"target_0", "target_1"},
}


def evaluation(task: Task, count: int, seed: int) -> dict[str, np.ndarray]:
    """Truth, and answers that know something of it."""
    random = np.random.default_rng(seed)
    if task.kind == "regression":
        y = random.normal(50, 10, (count, 2)).astype(np.float32)
        prediction = y + random.normal(0, 2, y.shape)
    else:
        y = random.integers(0, task.classes, count).astype(np.float32)
        raw = np.exp(random.normal(np.eye(task.classes)[y.astype(int)] * 2, 1.0))
        shares = raw / raw.sum(axis=1, keepdims=True)
        prediction = shares[:, 1:] if task.kind == "binary" else shares
    return {
        "prediction": prediction.astype(np.float32),
        "y": y,
        "weight": random.uniform(0.5, 1.5, count).astype(np.float32),
        "dataset": (y.reshape(count, -1)[:, 0] > 0.5).astype(np.int32),
        "events": np.array(count * 10),
    }


def job_of(task: Task) -> Job:
    datasets: dict[str, Any] = {name: {"files": "a.root", "label": i} for i, name in enumerate(task.names)}
    if task.kind == "regression":
        datasets = {"sim": {"files": "a.root", "label": {"branch": list(task.names)}}}
    else:
        datasets = {f"d{i}": one for i, one in enumerate(datasets.values())}
    return Job.of({"name": "toy", "datasets": datasets, "select": "pt > 3 & pt < 300"}, "the job")


def census_of(task: Task) -> Census:
    if task.kind == "regression":
        count = Count(1000, 1000.0, 1000.0)
        sums = [[1000, 5e4, 2.6e6]] * 2
        return Census(("pt > 3",), (DatasetCensus("sim", 2000, [1000], {0.0: count}, sums),))
    return Census(
        ("pt > 3",),
        tuple(
            DatasetCensus(f"d{i}", 2000, [1000], {float(i): Count(1000, 2000.0, 4000.0, 50 * i, -10.0 * i)})
            for i in range(task.classes)
        ),
    )


def metrics_of(task: Task) -> dict[str, Any]:
    scores = (
        {"r2": 0.8, "mae": 1.5, "rmse": 2.0} if task.kind == "regression" else {"auc": 0.8, "accuracy": 0.7}
    )
    history = [
        {"epoch": epoch, "loss": 1 / epoch, "validation_loss": 1.1 / epoch, "scores": scores}
        for epoch in (1, 2)
    ]
    return {
        "validation": {**scores, "loss": 0.55, "events": 1000},
        "training": {**scores, "loss": 0.5, "events": 4000},
        "history": history,
        "events": 123_456,
        "events_per_s": 7_890.0,
        "best_epoch": 2,
        "importance": {f"branch_{number}": [0.1, number / 100] for number in range(30)},
        "time": {"training": 10.0, "waiting": 2.0, "computing": 5.0, "judging": 1.0, "saving": 0.5},
        "export_difference": {"model.onnx": 1.5e-7},
    }


@pytest.fixture(scope="module", params=list(TASKS))
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A report of each kind of task."""
    task = TASKS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    rows = {
        f"{part}_{name}": values
        for part, count, seed in (("validation", 400, 1), ("training", 300, 2))
        for name, values in evaluation(task, count, seed).items()
    }
    inputs = np.random.default_rng(3).normal(size=(250, 4)).astype(np.float32)
    inputs[::5, 1] = np.nan
    rows["validation_inputs"] = inputs
    rows["validation_columns"] = np.array(["pt", "Jet_pt_0", "mass", "dR"])
    write_rows(folder / "evaluation.npz", rows)
    seen = Statistics(count=4, min=0.0, max=1.0, mean=0.5, std=0.3)
    features = FeatureSpec.of([Feature(name="pt", kind="flat", statistics=seen)])
    page = write_report(
        folder / "report", folder, job_of(task), features, census_of(task), task, metrics_of(task)
    )
    return request.param, page


class Page(html.parser.HTMLParser):
    """What a page holds: tags that were opened and not closed, what it would load, and its text."""

    EMPTY = ("meta", "img", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_needs_no_network_and_no_scripts(report: tuple[str, Path]) -> None:
    text = report[1].read_text()
    page = Page(text)
    assert page.open == []
    assert page.tags.isdisjoint({"script", "link", "iframe", "object"})
    assert {load.partition(",")[0] for load in page.loads} == {"data:image/png;base64"}
    assert not re.search(r"https?://|url\(|@import", text)


def test_every_figure_is_a_picture_and_on_the_page(report: tuple[str, Path]) -> None:
    kind, page = report
    pictures = {path.stem: path.read_bytes() for path in page.parent.glob("*.png")}
    assert set(pictures) == FIGURES[kind]
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    assert len(set(pictures.values())) == len(pictures)
    assert len(Page(page.read_text()).loads) == len(pictures)


def test_the_page_tells_scores_events_and_the_job(report: tuple[str, Path]) -> None:
    kind, page = report
    words = Page(page.read_text()).words
    text = " ".join(words)
    for expected in ("123,456", "7,890", "0.5500", "1.5e-07", "after pt > 3", "best epoch"):
        assert expected in text, expected
    # the job, as it was written
    assert "pt > 3 & pt < 300" in text
    assert words[words.index("R²" if kind == "regression" else "AUC") + 1] == "0.8000"


def test_pictures_say_of_which_events_with_which_weights(report: tuple[str, Path]) -> None:
    text = " ".join(Page(report[1].read_text()).words)
    assert "400 of 4,000 validation events, chosen by a hash, each counts 1." in text
    assert "250 of 4,000 validation events" in text
    assert "with the weights of training" in text


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({}, "each counts 1"),
        ({"balance": "classes"}, "weights as in training (1, classes balanced)"),
        ({"expression": "w", "negative": "absolute"}, "weights as in training (w, negative ones: absolute)"),
    ],
)
def test_the_weights_that_count_are_said(weights: dict[str, str], told: str) -> None:
    job = Job.of({"datasets": {"a": {"files": "a.root", "label": 1}}, "weights": weights}, "the job")
    assert weights_said(job) == told


def test_a_class_that_the_score_leaves_out_is_named_on_the_page() -> None:
    task = TASKS["multiclass"]
    found = evaluation(task, 50, 1)
    judged = Answers(found["prediction"], found["y"], found["weight"], found["dataset"], 50)
    metrics = metrics_of(task)
    metrics["validation"] = {**metrics["validation"], "auc": None, "without": ["b"]}
    seen = Statistics(count=4, min=0.0, max=1.0, mean=0.5, std=0.3)
    features = FeatureSpec.of([Feature(name="pt", kind="flat", statistics=seen)])
    text = " ".join(Page(page_of(job_of(task), features, census_of(task), task, metrics, judged, [])).words)
    assert "The AUC leaves out b: no such validation events" in text


def test_weights_that_count_are_read_beside_those_that_the_job_defines(tmp_path: Path) -> None:
    rows = {f"validation_{name}": values for name, values in evaluation(TASKS["binary"], 10, 1).items()}
    write_rows(tmp_path / "evaluation.npz", rows)
    plain = Answers.read(tmp_path, "validation")
    np.testing.assert_array_equal(plain.weight, plain.expected)
    rows["validation_used_weight"] = 2 * rows["validation_weight"]
    write_rows(tmp_path / "evaluation.npz", rows)
    both = Answers.read(tmp_path, "validation")
    np.testing.assert_array_equal(both.weight, 2 * both.expected)


def test_names_are_text_and_not_html(report: tuple[str, Path]) -> None:
    kind, page = report
    if kind == "binary":
        assert "<signal>" in " ".join(Page(page.read_text()).words)
    assert "<signal>" not in page.read_text()


def test_yields_are_those_of_all_events_with_the_errors_of_counting() -> None:
    """A hundred events of which a quarter passes: 25 ± 5, as one counts them."""
    score = np.array([0.9] * 25 + [0.1] * 75 + [0.2] * 100, np.float32)
    y = np.array([1] * 100 + [0] * 100, np.float32)
    judged = Answers(score[:, None], y, np.ones(200, np.float32), y.astype(np.int32), 200)
    # of so much background that S/√(S+B) is largest where none is left
    counts = (Count(100, 10_000.0, 1e6), Count(100, 100.0, 100.0))
    census = Census(
        (), tuple(DatasetCensus(f"d{i}", 100, [], {float(i): count}) for i, count in enumerate(counts))
    )
    seen = Statistics(count=4, min=0.0, max=1.0, mean=0.5, std=0.3)
    features = FeatureSpec.of([Feature(name="pt", kind="flat", statistics=seen)])
    task = TASKS["binary"]
    text = page_of(job_of(task), features, census, task, metrics_of(task), judged, [])
    cells = Page(text).words
    place = cells.index("d1", cells.index("score ≥ 0.900"))
    assert cells[place - 4 : place] == ["d0", "10,000", "0 ± 0", "0.00%"]
    assert cells[place : place + 4] == ["d1", "100", "25 ± 5", "25.00%"]


@pytest.mark.parametrize("kind", list(TASKS))
def test_chosen_variables_are_drawn_also_of_images_whose_cells_are_not(kind: str) -> None:
    task = TASKS[kind]
    rows = evaluation(task, 300, 1) | {"events": 300}
    answers = Answers(**rows)  # type: ignore[arg-type]
    given = (answers, answers, job_of(task), census_of(task), task, metrics_of(task))
    mass = {"mass": np.random.default_rng(2).normal(90, 5, 300).astype(np.float32)}
    without, drawn = ({one[0]: one[2] for one in _figures(*given, against)} for against in ({}, mass))
    assert drawn.keys() - without.keys() == {"against"}
    assert "against chosen variables" in drawn["against"]
