"""Candidates: the runtimes a model can be run in, made and opened by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlaas_ray.core.package import ModelFormat, Signature
from mlaas_ray.inference.examination import RuntimeName
from mlaas_ray.inference.litert import LiteRuntime, convert
from mlaas_ray.inference.onnx_runtime import OnnxRuntime
from mlaas_ray.inference.params import named_outputs
from mlaas_ray.inference.predictions import Runtime
from mlaas_ray.inference.saved_model import FrozenRuntime, SavedModelRuntime, freeze

# Made of a SavedModel, in this order: what is made in C++ with the least experience comes last.
MADE: dict[RuntimeName, str] = {"frozen": "frozen.pb", "litert": "model.tflite"}
_MAKE: dict[RuntimeName, Callable[[SavedModelRuntime, Path], None]] = {"frozen": freeze, "litert": convert}


def open_model(path: Path, model_format: ModelFormat, threads: int = 1) -> Runtime:
    """Load a model file (ONNX) or directory (SavedModel) as it is: this is the reference.

    Of several outputs a ``params.json`` beside it may name the one to serve.

    Raises:
        ModelError: When it cannot be loaded.
        PackageError: When its params.json is damaged.
    """
    opened = OnnxRuntime if model_format == "onnx" else SavedModelRuntime
    return opened(path, threads, named_outputs(path.parent))


def make(name: RuntimeName, reference: SavedModelRuntime, folder: Path) -> None:
    """Write the file of one of :data:`MADE` into a folder; raises what the maker raises."""
    _MAKE[name](reference, folder / MADE[name])


def open_made(name: RuntimeName, folder: Path, signature: Signature, threads: int = 1) -> Runtime:
    """Open what :func:`make` wrote; raises what its runtime raises.

    Args:
        name: One of :data:`MADE`.
        folder: Where it lies.
        signature: The SavedModel's.
        threads: Threads one prediction may use.
    """
    opened = FrozenRuntime if name == "frozen" else LiteRuntime
    return opened(folder / MADE[name], signature, threads)
