"""Trees of any types, shapes, baskets and compression: from the file to ``x`` as uproot and awkward do."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st

from mlaas_ray.core.inputs import Inputs
from mlaas_ray.streaming import ReadingSettings, Sample, first_pass, planned_events, tasks

DTYPES = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float32",
    "float64",
]
CODECS = [None, uproot.ZLIB(1), uproot.LZ4(4), uproot.ZSTD(1), uproot.LZMA(1)]
KINDS = ["flat", "jagged", "fixed"]

branches = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sampled_from(DTYPES), st.booleans()), min_size=1, max_size=6
)


@pytest.fixture(autouse=True, scope="module")
def here() -> Any:
    """The first pass in this process, not by tasks of a cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "spread", lambda function, calls, **_: [function(*call) for call in calls])
        yield


def random_array(random: np.random.Generator, kind: str, dtype: str, events: int) -> ak.Array | np.ndarray:
    """Numbers of any bits; a boolean's byte may be any."""
    counts = random.integers(0, 4, events)
    number = int(counts.sum()) if kind == "jagged" else events * (3 if kind == "fixed" else 1)
    values = np.frombuffer(random.bytes(number * np.dtype(dtype).itemsize), dtype)
    if kind == "jagged":
        return ak.unflatten(ak.Array(ak.contents.NumpyArray(values)), counts)
    return values.reshape(events, 3) if kind == "fixed" else values


def write(path: Path, arrays: dict[str, Any], form: str, codec: Any, edges: Sequence[int]) -> None:
    with uproot.recreate(path, compression=codec) as file:
        if form == "RNTuple":
            whole = {name: ak.Array(array) for name, array in arrays.items()}
            tree = file.mkrntuple("t", ak.zip(whole, depth_limit=1).layout.form)
        else:
            types = {
                name: ak.type(array).content
                if isinstance(array, ak.Array)
                else (array.dtype, array.shape[1:])
                for name, array in arrays.items()
            }
            tree = file.mktree("t", types)
        for start, stop in itertools.pairwise(edges):
            tree.extend({name: array[start:stop] for name, array in arrays.items()})


def rows(array: Any, length: int) -> np.ndarray:
    """Return what uproot read as rows of float32, NaN behind the last value."""
    array = ak.Array(array)
    if ak.type(array).content.__class__ is ak.types.ListType:
        array = ak.to_numpy(
            ak.fill_none(ak.pad_none(as_floats(array), length, clip=True), np.float32(np.nan))
        )
    return np.asarray(as_floats(array), np.float32).reshape(len(array), length)


def as_floats(array: ak.Array) -> ak.Array:
    """Convert to float32; what is beyond is infinite, and every byte but 0 is true."""

    def convert(layout: Any, **_: Any) -> Any:
        if not isinstance(layout, ak.contents.NumpyArray):
            return None
        values = np.asarray(layout.data)
        values = values.view(np.uint8) != 0 if values.dtype == np.bool_ else values
        with np.errstate(over="ignore"):
            return ak.contents.NumpyArray(values.astype(np.float32))

    return ak.transform(convert, array)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    branches=branches,
    form=st.sampled_from(["TTree", "RNTuple"]),
    codec=st.sampled_from(CODECS),
    cuts=st.lists(st.integers(1, 39), unique=True, max_size=3),
    selects=st.booleans(),
    sample=st.sampled_from([1.0, 0.4]),
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_any_tree_comes_to_x_as_uproot_and_awkward_give_it(
    seed: int,
    branches: list[tuple[str, str, bool]],
    form: str,
    codec: Any,
    cuts: list[int],
    selects: bool,
    sample: float,
) -> None:
    random = np.random.default_rng(seed)
    names = [f"{'ABCDEF'[i]}_{kind}" for i, (kind, _, _) in enumerate(branches)]
    files = []
    for number in range(2):
        arrays: dict[str, Any] = {"key": random.integers(0, 10, 40).astype(np.int32)}
        for name, (kind, dtype, everywhere) in zip(names, branches, strict=True):
            if number == 0 or everywhere:
                arrays[name] = random_array(random, kind, dtype, 40)
        files.append(arrays)
    reading = ReadingSettings(missing="fill", sample=sample, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.root" for number in range(2)]
        for path, arrays in zip(paths, files, strict=True):
            write(path, arrays, form, codec, [0, *sorted(cuts), 40])
        inputs = Inputs(include=(*names, "key"), select="key < 7" if selects else None)
        found = first_pass([Sample([str(path) for path in paths])], inputs, reading=reading)
        planned = planned_events(found, reading=reading)
        tables = list(planned.tables(0, range(planned.blocks(0))))
        x = np.concatenate([table["x"].combine_chunks().to_numpy_ndarray() for table in tables])
        read = [uproot.open(path)["t"].arrays() for path in paths]
    kept = np.concatenate([ak.to_numpy(arrays["key"]) for arrays in read]) < (7 if selects else 10)
    for feature in found.features.features:
        parts = []
        for arrays in read:
            if feature.name in arrays.fields:
                parts.append(rows(arrays[feature.name], feature.length))
            else:
                dtype = branches[names.index(feature.name)][1]
                nothing = 0.0 if dtype == "bool" and feature.kind != "jagged" else np.nan
                parts.append(np.full((40, feature.length), nothing, np.float32))
        start = found.features.starts[feature.name]
        np.testing.assert_array_equal(
            x[:, start : start + feature.length], np.concatenate(parts)[kept], feature.name
        )
