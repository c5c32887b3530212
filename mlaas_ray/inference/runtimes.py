"""Runtimes: a model package in memory, in the runtime that was found fastest on this machine."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.inference.candidates import open_made, open_model
from mlaas_ray.inference.examination import TOLERANCE, Examination, difference
from mlaas_ray.inference.inspection import PROBE, examine_apart
from mlaas_ray.inference.onnx_runtime import OnnxRuntime
from mlaas_ray.inference.predictions import Predictions, Runtime, check_signature, first_line, predict
from mlaas_ray.inference.saved_model import SavedModelRuntime

__all__ = [
    "OnnxRuntime",
    "Predictions",
    "Runtime",
    "SavedModelRuntime",
    "check_signature",
    "load_runtime",
    "open_model",
    "predict",
]

# Rows of the batches a model answers before anybody waits for it.
WARM = (64, 8, 1)

_log = logging.getLogger(__name__)


def load_runtime(package: ModelPackage, threads: int = 1, *, timeout_s: float = 120.0) -> Runtime:
    """Check a package and load its model into the runtime that is fastest for it.

    Args:
        package: The package.
        threads: Threads one prediction may use.
        timeout_s: Longest examination of a model that was never loaded on such a machine, seconds.

    Returns:
        The model, with what was found about it.

    Raises:
        PackageError: When a file of it is missing or was changed.
        ModelError: When its runtime cannot load it, or it does not take what its package says.
    """
    package.check()
    model_format = package.manifest.model_format
    examination, folder = examine_apart(
        package.model_path, model_format, threads=threads, timeout_s=timeout_s
    )
    said, found = package.signature, examination.signature
    if (said.width, said.inputs[0].dtype) != (found.width, found.inputs[0].dtype):
        raise ModelError(
            f"{package.name}: the package says {said.width} values a row of {said.inputs[0].dtype}, "
            f"the model takes {found.width} of {found.inputs[0].dtype}",
            "Publish the package again",
        )
    if examination.chosen != examination.reference:
        try:
            return _open_chosen(examination, folder)
        except Exception as error:  # the cache may have been emptied, a library replaced
            _log.warning("%s: %s is not used: %s", package.name, examination.chosen, error)
            examination = examination.without_choice(first_line(error))
    runtime = open_model(package.model_path, model_format, threads)
    check_signature(runtime.signature)
    width = runtime.signature.width or 0
    for size in (examination.batch_rows, *WARM):
        predict(runtime, np.zeros((size, width), dtype=np.float32))
    runtime.examination = examination
    return runtime


def _open_chosen(examination: Examination, folder: Path) -> Runtime:
    """Open the chosen runtime, and have it give the reference's answers once more, in batches of all sizes.

    Raises:
        ModelError: When it gives other answers.
        Exception: What the runtime raises.
    """
    runtime = open_made(examination.chosen, folder, examination.signature, examination.threads)
    with np.load(folder / PROBE) as probe:
        rows, answers = probe["rows"], probe["answers"]
    for size in (len(rows), *WARM):
        largest = difference(predict(runtime, rows[:size]), answers[:size])
        if not largest < TOLERANCE:
            raise ModelError(f"its answers differ by {largest:.2g} from those when it was examined")
    filled = np.resize(rows, (examination.batch_rows, rows.shape[1]))
    predict(runtime, filled)
    runtime.examination = examination
    return runtime
