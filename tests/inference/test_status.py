"""Counts of a gateway's work."""

from __future__ import annotations

import asyncio
import random

import pytest

from mlaas_ray.inference.status import Status, Times


def test_percentiles_are_right_to_a_tenth():
    choose = random.Random(4)
    seconds = [choose.lognormvariate(-5, 1.5) for _ in range(5000)]
    times = Times()
    for second in seconds:
        times.add(2, second)
    ordered = sorted(seconds)
    for part in (0.5, 0.9, 0.99):
        assert times.percentile(part) == pytest.approx(ordered[int(part * 5000) - 1], rel=0.1)
    assert (times.requests, times.rows) == (5000, 10_000)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0, 54.5e-6), (1e-9, 54.5e-6), (50e-6, 54.5e-6), (1e6, 192.3)]
)
def test_times_out_of_all_bounds_count_at_the_bound(seconds, shown):
    times = Times()
    times.add(1, seconds)
    assert times.percentile(0.5) == pytest.approx(shown, rel=0.01)


def test_no_times_have_no_percentiles():
    assert Times().report() == {"requests": 0, "rows": 0, "p50_ms": 0.0, "p90_ms": 0.0, "p99_ms": 0.0}


def test_memory_stays_the_same_however_many_are_counted():
    times = Times()
    size = len(times._counts)
    for number in range(10_000):
        times.add(1, number * 1e-3)
    assert len(times._counts) == size


def test_percentiles_rise():
    times = Times()
    for number in range(1, 101):
        times.add(1, number * 1e-3)
    report = times.report()
    assert report["p50_ms"] == pytest.approx(50, rel=0.1)
    assert report["p90_ms"] == pytest.approx(90, rel=0.1)
    assert report["p99_ms"] == pytest.approx(99, rel=0.1)


def test_requests_are_counted_by_method_and_errors_are_the_services_own():
    status = Status()
    for method, code in (("GET", 200), ("GET", 404), ("POST", 503), ("DELETE", 200), ("PUT", 405)):
        status.count(method, code)
    assert status.requests == {"GET": 2, "POST": 1, "DELETE": 1, "PUT": 1}
    assert status.errors == 1


def test_predictions_are_counted_by_model():
    status = Status()
    status.predicted("higgs", 1, 0.002)
    status.predicted("higgs", 5, 0.002)
    status.predicted("top", 1, 0.002)
    assert {name: (times.requests, times.rows) for name, times in status.models.items()} == {
        "higgs": (2, 6),
        "top": (1, 1),
    }


def test_requests_that_took_as_long_are_counted_together():
    together, apart = Status(), Status()
    for seconds, requests in ((0.002, 3), (0.05, 200), (1e-6, 1)):
        together.count("POST", 200, requests)
        together.predicted("higgs", requests, seconds, requests=requests)
        for _ in range(requests):
            apart.count("POST", 200)
            apart.predicted("higgs", 1, seconds)
    together.count("POST", 503, 4)
    for _ in range(4):
        apart.count("POST", 503)
    assert together.requests == apart.requests == {"GET": 0, "POST": 208, "DELETE": 0}
    assert together.errors == apart.errors == 4
    assert together.models["higgs"].report() == apart.models["higgs"].report()


def test_the_report_has_the_keys_of_tfaas_and_the_models():
    async def main():
        status = Status()
        status.count("GET", 200)
        status.load.change(7)
        status.predicted("higgs", 3, 0.002)
        return status.report()

    report = asyncio.run(main())
    tfaas = {"CPU", "Load", "Memory", "NGo", "Uptime", "getRequests", "postRequests", "deleteRequests"}
    assert set(report) == tfaas | {"errors", "ongoing", "models"}
    assert (report["getRequests"], report["postRequests"], report["deleteRequests"]) == (1, 0, 0)
    assert report["ongoing"] == 7
    assert report["models"]["higgs"]["rows"] == 3
    assert report["models"]["higgs"]["p50_ms"] == pytest.approx(2, rel=0.1)
    assert 0 < report["Memory"]["Virtual"]["usedPercent"] <= 100
