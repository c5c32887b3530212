from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlaas_ray.core import Feature, FeatureSpec, Statistics
from mlaas_ray.core.task import Task
from mlaas_ray.training.batches import Batch
from mlaas_ray.training.framework import Setup
from mlaas_ray.training.frameworks import find_model, load_framework
from mlaas_ray.training.group import Group
from mlaas_ray.training.normalised import Normaliser
from mlaas_ray.training.settings import TrainSettings

WIDTH = 1000
SEEN = Statistics(count=4, min=-2.0, max=6.0, mean=0.5, std=0.3, quantiles={0.25: -1.0, 0.5: 0.5, 0.75: 2.0})


def spec(**changes: Any) -> FeatureSpec:
    return FeatureSpec.of(
        [Feature(name=f"v{i}", kind="flat", statistics=SEEN) for i in range(WIDTH)], **changes
    )


def normaliser(cpus: float, *, masked: bool, features: FeatureSpec | None = None) -> Normaliser:
    features = features or spec()
    framework = load_framework("torch")
    settings = TrainSettings(cpus_per_worker=cpus)
    setup = Setup(find_model("mlp", framework), {}, features, Task(), settings, Group())
    return Normaliser(setup, masked=masked)


def batch(rows: np.ndarray | None) -> Batch:
    random = np.random.default_rng(0)
    table = random.normal(0, 10, (1500, WIDTH)).astype(np.float32)
    table[random.random(table.shape) < 0.3] = np.nan
    table[3, 4], table[5, 6] = np.inf, -np.inf
    count = len(table) if rows is None else len(rows)
    return Batch(table, np.zeros(count, np.float32), np.ones(count, np.float32), rows)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cpus", [0.5, 1, 3])
@pytest.mark.parametrize(
    "rows", [None, np.array([3, 5, 3, 1499]), np.arange(1499, -1, -1), np.array([], int)]
)
def test_values_are_those_of_the_formula_and_0_where_there_is_none(
    rows: np.ndarray | None, cpus: float, masked: bool
) -> None:
    given = batch(rows)
    values, mask = normaliser(cpus, masked=masked)(given)
    x = given.table if rows is None else given.table[rows]
    there = np.isfinite(x)
    expected = np.where(there, (x - np.float32(-2)) * np.float32(1 / 8), np.float32(0))
    np.testing.assert_array_equal(values, expected)
    assert values.dtype == mask.dtype == np.float32
    np.testing.assert_array_equal(mask, there.astype(np.float32) if masked else np.empty((0, 0)))


@pytest.mark.parametrize("cpus", [1, 3])
def test_tails_are_bent_as_the_features_say(cpus: float) -> None:
    features, given = spec(normalisation="softclip"), batch(None)
    values, mask = normaliser(cpus, masked=True, features=features)(given)
    np.testing.assert_allclose(values, features.normalised(given.table), rtol=1e-6, atol=1e-7)
    assert np.abs(values).max() < features.bound
    np.testing.assert_array_equal(mask, np.isfinite(given.table))


def test_rows_of_a_table_are_a_batch() -> None:
    given = batch(np.array([7, 2]))
    np.testing.assert_array_equal(given.x, given.table[[7, 2]])
    np.testing.assert_array_equal(given[slice(1, 2)].x, given.table[[2]])
    assert len(given) == 2
    assert Batch.joined([given, given]).x.shape == (4, WIDTH)
