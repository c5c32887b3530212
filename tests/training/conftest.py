"""Datasets of toy events, as the streaming layer would give them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from mlaas_ray.core import Feature, FeatureSpec, Statistics

WIDTH = 5


def toy_values(count: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Values ``(count, 5)``, a fifth of them missing, background first; and labels ``(count,)``."""
    random = np.random.default_rng(seed)
    y = (np.arange(count) >= count // 2).astype(np.float32)
    x = random.normal(y[:, None] * [0.0, 0.5, 1.0, -1.0, 0.2], 1.0) * [1, 10, 100, 1, 5]
    x[random.random(x.shape) < 0.2] = np.nan
    return x.astype(np.float32), y


def toy_table(count: int, seed: int, *, dataset: int = 0) -> pa.Table:
    x, y = toy_values(count, seed)
    return pa.table(
        {
            "x": pa.FixedShapeTensorArray.from_numpy_ndarray(x),
            "y": y,
            "weight": np.ones(count, np.float32),
            "dataset": np.full(count, dataset, np.int32),
            "file": np.full(count, seed, np.int32),
            "entry": np.arange(count, dtype=np.int64),
        }
    )


@pytest.fixture(scope="session")
def toy_events() -> Callable[..., pa.Table]:
    """``toy_events(count, seed)``: a table of that many events."""
    return toy_table


@pytest.fixture(scope="session")
def toy_features() -> FeatureSpec:
    x, _ = toy_values(4000, 0)
    return FeatureSpec.of(
        [Feature(name=f"v{i}", kind="flat", statistics=Statistics.of(x[:, i])) for i in range(WIDTH)]
    )


@pytest.fixture(scope="session")
def toy_pair(ray_local: None) -> Callable[..., tuple[Any, Any]]:
    """Make a dataset of 3000 training and one of 601 validation events, in blocks of unequal sizes."""
    import ray.data

    def make(blocks: int = 3) -> tuple[Any, Any]:
        pair = []
        for events in (toy_table(3000, 1), toy_table(601, 2)):
            count = events.num_rows
            cuts = [0, count // 2, count // 2 + count // 8, count] if blocks > 1 else [0, count]
            pair.append(ray.data.from_arrow([events.slice(a, b - a) for a, b in itertools.pairwise(cuts)]))
        return pair[0], pair[1]

    return make


class Process:
    """An actor that runs what it is sent."""

    def run(self, pickled: bytes) -> Any:
        import pickle

        function, arguments = pickle.loads(pickled)
        return function(*arguments)


@pytest.fixture(scope="session")
def in_a_process(ray_local: None) -> Iterator[Callable[..., Any]]:
    """Call ``in_a_process(framework, function, *arguments)`` in a process kept for one framework.

    TensorFlow must not be loaded here: tests of other layers load XRootD, which has to come first.
    """
    import ray

    processes: dict[str, Any] = {}

    def call(framework: str, function: Callable[..., Any], *arguments: Any) -> Any:
        module = sys.modules[function.__module__]
        ray.cloudpickle.register_pickle_by_value(module)
        pickled = ray.cloudpickle.dumps((function, arguments))
        if framework not in processes:
            environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
            own = ray.remote(num_cpus=0, runtime_env={"env_vars": environment})(Process)
            processes[framework] = own.remote()
        return ray.get(processes[framework].run.remote(pickled))

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield call
    for process in processes.values():
        ray.kill(process)
