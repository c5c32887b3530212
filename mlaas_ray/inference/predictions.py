"""Predictions: rows of numbers through a loaded model, whatever loaded it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.package import Signature, Tensor
from mlaas_ray.inference.examination import Examination, RuntimeName
from mlaas_ray.inference.rows import fit

Predictions = npt.NDArray[Any]


class Runtime(Protocol):
    """A loaded model: one call at a time; other models may run in other threads meanwhile.

    Attributes:
        name: What runs it.
        signature: Its inputs and outputs.
        examination: What was found about it; there once ``load_runtime`` has loaded it.
    """

    name: RuntimeName
    signature: Signature
    examination: Examination

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the signature's first output for a batch of the first input's dtype and shape."""
        ...


def predict(runtime: Runtime, rows: npt.NDArray[Any]) -> Predictions:
    """Run rows through a model, whatever batch it was exported for.

    Args:
        runtime: The model.
        rows: ``(events, features)`` of any type of numbers.

    Returns:
        ``(events, outputs…)``: one entry a row, at least two axes.

    Raises:
        EventError: For a value that the model's type cannot hold.
        ModelError: When the model fails, or gives something else than one entry a row.
    """
    tensor = runtime.signature.inputs[0]
    shape = tuple(size or 1 for size in tensor.shape[1:])
    if rows.dtype != tensor.dtype:
        rows = fit(rows, np.dtype(tensor.dtype))
    batch = np.ascontiguousarray(rows.reshape(len(rows), *shape))
    try:
        answers = _in_batches(runtime, batch, tensor.shape[0])
    except Exception as error:  # what kernels raise has no common base
        raise ModelError(
            f"the model failed: {first_line(error)}", "Check the model with these rows"
        ) from None
    if answers.ndim == 0 or len(answers) != len(rows):
        raise ModelError(
            f"the model gave {answers.shape} for {len(rows)} rows", "Export it with one answer a row"
        )
    return answers[:, None] if answers.ndim == 1 else answers


def check_signature(signature: Signature) -> None:
    """Refuse what cannot be served by rows of numbers.

    Raises:
        ModelError: For several inputs, a row of unknown size, or what is no number on either side.
    """
    first = signature.inputs[0]
    if len(signature.inputs) > 1:
        names = ", ".join(tensor.name for tensor in signature.inputs)
        raise ModelError(f"the model has {len(signature.inputs)} inputs: {names}", "Export it with one input")
    if len(first.shape) < 2 or signature.width is None:
        raise ModelError(
            f"the model's input {first.name!r} has shape {first.shape}",
            "Export it with an input of (batch, features), where features is a number",
        )
    for what, tensor in (("input", first), ("output", signature.outputs[0])):
        if not _is_numeric(tensor):
            raise ModelError(
                f"the model's {what} {tensor.name!r} is of {tensor.dtype}, not of numbers",
                "Export it for float32",
            )


def served_first(outputs: Iterable[Tensor], named: Sequence[str] = ()) -> tuple[Tensor, ...]:
    """Put the output that is served first: the named one, else the first of floats, else of other numbers.

    Classifiers exported from elsewhere give their label before their probabilities.

    Args:
        outputs: In an order that is the same in every process.
        named: What the output is called; the first name that an output has counts.

    Raises:
        ModelError: When names are given, and of several outputs none has one of them.
    """
    found = sorted(outputs, key=lambda one: (not one.dtype.startswith("float"), not _is_numeric(one)))
    names = [tensor.name for tensor in found]
    wanted = next((names.index(name) for name in named if name in names), 0 if len(names) == 1 else None)
    if named and wanted is None:
        raise ModelError(
            f"params.json names the output {named[0]!r}, the model has {', '.join(names)}",
            "Name one of them, or leave output_name and output_node out",
        )
    found.insert(0, found.pop(wanted or 0))
    return tuple(found)


def _is_numeric(tensor: Tensor) -> bool:
    try:
        return np.dtype(tensor.dtype).kind in "fiub"
    except TypeError:  # such as tensor(string), which numpy does not know
        return False


def first_line(error: Exception) -> str:
    """Return what an error says, in at most one line of 300 letters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(". ")


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
