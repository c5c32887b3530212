from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlaas_ray.core.errors import JobError, LabelError
from mlaas_ray.core.task import Task
from mlaas_ray.streaming import Census
from mlaas_ray.streaming.census import Count, DatasetCensus
from mlaas_ray.training import Weighting
from mlaas_ray.workflows import Job
from mlaas_ray.workflows.learning import task_of, weighting_of


def job_of(*labels: object, **rest: Any) -> Job:
    datasets = {f"d{number}": {"files": f"{number}.root", "label": x} for number, x in enumerate(labels)}
    return Job.of({"datasets": datasets, **rest}, "the job").checked(Path.cwd())


def census_of(*weights: dict[float, list[float]], cuts: tuple[str, ...] = (), entries: int = 100) -> Census:
    """A census of datasets, of each of which the weights of its events are given by label."""
    datasets = [
        DatasetCensus(
            f"d{number}",
            entries,
            [entries // 2 for _ in cuts],
            {label: Count.of(np.array(values, np.float32)) for label, values in one.items()},
        )
        for number, one in enumerate(weights)
    ]
    return Census(cuts, tuple(datasets))


def of_targets(*values: list[float]) -> Census:
    """A census of one dataset with these values of each target."""
    sums = [[len(one), sum(one), sum(x * x for x in one)] for one in values]
    count = len(values[0])
    return Census((), (DatasetCensus("d0", count, [], {0.0: Count(count, count, count)}, sums),))


def test_classes_have_the_names_of_the_job() -> None:
    counted = census_of({0.0: [1, 1]}, {1.0: [1]})
    assert task_of(job_of(0, 1), counted) == Task(kind="binary", names=("d0", "d1"))
    three = census_of({0.0: [1]}, {1.0: [1], 2.0: [1]})
    job = job_of(0, {"branch": "flavour"}, task={"classes": ["u", "c", "b"]})
    assert task_of(job, three) == Task(kind="multiclass", names=("u", "c", "b"))


def test_targets_are_learnt_about_their_mean_in_units_of_their_spread() -> None:
    job = job_of({"branch": ["E", "m"]}, train={"loss": "huber"})
    found = task_of(job, of_targets([1.0, 3.0, 5.0, 7.0], [2.0, 2.0, 2.0, 2.0]))
    # of 1, 3, 5, 7 the mean is 4 and the variance (9 + 1 + 1 + 9) / 4; a constant has no spread to divide by
    expected = {"offset": (4.0, 2.0), "scale": (5.0**0.5, 1.0)}
    assert found.offset == pytest.approx(expected["offset"])
    assert found.scale == pytest.approx(expected["scale"])
    assert (found.kind, found.names, found.loss) == ("regression", ("E", "m"), "huber")


def test_as_many_names_as_targets_are_wanted() -> None:
    job = job_of({"branch": ["E", "m"]}, task={"targets": ["E", "m", "pt"]})
    with pytest.raises(JobError, match=r"task.targets has 3 names for 2 targets"):
        task_of(job, of_targets([1.0, 2.0], [1.0, 2.0]))


def test_a_selection_that_leaves_nothing_shows_the_cut_flow() -> None:
    cuts = ("pt > 3", "n == 9")
    flow = [
        "d0: 100 events, 50 after pt > 3, 50 after n == 9",
        "d1: 100 events, 50 after pt > 3, 50 after n == 9",
    ]
    for counted, message in (
        (census_of({}, {}, cuts=cuts), "no event passes the selection."),
        (census_of({0.0: [1]}, {}, cuts=cuts), "no event of class 1 (d1) passes the selection."),
    ):
        with pytest.raises(LabelError) as caught:
            task_of(job_of(0, 1), counted)
        lines = str(caught.value).rstrip(".").splitlines()
        assert lines[0] == f"{message} The cut flow:"
        assert [line.strip() for line in lines[1:]] == flow


def test_without_weights_every_event_counts_once() -> None:
    assert weighting_of(job_of(0, 1), census_of({0.0: [1] * 9}, {1.0: [1] * 3})) == Weighting((1.0,), "keep")


def test_weights_are_one_on_average() -> None:
    counted = census_of({0.0: [10, 30]}, {1.0: [1, 3]})
    found = weighting_of(job_of(0, 1, weights="w"), counted)
    # four events of weight 44
    assert found.factors == pytest.approx((4 / 44,))
    assert (found.factors[0] * counted.total.weight) == pytest.approx(counted.total.events)


@pytest.mark.parametrize("expression", [None, "w"])
def test_balanced_classes_weigh_the_same(expression: str | None) -> None:
    counted = census_of({0.0: [10, 30]}, {1.0: [1, 3, 4]})
    job = job_of(0, 1, weights={"expression": expression, "balance": "classes"})
    found = weighting_of(job, counted)
    # of five events each class is to weigh two and a half
    assert found.factors == pytest.approx((2.5 / 40, 2.5 / 8))


@pytest.mark.parametrize(
    ("negative", "factor"),
    # 2, 4, -1 and 3 are eight, ten or nine, for four events
    [("keep", 4 / 8), ("absolute", 4 / 10), ("zero", 4 / 9)],
)
def test_negative_weights_count_as_the_job_says(negative: str, factor: float) -> None:
    counted = census_of({0.0: [2, 4]}, {1.0: [-1, 3]})
    job = job_of(0, 1, weights={"expression": "w", "negative": negative})
    found = weighting_of(job, counted)
    assert (found.factors, found.negative) == (pytest.approx((factor,)), negative)
    weights = np.array([2, 4, -1, 3], np.float32)
    assert found.of(np.array([0, 0, 1, 1], np.float32), weights).mean() == pytest.approx(1.0)


def test_negative_weights_of_which_nothing_was_said_are_refused() -> None:
    counted = census_of({0.0: [2, 4]}, {1.0: [-1, 3]})
    with pytest.raises(JobError, match=r"25.00% of the events have negative weights \(in d1\)"):
        weighting_of(job_of(0, 1, weights="w"), counted)


def test_a_class_that_weighs_nothing_is_named() -> None:
    counted = census_of({0.0: [2, 4]}, {1.0: [-1, 1]})
    job = job_of(0, 1, weights={"expression": "w", "negative": "keep"})
    with pytest.raises(JobError, match=r"the weights of d1 come to 0"):
        weighting_of(job, counted)


def test_targets_have_one_factor() -> None:
    job = job_of({"branch": "E"}, task="regression", weights="w")
    counted = Census(
        (), (DatasetCensus("d0", 2, [], {0.0: Count.of(np.array([1, 3], np.float32))}, [[2, 3, 5]]),)
    )
    assert weighting_of(job, counted).factors == (0.5,)
