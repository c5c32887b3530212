"""SavedModels in LiteRT: converted once with TensorFlow, then run without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.package import Signature
from mlaas_ray.inference.examination import Examination, RuntimeName
from mlaas_ray.inference.saved_model import SavedModelRuntime


def convert(reference: SavedModelRuntime, path: Path) -> None:
    """Write a model in LiteRT's format, in float32 and with LiteRT's own operations only."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([reference.function()], reference.model)
    path.write_bytes(converter.convert())


class LiteRuntime:
    """A converted model in LiteRT's interpreter.

    Args:
        path: What :func:`convert` wrote.
        signature: The SavedModel's.
        threads: Threads one prediction may use.
    """

    name: RuntimeName = "litert"
    examination: Examination

    def __init__(self, path: Path, signature: Signature, threads: int = 1) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.signature = signature
        self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        self._shape: tuple[int, ...] = ()

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the first output for a batch."""
        interpreter = self._interpreter
        if batch.shape != self._shape:
            # 3 us; filling batches up to powers of two would cost a quarter of the computation.
            self._shape = ()
            interpreter.resize_tensor_input(self._input, batch.shape)
            interpreter.allocate_tensors()
            self._shape = batch.shape
        interpreter.set_tensor(self._input, batch)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(self._output))
