"""Placement: whether a model may live in the gateways, or belongs into replicas.

A gateway that predicts by itself saves the way to a replica and back: 0.25 instead of 1.7 ms for a lone
caller, and a third of the CPU for many (docs/decisions/0031). That is for models that hurt nobody there:
small, quick, and run by a library that is light itself. TensorFlow, large models and slow ones are for
replicas.
"""

from __future__ import annotations

from mlaas_ray.core.package import ModelPackage
from mlaas_ray.inference.examination import Examination
from mlaas_ray.inference.inspection import examine_apart
from mlaas_ray.inference.settings import MEBIBYTE, ServiceSettings

LIGHT_RUNTIMES = ("onnxruntime", "litert")
LIGHT_S = 0.002
LIGHT_BYTES = 64 * MEBIBYTE


def light(package: ModelPackage, settings: ServiceSettings) -> bool:
    """Tell whether a model is light enough for a gateway; blocks while it is examined for the first time.

    Raises:
        PackageError: When a file of it is missing or was changed.
        ModelError: When the model is not fit to be served.
    """
    # What is damaged is told at once, not after a process has tried to load it.
    package.check()
    examination, _ = examine_apart(
        package.model_path,
        package.manifest.model_format,
        threads=settings.threads,
        timeout_s=settings.load_timeout_s,
    )
    return is_light(examination, sum(record.bytes for record in package.manifest.files.values()))


def is_light(examination: Examination, size: int) -> bool:
    """Tell whether what runs a model, what a row takes (seconds) and its size (bytes) are light."""
    row_s = next(iter(examination.seconds.values()), LIGHT_S)
    return examination.chosen in LIGHT_RUNTIMES and row_s <= LIGHT_S and size <= LIGHT_BYTES
