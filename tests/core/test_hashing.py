from __future__ import annotations

import numpy as np

from mlaas_ray.core.hashing import mix


def test_it_is_splitmix64() -> None:
    # the generator's first numbers from the seed 0: multiples of its step, mixed
    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        steps = np.arange(1, 3, dtype=np.uint64) * step
    assert mix(steps).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_no_two_numbers_become_one() -> None:
    assert len(np.unique(mix(np.arange(100_000, dtype=np.uint64)))) == 100_000
