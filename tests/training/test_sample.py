from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlaas_ray.training.group import Group
from mlaas_ray.training.sample import Rows, Sampler, write_sample

Tables = Callable[..., pa.Table]


def sample(tables: list[pa.Table], rows: int = 256) -> Rows:
    sampler = Sampler(5, rows)
    passed = list(sampler.watch(tables))
    assert passed == tables
    assert sampler.seen
    return sampler.chosen(Group())


def test_the_same_events_are_chosen_however_they_lie(toy_events: Tables) -> None:
    first, second = toy_events(1000, 1), toy_events(500, 2, dataset=1)
    one = sample([first, second])
    other = sample([second.slice(100), first.slice(0, 7), second.slice(0, 100), first.slice(7)])
    assert len(one["entry"]) == 256
    for name, values in one.items():
        assert np.array_equal(values, other[name], equal_nan=True), name
    # of both, in proportion
    assert 130 < (one["dataset"] == 0).sum() < 210


def test_few_events_are_all_chosen(toy_events: Tables) -> None:
    assert sorted(sample([toy_events(10, 1)])["entry"]) == list(range(10))


def test_later_passes_change_nothing(toy_events: Tables) -> None:
    sampler = Sampler(5)
    table = toy_events(100, 1)
    for _ in range(3):
        list(sampler.watch([table]))
    assert len(sampler.chosen(Group())["entry"]) == 100


def test_the_file_holds_events_and_answers(toy_events: Tables, tmp_path: Path) -> None:
    table = toy_events(10, 1)
    chosen = sample([table])
    write_sample(tmp_path, chosen, np.linspace(0, 1, 10, dtype=np.float32))
    with np.load(tmp_path / "sample.npz") as arrays:
        types = {name: (values.shape, values.dtype.name) for name, values in arrays.items()}
        x, entry = arrays["x"], arrays["entry"]
    assert types == {
        "x": ((10, 5), "float32"),
        "prediction": ((10,), "float32"),
        "dataset": ((10,), "int32"),
        "file": ((10,), "int32"),
        "entry": ((10,), "int64"),
    }
    raw = table["x"].combine_chunks().to_numpy_ndarray()
    assert np.array_equal(x, raw[entry], equal_nan=True)
