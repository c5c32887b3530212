"""How many replicas there should be."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from mlaas_ray.inference.autoscaling import ByRows, Load, options
from mlaas_ray.inference.settings import Scale


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = SimpleNamespace(seconds=1000.0, cpu=5.0)
    monkeypatch.setattr(time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(time, "process_time", lambda: now.cpu)
    return now


def test_a_load_is_averaged_over_the_time_since_the_last_report(clock):
    load = Load()
    clock.seconds += 1
    with load.of(10):
        assert load.ongoing == 10
        clock.seconds += 2
        with load.of(30):
            clock.seconds += 1
    clock.seconds += 1
    # 10 for two seconds, 40 for one, none for two
    assert load.report()["rows"] == pytest.approx(60 / 5)
    clock.seconds += 1
    assert load.report()["rows"] == 0
    assert load.ongoing == 0


def test_rows_that_stay_ongoing_count_in_every_report(clock):
    load = Load()
    load.change(8)
    for _ in range(3):
        clock.seconds += 2
        assert load.report()["rows"] == pytest.approx(8)
    load.change(-8)
    clock.seconds += 2
    assert load.report()["rows"] == 0


def test_two_reports_at_once_do_not_divide_by_zero(clock):
    load = Load()
    load.change(5)
    assert load.report()["rows"] == 5
    assert load.report()["rows"] == 5


def test_the_longest_wait_is_reported_once(clock):
    load = Load()
    for waited_s in (0.1, 0.5, 0.2):
        with load.of(1, waited_s=waited_s):
            clock.seconds += 1
    assert load.report()["waited_ms"] == pytest.approx(500)
    assert load.report()["waited_ms"] == 0


def test_rows_that_wait_elsewhere_for_this_replica_are_added(clock):
    load = Load()
    for behind in (10, 30):
        with load.of(4, behind=behind):
            clock.seconds += 1
    assert load.report()["rows"] == pytest.approx(4 + 20)
    clock.seconds += 1
    assert load.report()["rows"] == 0


def test_rows_of_a_call_that_fails_are_no_longer_ongoing(clock):
    load = Load()
    with pytest.raises(ValueError, match="broken"), load.of(4):
        raise ValueError("broken")
    assert load.ongoing == 0


def wanted(rows, waited_ms=(), *, cpus=(), replicas=1, requests=0, threads=1):
    metrics = {"rows": dict(enumerate(rows)), "waited_ms": dict(enumerate(waited_ms))}
    metrics["cpus"] = dict(enumerate(cpus))
    context = SimpleNamespace(
        aggregated_metrics=metrics, current_num_replicas=replicas, total_num_requests=requests
    )
    return ByRows(rows=10, waited_ms=200, threads=threads)(context)


@pytest.mark.parametrize(
    ("rows", "replicas"), [([], 0), ([0], 0), ([5], 1), ([10], 1), ([10.5], 1), ([12], 2), ([20, 20, 3], 5)]
)
def test_as_many_replicas_are_wanted_as_the_rows_of_all_need(rows, replicas):
    assert wanted(rows) == (replicas, {})


def test_a_wait_that_is_too_long_wants_one_replica_more():
    assert wanted([1, 1], [10, 250], replicas=2)[0] == 3
    assert wanted([1, 1], [10, 190], replicas=2)[0] == 1
    assert wanted([90], [250], replicas=2)[0] == 9


def test_a_process_that_has_no_time_left_wants_another_however_few_rows_it_sees():
    assert wanted([3], cpus=[0.95])[0] == 2
    assert wanted([3], cpus=[0.6])[0] == 1
    assert wanted([3, 3], cpus=[0.3, 0.2], replicas=2)[0] == 1
    assert wanted([3], cpus=[1.9], threads=4)[0] == 1


def test_cpu_time_is_that_of_the_process(clock):
    load = Load()
    clock.cpu += 3
    clock.seconds += 4
    assert load.report()["cpus"] == pytest.approx(0.75)
    clock.seconds += 4
    assert load.report()["cpus"] == 0


def test_calls_that_wait_for_a_first_replica_want_one():
    assert wanted([], replicas=0, requests=3)[0] == 1


def test_no_metrics_yet_are_no_reason_for_a_replica():
    context = SimpleNamespace(aggregated_metrics=None, current_num_replicas=1, total_num_requests=0)
    assert ByRows(rows=10, waited_ms=200)(context) == (0, {})


def test_a_fixed_number_of_replicas_needs_no_autoscaling():
    assert options(Scale.model_validate(3), rows=64) == {"num_replicas": 3}


@pytest.mark.parametrize(("text", "bounds"), [("2:5", (2, 2, 5)), ("0:4", (0, 1, 4))])
def test_a_range_of_replicas_has_its_bounds(text, bounds):
    found = options(Scale.model_validate(text), rows=64)
    config = found["autoscaling_config"]
    assert found["num_replicas"] is None
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == bounds
    assert config.metrics_interval_s < config.look_back_period_s < 10
    assert config.policy.policy_kwargs == {"rows": 64, "waited_ms": 200.0, "threads": 1}
