from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mlaas_ray.core.errors import JobError
from mlaas_ray.training.settings import (
    NETWORK_DEFAULTS,
    EarlyStopping,
    ScheduleSettings,
    TrainSettings,
    Weighting,
)

HALF = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("schedule", "passed", "rate"),
    [
        ({}, 0.0, 1.0),
        ({"kind": "cosine"}, 1.0, (1 + HALF) / 2),
        ({"kind": "cosine"}, 2.0, 0.5),
        ({"kind": "cosine"}, 3.0, (1 - HALF) / 2),
        ({"kind": "cosine"}, 4.0, 0.0),
        # an epoch that had more events than were expected
        ({"kind": "cosine"}, 4.5, 0.0),
        ({"kind": "linear"}, 0.0, 1.0),
        ({"kind": "linear"}, 3.0, 0.25),
        ({"kind": "linear"}, 4.5, 0.0),
        ({"kind": "constant"}, 0.0, 1.0),
        ({"kind": "constant"}, 3.9, 1.0),
        ({"kind": "step"}, 2.9, 1.0),
        ({"kind": "step"}, 3.0, 0.1),
        ({"kind": "step", "every": 1, "factor": 0.5}, 3.7, 0.125),
        ({"kind": "plateau"}, 3.9, 1.0),
    ],
    ids=str,
)
def test_the_step_size_follows_the_schedule(schedule: dict[str, Any], passed: float, rate: float) -> None:
    assert ScheduleSettings(**schedule).rate(passed, 4) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize(("drops", "rate"), [(0, 1.0), (1, 0.5), (3, 0.125)])
def test_a_plateau_lowers_it_as_often_as_the_loss_stood_still(drops: int, rate: float) -> None:
    assert ScheduleSettings(kind="plateau", factor=0.5).rate(1.0, 4, drops) == rate
    # of others it is no business
    assert ScheduleSettings(kind="constant", factor=0.5).rate(1.0, 4, drops) == 1.0


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "step", "plateau"])
def test_a_warmup_rises_in_a_line_and_leaves_the_rest_alone(kind: Any) -> None:
    plain, warm = (ScheduleSettings(kind=kind, warmup=warmup, every=1) for warmup in (0.0, 2.0))
    for passed in np.linspace(0, 4, 17):
        assert warm.rate(passed, 4) == pytest.approx(plain.rate(passed, 4) * min(1.0, passed / 2))
    part = ScheduleSettings(kind="constant", warmup=0.25)
    assert [part.rate(passed, 4) for passed in (0.0, 0.125, 0.25, 3.0)] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("factors", "negative", "expected"),
    [
        ((1.0,), "keep", [1, 2, -4, -8]),
        ((0.5,), "keep", [0.5, 1, -2, -4]),
        ((1.0,), "absolute", [1, 2, 4, 8]),
        ((1.0,), "zero", [1, 2, 0, 0]),
        ((10.0, 0.5, 2.0), "keep", [10, 1, -8, -80]),
        ((10.0, 0.5, 2.0), "absolute", [10, 1, 8, 80]),
        ((10.0, 0.5, 2.0), "zero", [10, 1, 0, 0]),
    ],
)
def test_weights_count_by_class_and_sign(factors: Any, negative: Any, expected: list[float]) -> None:
    y, weight = np.array([0, 1, 2, 0], np.float32), np.array([1, 2, -4, -8], np.float32)
    counted = Weighting(factors, negative).of(y, weight)
    assert counted.tolist() == expected
    assert counted.dtype == np.float32
    # blocks are shared and used again in the next epoch
    assert weight.tolist() == [1, 2, -4, -8]


def test_targets_have_one_factor_for_all() -> None:
    y = np.array([[125.5, -3.0], [0.0, 7.0]], np.float32)
    assert Weighting((0.5,)).of(y, np.array([1, 3], np.float32)).tolist() == [0.5, 1.5]


@pytest.mark.parametrize(("workers", "least", "most"), [(1, 1, 1), (4, 4, 4), ([2, 8], 2, 8), ([3, 3], 3, 3)])
def test_workers_are_a_number_or_two(workers: Any, least: int, most: int) -> None:
    assert TrainSettings.of({"workers": workers}, "test").worker_range == (least, most)


@pytest.mark.parametrize("workers", [0, -1, [0, 2], [3, 2], [1, 2, 3], [1], "many", 1.5, None], ids=str)
def test_other_numbers_of_workers_are_refused(workers: Any) -> None:
    with pytest.raises(JobError, match="workers"):
        TrainSettings.of({"workers": workers}, "test")


def test_what_was_left_out_is_filled_with_what_suits_the_framework() -> None:
    defaults = {"epochs": 100, "learning_rate": 0.3, "schedule": ScheduleSettings(kind="constant")}
    filled = TrainSettings.of({"epochs": 7}, "test").filled(defaults)
    assert (filled.epochs, filled.learning_rate, filled.rates.kind) == (7, 0.3, "constant")
    own = TrainSettings.of({"schedule": "linear", "learning_rate": 1e-5}, "test").filled(defaults)
    assert (own.epochs, own.learning_rate, own.rates.kind) == (100, 1e-5, "linear")
    assert TrainSettings().filled({}).rates == ScheduleSettings(kind="cosine")


@pytest.mark.parametrize(
    ("events", "epochs"),
    [(0, 12), (1_000, 60), (10_000, 52), (100_000, 12), (10_000_000, 12)],
)
def test_few_events_are_seen_more_often_so_that_there_are_enough_steps(events: int, epochs: int) -> None:
    assert TrainSettings().filled(NETWORK_DEFAULTS, events).epochs == epochs
    assert TrainSettings(epochs=3).filled(NETWORK_DEFAULTS, events).epochs == 3


def test_networks_stop_early_unless_that_is_refused() -> None:
    assert TrainSettings().filled(NETWORK_DEFAULTS).early_stopping == EarlyStopping(patience=15)
    own = TrainSettings.of({"early_stopping": False}, "test").filled(NETWORK_DEFAULTS)
    assert own.early_stopping is False


def test_one_word_stands_for_settings_of_which_it_is_the_first() -> None:
    short = TrainSettings.of({"schedule": "step", "early_stopping": "auc"}, "test")
    long = TrainSettings.of({"schedule": {"kind": "step"}, "early_stopping": {"monitor": "auc"}}, "test")
    assert short == long
    assert long.early_stopping == EarlyStopping(monitor="auc", patience=3, min_delta=0.0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"schedule": "cosin"}, "schedule"),
        ({"schedule": {"kind": "step", "evry": 2}}, "unknown key 'schedule.evry'.*Did you mean 'every'"),
        ({"schedule": {"factor": 1.0}}, "schedule.factor"),
        ({"early_stopping": "precision"}, "early_stopping"),
        ({"early_stopping": {"pacience": 2}}, "Did you mean 'patience'"),
        ({"checkpoint": {"every_step": 2}}, "Did you mean 'every_steps'"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"loss": "cross_entropy"}, "loss"),
        ({"learning_rte": 0.1}, "Did you mean 'learning_rate'"),
    ],
    ids=str,
)
def test_settings_that_are_wrong_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=said):
        TrainSettings.of(values, "test")
