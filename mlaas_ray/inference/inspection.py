"""Inspection: what an uploaded model is, found in a process of its own before anything serves it.

A model is a program: a damaged one may take the process that loads it along. So the first load of an
upload happens in a Ray task whose process ends with it, never in a gateway or a model replica.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayTaskError, WorkerCrashedError

from mlaas_ray.core.errors import MlaasError, ModelError
from mlaas_ray.core.package import ModelFormat, Signature
from mlaas_ray.inference.runtimes import check_signature, open_model, predict

SAMPLE_ROWS = 2


def inspect_model(path: Path, model_format: ModelFormat) -> Signature:
    """Load a model in this process, ask it a sample of zeros, and return its signature.

    Raises:
        ModelError: When it does not load, does not take rows of numbers, or does not answer.
    """
    if model_format == "onnx":
        _check_external_data(path)
    runtime = open_model(path, model_format)
    check_signature(runtime.signature)
    width = runtime.signature.width or 0
    predict(runtime, np.zeros((SAMPLE_ROWS, width), dtype=np.float32))
    return runtime.signature


def inspect_apart(path: Path, model_format: ModelFormat, timeout_s: float) -> Signature:
    """Do :func:`inspect_model` in a process of its own.

    Args:
        path: The model's file or directory, in a folder all nodes see.
        model_format: What it is.
        timeout_s: Longest wait, seconds.

    Raises:
        ModelError: When the model is not fit to be served, kills its process, or takes too long.
    """
    # A task asks for no CPU: the service's machine may have given all of them away.
    task = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(_inspect)
    reference = task.remote(str(path), model_format)
    try:
        return Signature.model_validate_json(ray.get(reference, timeout=timeout_s))
    except GetTimeoutError:
        ray.cancel(reference, force=True)
        raise ModelError(
            f"the model did not load and answer within {timeout_s:g} s", "Upload a smaller model"
        ) from None
    except WorkerCrashedError:
        raise ModelError("the model ends the process that loads it", "Export the model again") from None
    except RayTaskError as error:
        if isinstance(error.cause, MlaasError):
            raise error.cause from None
        raise


def _inspect(path: str, model_format: ModelFormat) -> str:
    return inspect_model(Path(path), model_format).model_dump_json()


def _check_external_data(path: Path) -> None:
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
