"""Runtimes: a model package in memory, ready to turn rows into predictions.

Both call the exported file through its own library (ONNX Runtime; TensorFlow's signature as a concrete
function), never through Keras: ``model.predict`` costs 20 to 220 ms a call where a signature costs 0.3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.flatten import Rows
from mlaas_ray.core.package import ModelFormat, ModelPackage, Signature, Tensor

Predictions = npt.NDArray[Any]

_ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class Runtime(Protocol):
    """A loaded model."""

    signature: Signature

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the first output for a batch of the first input's dtype and shape."""
        ...


class OnnxRuntime:
    """An ONNX file in ONNX Runtime.

    Args:
        path: The file.
        threads: Threads one prediction may use.

    Raises:
        ModelError: When it cannot be loaded.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A thread that spins while it waits takes the CPU of its neighbours.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's errors have no common base but Exception
            raise ModelError(
                f"ONNX Runtime cannot load {path.name}: {_first_line(error)}", "Export the model again"
            ) from None
        self.signature = Signature(
            inputs=tuple(map(_onnx_tensor, self._session.get_inputs())),
            outputs=_numbers_first(tuple(map(_onnx_tensor, self._session.get_outputs()))),
        )
        self._input = self.signature.inputs[0].name
        self._outputs = [self.signature.outputs[0].name]

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the first output for a batch."""
        return np.asarray(self._session.run(self._outputs, {self._input: batch})[0])


class SavedModelRuntime:
    """A TensorFlow SavedModel, called through its serving signature.

    Args:
        path: The SavedModel's directory.
        threads: Threads one prediction may use; the first model of a process decides for all.

    Raises:
        ModelError: When it cannot be loaded, or has no signature to serve.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        import tensorflow as tf

        _limit_threads(tf, threads)
        try:
            # Kept as long as the signature: it owns the variables.
            self._model = tf.saved_model.load(str(path))
            signatures = dict(self._model.signatures)
        except Exception as error:  # TensorFlow raises what its parsers and kernels raise
            raise ModelError(
                f"TensorFlow cannot load the SavedModel: {_first_line(error)}", "Export the model again"
            ) from None
        key = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
        if key is None or (key != "serving_default" and len(signatures) > 1):
            raise ModelError(
                f"the SavedModel has no signature serving_default, but: {', '.join(signatures) or 'none'}",
                "Export it with model.export(), or with tf.saved_model.save(..., signatures=...)",
            )
        self._function = signatures[key]
        self._constant = tf.constant
        inputs = self._function.structured_input_signature[1]
        outputs = self._function.structured_outputs
        self.signature = Signature(
            inputs=tuple(_tf_tensor(name, spec) for name, spec in inputs.items()),
            outputs=_numbers_first(tuple(_tf_tensor(name, spec) for name, spec in outputs.items())),
        )
        self._input = self.signature.inputs[0].name
        self._output = self.signature.outputs[0].name

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the first output for a batch."""
        return np.asarray(self._function(**{self._input: self._constant(batch)})[self._output].numpy())


def open_model(path: Path, model_format: ModelFormat, threads: int = 1) -> Runtime:
    """Load a model file (ONNX) or directory (SavedModel) that need not be part of a package.

    Raises:
        ModelError: When it cannot be loaded.
    """
    return OnnxRuntime(path, threads) if model_format == "onnx" else SavedModelRuntime(path, threads)


def load_runtime(package: ModelPackage, threads: int = 1) -> Runtime:
    """Check a package and load its model.

    Args:
        package: The package.
        threads: Threads one prediction may use.

    Raises:
        PackageError: When a file of it is missing or was changed.
        ModelError: When its runtime cannot load it, or it does not take what its package says.
    """
    package.check()
    runtime = open_model(package.model_path, package.manifest.model_format, threads)
    check_signature(runtime.signature)
    if package.signature.width != runtime.signature.width:
        raise ModelError(
            f"{package.name}: the package says {package.signature.width} values a row, "
            f"the model takes {runtime.signature.width}",
            "Publish the package again",
        )
    return runtime


def check_signature(signature: Signature) -> None:
    """Refuse what cannot be served by rows of numbers.

    Raises:
        ModelError: For several inputs, or a row of unknown size.
    """
    if len(signature.inputs) > 1:
        names = ", ".join(tensor.name for tensor in signature.inputs)
        raise ModelError(f"the model has {len(signature.inputs)} inputs: {names}", "Export it with one input")
    if len(signature.inputs[0].shape) < 2 or signature.width is None:
        raise ModelError(
            f"the model's input {signature.inputs[0].name!r} has shape {signature.inputs[0].shape}",
            "Export it with an input of (batch, features), where features is a number",
        )


def predict(runtime: Runtime, rows: Rows) -> Predictions:
    """Run rows through a model, whatever batch it was exported for.

    Args:
        runtime: The model.
        rows: ``(events, features)`` float32.

    Returns:
        ``(events, outputs…)``: one entry a row, at least two axes.

    Raises:
        ModelError: When the model fails, or gives something else than one entry a row.
    """
    tensor = runtime.signature.inputs[0]
    shape = tuple(size or 1 for size in tensor.shape[1:])
    batch = np.ascontiguousarray(rows.reshape(len(rows), *shape), dtype=tensor.dtype)
    try:
        answers = _in_batches(runtime, batch, tensor.shape[0])
    except Exception as error:  # what kernels raise has no common base
        raise ModelError(
            f"the model failed: {_first_line(error)}", "Check the model with these rows"
        ) from None
    if answers.ndim == 0 or len(answers) != len(rows):
        raise ModelError(
            f"the model gave {answers.shape} for {len(rows)} rows", "Export it with one answer a row"
        )
    return answers[:, None] if answers.ndim == 1 else answers


def _in_batches(runtime: Runtime, batch: npt.NDArray[Any], size: int | None) -> npt.NDArray[Any]:
    """Give a model of fixed batch size its rows in portions of that size, the last one filled up."""
    if size is None or size == len(batch):
        return runtime.run(batch)
    answers = []
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        answers.append(runtime.run(padded)[: len(part)])
    return np.concatenate(answers)


def _onnx_tensor(node: Any) -> Tensor:
    # A named size ("batch") is one that may vary.
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in node.shape or [])
    return Tensor(name=node.name, dtype=_ONNX_TYPES.get(node.type, node.type), shape=shape)


def _tf_tensor(name: str, spec: Any) -> Tensor:
    shape = tuple(spec.shape.as_list()) if spec.shape.rank is not None else ()
    return Tensor(name=name, dtype=spec.dtype.name, shape=shape)


def _numbers_first(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Put floating-point outputs first: classifiers exported from elsewhere give their label before."""
    return tuple(sorted(outputs, key=lambda tensor: not tensor.dtype.startswith("float")))


def _limit_threads(tf: Any, threads: int) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        # TensorFlow has started in this process: its threads are what the first model made them.
        return


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(". ")
