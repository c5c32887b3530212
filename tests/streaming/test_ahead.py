from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from mlaas_ray.streaming.ahead import ahead


class Fetches:
    """Counts what is under way."""

    def __init__(self, seconds: float = 0.02) -> None:
        self.seconds = seconds
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.begun: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, job: int) -> int:
        with self.lock:
            self.begun.append(job)
            self.threads.add(threading.get_ident())
            self.now += 1
            self.most = max(self.most, self.now)
        # later ones are faster, so that they finish out of order
        time.sleep(self.seconds / (1 + job % 3))
        with self.lock:
            self.now -= 1
        return job * job


def test_results_come_in_the_order_of_the_jobs_however_long_each_takes() -> None:
    fetch = Fetches()
    assert list(ahead(range(40), fetch, size=lambda job: 1, in_flight=5)) == [(n, n * n) for n in range(40)]
    assert fetch.most == 5


def test_what_is_fetched_ahead_stays_within_its_bytes() -> None:
    fetch = Fetches(0.001)
    sizes = [40, 40, 40, 500, 40, 40]
    consumed = 0
    for job, _ in ahead(range(6), fetch, size=lambda job: sizes[job], max_bytes=100):
        time.sleep(0.03)
        with fetch.lock:
            held = sum(sizes[n] for n in fetch.begun[consumed:])
        assert held <= 100 or fetch.begun[consumed:] == [3], (job, fetch.begun)
        consumed += 1
    assert consumed == 6


def test_an_error_comes_in_the_turn_of_its_job() -> None:
    def fetch(job: int) -> int:
        if job == 3:
            raise OSError("lost")
        return job

    got = ahead(range(10), fetch, size=lambda job: 1, in_flight=4)
    assert [next(got)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="lost"):
        next(got)


def test_a_consumer_that_stops_leaves_nothing_running() -> None:
    fetch = Fetches(0.05)
    results: Iterator[tuple[int, int]] = ahead(range(1000), fetch, size=lambda job: 1, in_flight=3)
    assert next(results) == (0, 0)
    results.close()
    for thread in threading.enumerate():
        if thread.name.startswith("ahead"):
            thread.join(60)
            assert not thread.is_alive()
    assert fetch.now == 0
    assert len(fetch.begun) <= 6


def test_local_jobs_are_fetched_in_their_turn_and_without_threads() -> None:
    fetch = Fetches(0.0)
    for job, _ in ahead(range(20), fetch, size=lambda job: 1, is_local=lambda job: True):
        assert fetch.begun[-1] == job
    assert fetch.threads == {threading.get_ident()}


def test_jobs_are_drawn_no_further_than_they_are_fetched() -> None:
    drawn = []

    def jobs() -> Iterator[int]:
        for job in range(1000):
            drawn.append(job)
            yield job

    results = ahead(jobs(), Fetches(0.0), size=lambda job: 1, in_flight=2)
    next(results)
    results.close()
    assert len(drawn) == 5  # four under way or waiting, and the one that did not fit
