from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlaas_ray.core.columns import Column, Jagged
from mlaas_ray.core.errors import FeatureError
from mlaas_ray.core.features import Feature, FeatureSpec, Statistics
from mlaas_ray.core.flatten import flatten
from mlaas_ray.streaming.scatter import Bounds, scatter

NAN = np.nan
DTYPES = ["?", "i1", "u1", "f2"] + [
    order + kind for order in "<>" for kind in ["i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
]


def jagged(lists: list[list[float]], dtype: str = "f4") -> Jagged:
    counts = [len(values) for values in lists]
    content = np.array([value for values in lists for value in values], dtype)
    return Jagged(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), content)


def spec_of(**lengths: int) -> FeatureSpec:
    return FeatureSpec.of([Feature(name=n, kind="jagged", length=length) for n, length in lengths.items()])


def random_bits(random: np.random.Generator, shape: Any, dtype: str) -> np.ndarray[Any, Any]:
    """Numbers of every size a type has, NaN and infinity too."""
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    count = int(np.prod(shape))
    return np.frombuffer(random.bytes(count * kind.itemsize), kind).reshape(shape)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    events=st.sampled_from([0, 1, 7, 256, 257, 900]),
    types=st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(0, 5)), min_size=1, max_size=8),
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_rows_are_those_of_the_reference_for_any_types_lengths_and_order(
    seed: int, events: int, types: list[tuple[str, int]]
) -> None:
    random = np.random.default_rng(seed)
    columns: dict[str, Column] = {"last": random.normal(size=events)}
    features = [Feature(name="last", kind="flat")]
    counts = random.integers(0, 6, events)
    for number, (dtype, length) in enumerate(types):
        name, kind = f"b{number}", random.choice(["flat", "fixed", "jagged"])
        if kind == "jagged":
            if random.random() < 0.4:  # another collection
                counts = random.integers(0, 6, events)
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
            columns[name] = Jagged(offsets, random_bits(random, offsets[-1], dtype))
        else:
            length = 1 if kind == "flat" else length
            columns[name] = random_bits(random, (events,) if kind == "flat" else (events, length), dtype)
        features.append(Feature(name=name, kind=kind, length=length))
    spec = FeatureSpec.of(features)
    rows = random.permutation(events + 5)[:events].astype(np.int64)
    rows[random.random(events) < 0.2] = -1
    out = np.full((events + 5, spec.width), 77, np.float32)

    scatter(columns, spec, out, rows)

    expected = np.full_like(out, 77)
    expected[rows[rows >= 0]] = flatten(columns, spec)[rows >= 0]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("length", [3, 20_000], ids=["cut", "padded"])
def test_an_event_with_more_values_than_are_converted_at_once_is_whole(length: int) -> None:
    lists = [[1.0, 2.0], list(np.arange(10_000.0)), [], list(np.arange(9_000.0)), [5.0]]
    columns = {"x": jagged(lists, ">f4"), "y": jagged(lists, "<i4")}
    spec = spec_of(x=length, y=length)
    out = np.empty((5, spec.width), np.float32)
    scatter(columns, spec, out)
    np.testing.assert_array_equal(out, flatten(columns, spec))


def test_columns_of_an_expression_are_taken_as_the_reference_takes_them() -> None:
    columns = {"x": ak.Array([[1, None], [], [3]]), "y": ak.Array([1.5, None, 2.5])}
    spec = FeatureSpec.of([Feature(name="x", kind="jagged", length=2), Feature(name="y", kind="flat")])
    out = np.empty((3, 3), np.float32)
    scatter(columns, spec, out)
    np.testing.assert_array_equal(out, flatten(columns, spec))


def test_values_that_do_not_lie_side_by_side_or_at_odd_addresses_are_read_right() -> None:
    raw = np.zeros(33, np.uint8)
    odd = raw[1:].view(">f8")
    odd[:] = [1, 2, 3, 4]
    columns = {"odd": odd, "step": np.arange(8.0)[::2], "turned": np.arange(8).reshape(2, 4).T}
    spec = FeatureSpec.of(
        [Feature(name=n, kind="flat") for n in ("odd", "step")]
        + [Feature(name="turned", kind="fixed", length=2)]
    )
    out = np.empty((4, 4), np.float32)
    scatter(columns, spec, out)
    np.testing.assert_array_equal(out, flatten(columns, spec))


