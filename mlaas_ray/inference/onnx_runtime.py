"""ONNX files in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.package import Signature, Tensor
from mlaas_ray.inference.examination import Examination, RuntimeName
from mlaas_ray.inference.predictions import first_line, served_first

_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxRuntime:
    """An ONNX file in ONNX Runtime.

    Args:
        path: The file.
        threads: Threads one prediction may use.
        named: What the output to serve is called, see :func:`.served_first`.

    Raises:
        ModelError: When it cannot be loaded.
    """

    name: RuntimeName = "onnxruntime"
    examination: Examination

    def __init__(self, path: Path, threads: int = 1, named: Sequence[str] = ()) -> None:
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
                f"ONNX Runtime cannot load {path.name}: {first_line(error)}", "Export the model again"
            ) from None
        self.signature = Signature(
            inputs=tuple(map(_tensor, self._session.get_inputs())),
            outputs=served_first(map(_tensor, self._session.get_outputs()), named),
        )
        self._input = self.signature.inputs[0].name
        self._outputs = [self.signature.outputs[0].name]

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the first output for a batch."""
        return np.asarray(self._session.run(self._outputs, {self._input: batch})[0])


def check_external_data(path: Path) -> None:
    """Refuse an ONNX file whose weights would be read from outside its own folder.

    Raises:
        ModelError: For such a file, one whose weights are missing, and one that is not ONNX.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, and what a damaged file makes of it
        raise ModelError(f"not an ONNX file: {error}", "Export the model again") from None
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        file = path.parent / location
        if not location or location != Path(location).name or location in (".", "..") or not file.is_file():
            raise ModelError(
                f"the ONNX file reads weights from {location!r}",
                "Put the weights into the ONNX file, or beside it into the bundle",
            )


def _tensor(node: Any) -> Tensor:
    # A named size ("batch") is one that may vary.
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in node.shape or [])
    return Tensor(name=node.name, dtype=_TYPES.get(node.type, node.type), shape=shape)


def _tensors(graph: Any) -> Iterator[Any]:
    """Give every constant of a graph and of the graphs within it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _tensors(inner)
