from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlaas_ray.core.statistics import QUANTILES, Sketches, Statistics, Summary, bucket, edges

VALUES = arrays(
    np.float32,
    st.integers(0, 60),
    elements=st.floats(width=32, allow_subnormal=True) | st.floats(-100, 100, width=32) | st.integers(-5, 5),
)


def sketch(values: np.ndarray) -> Sketches:
    return Sketches.of({"x": Summary.of(values)})


def test_moments_are_of_the_finite_values() -> None:
    seen = Statistics.of([[1.0, np.nan], [3.0, np.inf]])
    assert (seen.count, seen.nan, seen.infinite, seen.missing) == (2, 1, 1, 0)
    assert (seen.min, seen.max, seen.mean, seen.std) == (1.0, 3.0, 2.0, 1.0)


@pytest.mark.parametrize("values", [[], [np.nan, np.inf, -np.inf]])
def test_without_a_finite_value_there_is_no_range(values: list[float]) -> None:
    seen = Statistics.of(values)
    assert (seen.count, seen.min, seen.max, seen.quantiles) == (0, None, None, {})
    assert (seen.nan, seen.infinite) == (len(values) and 1, len(values) and 2)


def test_values_beyond_float32_count_as_infinite() -> None:
    sentinel = np.finfo(np.float64).max
    seen = Statistics.of([1.0, sentinel, -sentinel, 1e39])
    assert (seen.count, seen.infinite, seen.min, seen.max, seen.mean) == (1, 3, 1.0, 1.0, 1.0)


def test_bools_and_integers_are_numbers() -> None:
    assert Statistics.of(np.array([True, False])).mean == 0.5
    assert Statistics.of(np.array([2**63, 0], dtype=np.uint64)).max == 2.0**63


@given(arrays(np.float32, 50, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_every_value_lies_in_its_bucket(values: np.ndarray) -> None:
    found = bucket(values).astype(int)
    assert (edges()[found] <= values).all()
    assert (values <= edges()[found + 1]).all()
    assert (np.diff(bucket(np.sort(values + np.float32(0))).astype(int)) >= 0).all()  # without -0


@given(VALUES, st.lists(st.integers(0, 60), max_size=4), st.randoms())
def test_merging_parts_gives_what_the_whole_gives(values: np.ndarray, cuts: list[int], random) -> None:
    parts = [sketch(part) for part in np.split(values, sorted(cuts))]
    random.shuffle(parts)
    whole, merged = sketch(values).statistics("x"), Sketches.merged(parts).statistics("x")
    assert (merged.count, merged.nan, merged.infinite) == (whole.count, whole.nan, whole.infinite)
    assert (merged.min, merged.max, merged.quantiles) == (whole.min, whole.max, whole.quantiles)
    # the deviation is a root: rounding of 1e-16 in the squares shows as 1e-8 of the largest value
    size = max((abs(float(x)) for x in values[np.isfinite(values)]), default=0.0)
    assert merged.mean == pytest.approx(whole.mean, rel=1e-9, abs=1e-9 * size)
    assert merged.std == pytest.approx(whole.std, rel=1e-6, abs=1e-6 * size)


def test_a_small_spread_far_from_zero_survives_merging() -> None:
    values = 1e9 + np.arange(1000.0)
    merged = Sketches.merged([sketch(values[:10]), sketch(values[10:])])
    assert merged.statistics("x").std == pytest.approx(values.std(), rel=1e-9)


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(1).exponential(40.0, 20_000),
        np.random.default_rng(2).normal(-3.0, 2.0, 20_000),
        np.random.default_rng(3).standard_cauchy(20_000),
        np.random.default_rng(4).uniform(1e30, 2e30, 20_000),
    ],
)
def test_quantiles_are_those_of_numpy_to_a_bucket(values: np.ndarray) -> None:
    seen = Statistics.of(values)
    for share, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True):
        assert seen.quantiles[share] == pytest.approx(value, rel=1 / 128, abs=1e-4 * np.ptp(values[:3]))


def test_quantiles_of_whole_numbers_are_whole() -> None:
    values = np.repeat([-7, 0, 3, 200], [2, 5, 10, 3])
    assert list(Statistics.of(values).quantiles.values()) == list(
        np.quantile(values, QUANTILES, method="closest_observation")
    )


def test_a_quantile_among_zeros_is_zero() -> None:
    assert Statistics.of([0.0] * 90 + [0.5] * 10).quantiles[0.5] == 0.0


def test_a_histogram_holds_every_value_in_its_bin() -> None:
    values = np.random.default_rng(5).integers(-20, 20, 5000).astype(float)
    bins = np.arange(-20.5, 20.5)
    np.testing.assert_allclose(sketch(values).histogram("x", bins), np.histogram(values, bins)[0], atol=1e-9)
    assert sketch(np.array([-1.0, 1.0, 1.0])).histogram("x", np.array([-1.0, 0.0, 1.0])).tolist() == [1, 2]
    smooth = np.random.default_rng(6).normal(0, 1, 50_000)
    counted = sketch(smooth).histogram("x", np.linspace(-4, 4, 41))
    np.testing.assert_allclose(counted, np.histogram(smooth, np.linspace(-4, 4, 41))[0], rtol=0.05, atol=25)


def test_branches_that_a_part_lacks_are_left_as_they_are() -> None:
    one = Sketches.of({"a": Summary.of([1.0, 2.0]), "b": Summary.of([5.0])})
    other = Sketches.of({"c": Summary(missing=7, largest=3), "a": Summary.of([9.0, math.nan])})
    merged = Sketches.merged([one, other])
    assert merged.names == ("a", "b", "c")
    assert merged.statistics("a") == Statistics.of([1.0, 2.0, 9.0, math.nan])
    assert merged.statistics("b") == Statistics.of([5.0])
    assert (merged.statistics("c").missing, merged.largest("c")) == (7, 3)
    assert Sketches.merged([one, other], ["b"]).names == ("b",)


def test_sketches_survive_json() -> None:
    import json

    made = Sketches.of({"a": Summary.of([-1.0, 2.0, 2.0, 1e30]), "empty": Summary.of([math.nan])})
    again = Sketches.from_document(json.loads(json.dumps(made.document(), allow_nan=False)))
    for name in made.names:
        assert again.statistics(name) == made.statistics(name)
