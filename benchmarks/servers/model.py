"""The models that the servers are measured with, as packages: ``python model.py FOLDER --format savedmodel``.

A program of its own, because TensorFlow would otherwise live in the benchmark's process. Beside the package
``FOLDER/package`` it writes ``FOLDER/answers.npz``: rows ``x``, and numpy's ``answers`` to them.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

from mlaas_ray.core import Feature, FeatureSpec
from mlaas_ray.core.package import MODEL_PATHS, ModelFormat, Signature, Tensor, write_package
from mlaas_ray.core.statistics import Statistics
from mlaas_ray.core.task import Task
from mlaas_ray.inference.runtimes import OnnxRuntime, open_model

NAME, SLOW = "mlp", "slow"
LAYERS = (42, 128, 128, 128, 64, 64, 1, 1)
# sorted, as a FeatureSpec has them
COLUMNS = tuple(
    f"Jet{i}_{quantity}"
    for i in range(1, 7)
    for quantity in ("area", "btag", "charge", "eta", "mass", "phi", "pt")
)
SEEN = Statistics(count=4, min=-3.0, max=3.0, mean=0.0, std=1.0)
CHECKED = 64  # rows with a known answer
SIDE = 768  # of the slow model's matrices

Weights = list[tuple[np.ndarray, np.ndarray]]


def rows(count: int, seed: int = 1) -> np.ndarray:
    """Return distinct rows ``(count, 42)`` float32."""
    return np.random.default_rng(seed).normal(size=(count, LAYERS[0])).astype(np.float32)


def weights() -> Weights:
    """Return the fixed weights: those of no training, of a size that keeps the answers apart."""
    random = np.random.default_rng(5)
    return [
        (
            (random.normal(size=(before, after)) * np.sqrt(2 / before)).astype(np.float32),
            random.normal(0, 0.1, after).astype(np.float32),
        )
        for before, after in itertools.pairwise(LAYERS)
    ]


def activations() -> list[str | None]:
    """Return each layer's: of one neuron, ReLU would make half of all answers the same."""
    return [*("relu" for _ in LAYERS[1:-2]), None, "sigmoid"]


def answers(x: np.ndarray) -> np.ndarray:
    """Return ``(rows, 1)``: the model in numpy, float64."""
    for (kernel, bias), activation in zip(weights(), activations(), strict=True):
        x = x.astype(np.float64) @ kernel + bias
        if activation == "relu":
            x = np.maximum(x, 0)
    return 1 / (1 + np.exp(-x))


def write_saved_model(path: Path) -> None:
    """Write it as Keras exports it."""
    import keras

    layers: list[Any] = [keras.Input((LAYERS[0],), name="x")]
    layers += [
        keras.layers.Dense(width, activation=activation)
        for width, activation in zip(LAYERS[1:], activations(), strict=True)
    ]
    model = keras.Sequential(layers)
    model.set_weights([array for pair in weights() for array in pair])
    model.export(path, verbose=False)


def write_onnx(path: Path) -> None:
    """Write the same as an ONNX file."""
    from onnx import helper, numpy_helper

    nodes, constants, last = [], [], "x"
    for number, ((kernel, bias), activation) in enumerate(zip(weights(), activations(), strict=True)):
        constants += [
            numpy_helper.from_array(kernel, f"w{number}"),
            numpy_helper.from_array(bias, f"b{number}"),
        ]
        linear = f"linear{number}" if activation else f"h{number}"
        nodes.append(helper.make_node("Gemm", [last, f"w{number}", f"b{number}"], [linear]))
        last = "prediction" if activation == "sigmoid" else f"h{number}"
        if activation:
            nodes.append(helper.make_node(activation.title(), [linear], [last]))
    _save(path, nodes, constants)


def write_slow(path: Path, seconds: float) -> None:
    """Write an ONNX model whose batch takes about this long here on one thread, however few rows it has."""
    _write_products(path, 4)
    runtime, x = OnnxRuntime(path), rows(1)
    runtime.run(x)
    begun = time.perf_counter()
    runtime.run(x)
    _write_products(path, max(1, round(4 * seconds / (time.perf_counter() - begun))))


def _write_products(path: Path, count: int) -> None:
    """Write a model that multiplies a matrix with itself so many times."""
    from onnx import helper, numpy_helper

    square = np.random.default_rng(3).normal(size=(SIDE, SIDE)).astype(np.float32) / np.sqrt(SIDE)
    narrow = np.ones((LAYERS[0], 1), np.float32) / LAYERS[0]
    constants = [
        numpy_helper.from_array(square.astype(np.float32), "square"),
        numpy_helper.from_array(narrow, "narrow"),
    ]
    # the products depend on the rows: of constants, the runtime would compute them once
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["square", "largest"], ["p0"]),
    ]
    nodes += [helper.make_node("MatMul", [f"p{i}", "square"], [f"p{i + 1}"]) for i in range(count)]
    nodes += [
        helper.make_node("ReduceMean", [f"p{count}"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["x", "narrow"], ["sum"]),
        helper.make_node("Add", ["sum", "mean"], ["shifted"]),
        helper.make_node("Sigmoid", ["shifted"], ["prediction"]),
    ]
    _save(path, nodes, constants)


def _save(path: Path, nodes: list[Any], constants: list[Any]) -> None:
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", LAYERS[0]])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["batch", 1])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))


def main() -> None:
    """Write one package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=MODEL_PATHS, default="savedmodel")
    parser.add_argument("--slow", type=float, help="the slow model instead, with batches of so many seconds")
    options = parser.parse_args()
    model_format: ModelFormat = "onnx" if options.slow else options.format
    features = FeatureSpec.of(
        [Feature(name=name, kind="flat", statistics=SEEN) for name in COLUMNS], normalisation="none"
    )
    assert features.columns == COLUMNS
    package = options.folder / "package"
    package.mkdir(parents=True)
    path = package / MODEL_PATHS[model_format]
    if options.slow:
        write_slow(path, options.slow)
    else:
        (write_onnx if model_format == "onnx" else write_saved_model)(path)
    found = open_model(path, model_format).signature
    write_package(
        package,
        name=SLOW if options.slow else NAME,
        framework="keras" if model_format == "savedmodel" else "torch",
        model_format=model_format,
        signature=Signature(
            inputs=found.inputs,
            outputs=(Tensor(name=found.outputs[0].name, dtype="float32", shape=(None, 1)),),
        ),
        task=Task(),
        features=features,
        labels=["background", "signal"],
    )
    if not options.slow:
        x = rows(CHECKED)
        np.savez(options.folder / "answers.npz", x=x, answers=answers(x))


if __name__ == "__main__":
    main()
