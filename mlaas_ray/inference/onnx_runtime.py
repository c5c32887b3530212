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
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "tensor(bool)": "bool",
}
# Types of the label that a classifier gives beside its probabilities.
_LABELS = {"tensor(int64)", "tensor(string)"}
# Attributes in which the operators of ai.onnx.ml tell their classes, in the order of the probabilities.
_CLASSES = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")
# Operators that leave the columns of the probabilities where they are.
_PASSING = ("Identity", "Cast", "Normalizer")


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
        classes: dict[str, tuple[str, ...]] = {}
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            kinds = [output.type for output in session.get_outputs()]
            if len(kinds) > 1 and _LABELS.intersection(kinds):
                zipped = any(kind.startswith("seq(map(") for kind in kinds)
                model, classes = _classifier(path, weights=zipped)
                if zipped:
                    session = onnxruntime.InferenceSession(
                        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
                    )
        except Exception as error:  # the library's errors have no common base but Exception
            raise ModelError(
                f"ONNX Runtime cannot load {path.name}: {first_line(error)}", "Export the model again"
            ) from None
        self._session = session
        outputs = [_tensor(node, classes.get(node.name, ())) for node in session.get_outputs()]
        self.signature = Signature(
            inputs=tuple(map(_tensor, session.get_inputs())), outputs=served_first(outputs, named)
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


def _tensor(node: Any, classes: tuple[str, ...] = ()) -> Tensor:
    # A named size ("batch") is one that may vary.
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in node.shape or [])
    return Tensor(name=node.name, dtype=_TYPES.get(node.type, node.type), shape=shape, labels=classes)


def _classifier(path: Path, *, weights: bool) -> tuple[Any, dict[str, tuple[str, ...]]]:
    """Read a classifier as exporters of scikit-learn and LightGBM write it.

    Args:
        path: The file.
        weights: Whether weights that lie beside the file are read, too.

    Returns:
        The model, which gives probabilities as they are, ``(events, classes)``, where the file makes a list
        of dictionaries of them (ZipMap); and the classes of each output of probabilities.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=weights)
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    classes: dict[str, tuple[str, ...]] = {}
    for output in graph.output:
        name, node = output.name, makers.get(output.name)
        while node is not None and node.op_type in _PASSING:
            name, node = node.input[0], makers.get(node.input[0])
        labels = _labels(node) if node is not None else ()
        # a classifier's first output is the label
        if node is None or not labels or (node.op_type != "ZipMap" and name == node.output[0]):
            continue
        classes[output.name] = labels
        if node.op_type == "ZipMap":
            zipped = onnx.helper.make_node("Identity", node.input, node.output)
            node.CopyFrom(zipped)
            shape = [None, len(labels)]
            output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, shape))
    if not any(used.domain in ("", "ai.onnx") for used in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("", 13))
    return model, classes


def _labels(node: Any) -> tuple[str, ...]:
    """Return the classes that a node of a graph names; none where it is no classifier."""
    for attribute in node.attribute:
        if attribute.name in _CLASSES and (attribute.strings or attribute.ints):
            return tuple(text.decode(errors="replace") for text in attribute.strings) or tuple(
                map(str, attribute.ints)
            )
    return ()


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
