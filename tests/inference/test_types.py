"""Values of models whose inputs are no float32: unrounded, or refused, whichever way they come in."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlaas_ray.core.errors import EventError, ModelError
from mlaas_ray.core.features import Feature, FeatureSpec
from mlaas_ray.core.package import ModelPackage, Signature, Tensor, write_package
from mlaas_ray.inference.inspection import examine_apart
from mlaas_ray.inference.onnx_runtime import OnnxRuntime
from mlaas_ray.inference.predictions import predict
from mlaas_ray.inference.rows import Table, fit
from mlaas_ray.inference.runtimes import load_runtime
from mlaas_ray.inference.wire import Row
from tests.inference.face import Face

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"]
TYPES = [*INTEGERS, "float16", "float64"]
BRANCHES = FeatureSpec.of(
    [Feature(name="run", kind="flat"), Feature(name="hits", kind="jagged", length=2)], normalisation="none"
)
DEFINED = FeatureSpec.of(
    [Feature(name="same", kind="flat"), Feature(name="hits", kind="jagged", length=2)],
    define={"same": "run"},
    normalisation="none",
)


def edges(dtype: str) -> list[int]:
    """The least and the largest value of a type of integers."""
    if dtype == "bool":
        return [0, 1]
    return [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]


@pytest.fixture(scope="module")
def http(onnx_package: ModelPackage, tmp_path_factory: pytest.TempPathFactory) -> Face:
    """The HTTP face, with models ``<type>`` of columns, and ``defined-<type>`` which compute them."""
    face = Face(tmp_path_factory.mktemp("face"), onnx_package)

    def fill(draft: Path, name: str, dtype: str, spec: FeatureSpec) -> None:
        (draft / "model.onnx").write_bytes(b"is not opened here")
        signature = Signature(
            inputs=(Tensor(name="x", dtype=dtype, shape=(None, spec.width)),),
            outputs=(Tensor(name="y", dtype="float32", shape=(None, 1)),),
        )
        write_package(
            draft, name=name, framework="unknown", model_format="onnx", signature=signature, features=spec
        )

    repository = face.backend.catalog.repository
    for dtype in TYPES:
        for name, spec in ((dtype, BRANCHES), (f"defined-{dtype}", DEFINED)):
            repository.add(name, partial(fill, name=name, dtype=dtype, spec=spec))
    return face


def arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def array(values: list[Any]) -> pa.Array:
    """Numbers in a type that holds all of them."""
    if not all(isinstance(value, int) for value in values):
        return pa.array(values, pa.float64())
    return pa.array(values, pa.uint64() if min(values) >= 0 else pa.int64())


def npy(values: list[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([values], array(values).type.to_pandas_dtype()))
    return file.getvalue()


# Each sends the values of a row of three columns, which are the branch run and the first two of hits.
Way = Callable[[Face, str, list[Any]], Any]
STREAM = {"Content-Type": "application/vnd.apache.arrow.stream"}
WAYS: dict[str, Way] = {
    "values": lambda face, model, row: face.post("/json", json={"model": model, "values": row}),
    "many": lambda face, model, row: face.post("/json", json={"model": model, "values": [row]}),
    "keys": lambda face, model, row: face.post(
        "/json", json={"model": model, "keys": ["hits_1", "hits_0", "run"], "values": row[::-1]}
    ),
    "event": lambda face, model, row: face.post(
        "/json", json={"model": model, "event": {"run": row[0], "hits": row[1:]}}
    ),
    "computed event": lambda face, model, row: face.post(
        "/json", json={"model": f"defined-{model}", "events": [{"run": row[0], "hits": row[1:]}]}
    ),
    "npy": lambda face, model, row: face.post(
        f"/models/{model}/predict", content=npy(row), headers={"Content-Type": "application/x-npy"}
    ),
    "arrow lists": lambda face, model, row: face.post(
        f"/models/{model}/predict",
        content=arrow(pa.table({"x": pa.FixedSizeListArray.from_arrays(array(row), 3)})),
        headers=STREAM,
    ),
    "arrow columns": lambda face, model, row: face.post(
        f"/models/{model}/predict",
        content=arrow(pa.table({"hits_1": array(row[2:]), "run": array(row[:1]), "hits_0": array(row[1:2])})),
        headers=STREAM,
    ),
    "arrow branches": lambda face, model, row: face.post(
        f"/models/{model}/predict",
        content=arrow(
            pa.table({"run": array(row[:1]), "hits": pa.ListArray.from_arrays([0, 2], array(row[1:]))})
        ),
        headers=STREAM,
    ),
    "arrow computed": lambda face, model, row: face.post(
        f"/models/defined-{model}/predict",
        content=arrow(
            pa.table({"run": array(row[:1]), "hits": pa.ListArray.from_arrays([0, 2], array(row[1:]))})
        ),
        headers=STREAM,
    ),
}
SINGLES: dict[str, Way] = {
    "message": lambda face, model, row: face.post(
        "/proto", content=Row(value=row, model=model).SerializeToString()
    ),
    "raw": lambda face, model, row: face.post(
        f"/models/{model}/predict",
        content=np.array(row, "<f4").tobytes(),
        headers={"Content-Type": "application/octet-stream"},
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_come_unrounded_and_the_next_ones_are_refused(http, dtype, way):
    least, most = edges(dtype)
    reply = WAYS[way](http, dtype, [most, least, most - 1])
    assert reply.status_code == 200, reply.text
    np.testing.assert_array_equal(http.backend.asked, np.array([[most, least, most - 1]], dtype), strict=True)
    for value in (least - 1, most + 1):
        if -(2**63) <= value < 2**64:
            reply = WAYS[way](http, dtype, [value, 0, 0])
            assert reply.status_code == 400, http.backend.asked
            name = "same" if "computed" in way else "run"
            said = f"row 0: the value of {name} is {value}, which {dtype} cannot hold"
            assert reply.json()["error"] == f"{said}. Send whole numbers from {least} to {most}."


@pytest.mark.parametrize("way", WAYS | SINGLES)
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("value", [1.5, -0.5, 1e30])
def test_what_is_no_integer_of_the_type_is_refused_with_its_value(http, dtype, way, value):
    reply = (WAYS | SINGLES)[way](http, dtype, [0.0, 1.0, value])
    assert reply.status_code == 400
    shown = value if way not in SINGLES else str(np.float32(value))
    assert f"the value of hits_1 is {shown}, which {dtype} cannot hold" in reply.json()["error"]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize(
    "way",
    [
        lambda face, model: face.post("/json", json={"model": model, "values": [0, None, 0]}),
        lambda face, model: face.post("/json", json={"model": model, "keys": ["run"], "values": [1]}),
        lambda face, model: face.post("/json", json={"model": model, "event": {"run": 1, "hits": [1]}}),
        lambda face, model: face.post(
            "/proto", content=Row(key=["run"], value=[1], model=model).SerializeToString()
        ),
        lambda face, model: face.post(
            f"/models/{model}/predict",
            content=arrow(pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array([0, None, 1]), 3)})),
            headers=STREAM,
        ),
        lambda face, model: face.post(
            f"/models/{model}/predict", content=arrow(pa.table({"run": array([1])})), headers=STREAM
        ),
    ],
)
def test_a_missing_value_is_refused_by_a_model_of_integers(http, dtype, way):
    reply = way(http, dtype)
    assert reply.status_code == 400
    assert f"is missing, which {dtype} cannot hold" in reply.json()["error"]


@pytest.mark.parametrize("way", WAYS)
def test_float64_comes_unrounded(http, way):
    row = [0.1, 1e300, 16777217.000000002]
    reply = WAYS[way](http, "float64", row)
    assert reply.status_code == 200, reply.text
    np.testing.assert_array_equal(http.backend.asked, np.array([row]), strict=True)


@pytest.mark.parametrize("way", WAYS | SINGLES)
def test_float16_is_rounded_and_refuses_what_is_too_large(http, way):
    reply = (WAYS | SINGLES)[way](http, "float16", [0.1, 1e-9, 65504.0])
    assert reply.status_code == 200
    np.testing.assert_array_equal(http.backend.asked, np.float16([[0.1, 0, 65504]]), strict=True)
    reply = (WAYS | SINGLES)[way](http, "float16", [0.0, 0.0, 1e6])
    assert reply.status_code == 400
    assert "the value of hits_1 is too large for float16: 1000000" in reply.json()["error"]


def test_a_missing_value_is_nan_to_a_model_of_floats(http):
    for dtype in ("float16", "float64"):
        assert WAYS["values"](http, dtype, [1, None, 2]).status_code == 200
        np.testing.assert_array_equal(http.backend.asked, np.array([[1, np.nan, 2]], dtype), strict=True)


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int64", "float64", "float16", "float32"])
def test_numbers_of_any_type_fit_or_are_named(dtype):
    kind = np.dtype(dtype)
    for own in (np.int64, np.float32, np.bool_, np.longdouble):
        sent = np.array([[1, 0]], own)
        np.testing.assert_array_equal(fit(sent, kind), np.array([[1, 0]], dtype), strict=True)
        np.testing.assert_array_equal(Table(sent).rows(None, 2, kind)[0], np.array([[1, 0]], dtype))
    with pytest.raises(EventError, match=f"number 1 .*{dtype}"):
        fit(np.array([[0, np.inf]]), kind)


def write_cast(path: Path, kind: int) -> Path:
    """Write an ONNX file of two values of a type, which answers them as float64."""
    import onnx
    from onnx import TensorProto, helper

    rows = helper.make_tensor_value_info("x", kind, ["batch", 2])
    answers = helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["batch", 2])
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE)
    graph = helper.make_graph([node], "cast", [rows], [answers])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))
    return path


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool", "double"]
)
def test_an_onnx_file_of_any_type_of_numbers_is_served(tmp_path, dtype):
    from onnx import TensorProto

    runtime = OnnxRuntime(write_cast(tmp_path / "model.onnx", getattr(TensorProto, dtype.upper())))
    wanted = "float64" if dtype == "double" else dtype
    assert runtime.signature.inputs[0].dtype == wanted
    most = 0.1 if dtype == "double" else edges(dtype)[1]
    rows = np.array([[0, most]], wanted)
    np.testing.assert_array_equal(predict(runtime, rows), rows.astype(float))
    if dtype != "double":
        with pytest.raises(EventError, match=f"number 1 is 0.5, which {dtype} cannot hold"):
            predict(runtime, np.float32([[0, 0.5]]))


def test_a_model_of_integers_is_examined_with_integers_also_beside_real_rows_that_have_holes(tmp_path):
    from onnx import TensorProto

    path = write_cast(tmp_path / "model.onnx", TensorProto.UINT8)
    np.savez(tmp_path / "sample.npz", x=np.float32([[1, np.nan], [2, 3]]))
    found, entry = examine_apart(path, "onnx", threads=1, timeout_s=60, cache=tmp_path / "cache")
    assert found.signature.inputs[0].dtype == "uint8"
    with np.load(entry / "probe.npz") as content:
        assert set(np.unique(content["rows"])) == {0, 1}


def test_a_package_that_says_another_type_than_its_model_takes_is_not_loaded(tmp_path):
    from onnx import TensorProto

    write_cast(tmp_path / "model.onnx", TensorProto.UINT8)
    signature = Signature(
        inputs=(Tensor(name="x", dtype="float32", shape=(None, 2)),),
        outputs=(Tensor(name="y", dtype="float64", shape=(None, 2)),),
    )
    package = write_package(
        tmp_path, name="mine", framework="unknown", model_format="onnx", signature=signature
    )
    with pytest.raises(ModelError, match="says 2 values a row of float32, the model takes 2 of uint8"):
        load_runtime(package)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_example_that_is_told_of_a_model_is_taken(http, dtype):
    for model in (dtype, f"defined-{dtype}"):
        params = http.get(f"/params/{model}").json()
        reply = http.post("/json", json={"model": model} | params["example"])
        assert reply.status_code == 200, reply.text