def test_only_finite_values_outside_the_first_passes_range_are_counted() -> None:
    statistics = Statistics.of([1.1, 4.0])
    spec = FeatureSpec.of(
        [
            Feature(name="x", kind="jagged", length=3, statistics=statistics),
            Feature(name="y", kind="flat", statistics=statistics),
            Feature(name="z", kind="flat"),
        ]
    )
    columns = {
        "x": jagged([[1.1, 5.0, 0.5], [], [NAN, np.inf, -np.inf]], ">f8"),
        "y": np.array([4.0, 1.1, 4.0000005]),
        "z": np.array([1e30, -1e30, 0]),
    }
    out = np.empty((3, spec.width), np.float32)
    counted = dict(
        zip([f.name for f in spec.features], scatter(columns, spec, out, bounds=Bounds.of(spec)), strict=True)
    )
    assert counted == {"x": 2, "y": 1, "z": 0}
    assert not scatter(columns, spec, out).any()


@pytest.mark.parametrize(
    ("offsets", "said"),
    [
        ([0, 3, 2, 4], "do not rise"),
        ([0, 1, 2, 9], "offsets for 9"),
        ([0, 1, 2, 3], "4 values"),
        ([-1, 1, 2, 4], "do not rise"),
    ],
)
def test_offsets_that_point_elsewhere_are_refused(offsets: list[int], said: str) -> None:
    column = Jagged(np.array(offsets), np.arange(4.0))
    with pytest.raises(FeatureError, match=said):
        scatter({"x": column}, spec_of(x=2), np.empty((3, 2), np.float32))


@pytest.mark.parametrize(
    ("out", "rows", "said"),
    [
        (np.empty((2, 3), np.float32), None, "out must be"),
        (np.empty((2, 2)), None, "out must be"),
        (np.empty((2, 4), np.float32)[:, ::2], None, "out must be"),
        (np.empty((1, 2), np.float32), None, "less than 1"),
        (np.empty((2, 2), np.float32), np.array([0, 2]), "less than 2"),
        (np.empty((2, 2), np.float32), np.array([0, -2]), "rows must be"),
        (np.empty((2, 2), np.float32), np.array([0]), "rows must be 2"),
        (np.empty((2, 2), np.float32), np.array([0.0, 1.0]), "rows must be 2"),
    ],
)
def test_rows_outside_the_array_are_refused(out: Any, rows: Any, said: str) -> None:
    with pytest.raises(FeatureError, match=said):
        scatter({"x": jagged([[1], [2]])}, spec_of(x=2), out, rows)


def test_a_branch_that_is_missing_or_of_other_events_is_named() -> None:
    out = np.empty((2, 2), np.float32)
    with pytest.raises(FeatureError, match="no values for 'y'"):
        scatter({"x": jagged([[1], [2]])}, spec_of(x=1, y=1), out)
    with pytest.raises(FeatureError, match="'y' has values for 1 events, 'x' for 2"):
        scatter({"x": jagged([[1], [2]]), "y": jagged([[1]])}, spec_of(x=1, y=1), out)


@pytest.mark.slow
def test_the_kernel_works_where_nothing_can_be_written_beside_it(tmp_path: Path) -> None:
    program = (
        "import numpy as np, numba.core.caching as c\n"
        "c.CacheImpl._locator_classes = []\n"
        "from mlaas_ray.core import Feature, FeatureSpec\n"
        "from mlaas_ray.streaming.scatter import scatter\n"
        "out = np.empty((2, 1), np.float32)\n"
        "scatter({'x': np.arange(2.0)}, FeatureSpec.of([Feature(name='x', kind='flat')]), out)\n"
        "assert out.tolist() == [[0], [1]]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ, cwd=tmp_path)
