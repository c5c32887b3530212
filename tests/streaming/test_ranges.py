from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlaas_ray.streaming.ranges import gather, plan


def test_neighbours_are_joined_as_far_as_they_fit() -> None:
    assert plan([(50, 60), (0, 10), (10, 20), (22, 30)], largest=100, lone=1000, gap=2) == [(0, 30), (50, 60)]
    assert plan([(0, 60), (60, 120)], largest=100, lone=1000) == [(0, 60), (60, 120)]


def test_large_ranges_are_cut() -> None:
    assert plan([(0, 250)], largest=50, lone=100) == [(0, 100), (100, 200), (200, 250)]


def test_empty_ranges_ask_for_nothing() -> None:
    assert plan([(7, 7)], largest=10, lone=10) == []
    assert [bytes(part) for part in gather([(7, 7)], {})] == [b""]


@pytest.mark.parametrize("seed", range(20))
def test_every_range_gets_its_bytes_and_no_byte_is_read_twice(seed: int) -> None:
    random = np.random.default_rng(seed)
    content = random.bytes(5000)
    starts = random.integers(0, 5000, 60)
    ranges = [(int(start), int(min(5000, start + random.exponential(150)))) for start in starts]
    parts = plan(ranges, largest=200, lone=300, gap=int(random.integers(0, 20)))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(parts))
    assert max(stop - start for start, stop in parts) <= 300
    got = gather(ranges, {(start, stop): memoryview(content)[start:stop] for start, stop in parts})
    assert [bytes(part) for part in got] == [content[start:stop] for start, stop in ranges]
