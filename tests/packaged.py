"""Packages of models that one can compute by hand: the logistic function of a sum of branches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.package import ModelPackage, Signature, Tensor, write_package
from mlaas_ray.core.task import Task


def package_of(
    folder: Path,
    features: FeatureSpec,
    slopes: Mapping[str, float],
    *,
    offset: float = 0.0,
    name: str = "scorer",
    task: Task | None = None,
    state: Mapping[str, bytes] | None = None,
) -> ModelPackage:
    """Write a package that answers ``1 / (1 + exp(-sum))``, with the sum of slope times value, 0 for NaN."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.array([[slopes.get(column, 0.0)] for column in features.columns], np.float32)
    numbers = {"weights": weights, "zero": np.zeros((), np.float32), "offset": np.array(offset, np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("IsNaN", ["inputs"], ["missing"]),
            helper.make_node("Where", ["missing", "zero", "inputs"], ["filled"]),
            helper.make_node("MatMul", ["filled", "weights"], ["product"]),
            helper.make_node("Add", ["product", "offset"], ["sum"]),
            helper.make_node("Sigmoid", ["sum"], ["outputs"]),
        ],
        "scorer",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["batch", features.width])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(value, key) for key, value in numbers.items()],
    )
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, str(folder / "model.onnx"))
    for file, content in (state or {}).items():
        (folder / "state").mkdir(exist_ok=True)
        (folder / "state" / file).write_bytes(content)
    return write_package(
        folder,
        name=name,
        framework="torch",
        model_format="onnx",
        signature=Signature(
            inputs=(Tensor(name="inputs", dtype="float32", shape=(None, features.width)),),
            outputs=(Tensor(name="outputs", dtype="float32", shape=(None, 1)),),
        ),
        task=task or Task(),
        features=features,
        labels=["background", "signal"],
    )
