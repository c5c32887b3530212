"""SavedModels in TensorFlow: by their signature, and as a frozen graph in a session of its own.

Never through Keras: ``model.predict`` costs 20 to 220 ms a call where a signature costs 0.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.package import Signature, Tensor
from mlaas_ray.inference.examination import Examination, RuntimeName
from mlaas_ray.inference.predictions import first_line, served_first

# Names of the frozen graph's input and output.
_ROWS, _ANSWERS = "rows", "answers"


class SavedModelRuntime:
    """A TensorFlow SavedModel, called through its serving signature.

    All models of a process share TensorFlow's one thread for operations: they wait for each other.

    Args:
        path: The SavedModel's directory.
        threads: Threads one prediction may use; the first model of a process decides for all.
        named: What the output to serve is called, see :func:`.served_first`.

    Raises:
        ModelError: When it cannot be loaded, or has no signature to serve.
    """

    name: RuntimeName = "signature"
    examination: Examination

    def __init__(self, path: Path, threads: int = 1, named: Sequence[str] = ()) -> None:
        import tensorflow as tf

        _limit_threads(tf, threads)
        try:
            # Kept as long as the signature: it owns the variables.
            self.model = tf.saved_model.load(str(path))
            signatures = dict(self.model.signatures)
        except Exception as error:  # TensorFlow raises what its parsers and kernels raise
            raise ModelError(
                f"TensorFlow cannot load the SavedModel: {first_line(error)}", "Export the model again"
            ) from None
        key = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
        if key is None or (key != "serving_default" and len(signatures) > 1):
            raise ModelError(
                f"the SavedModel has no signature serving_default, but: {', '.join(signatures) or 'none'}",
                "Export it with model.export(), or with tf.saved_model.save(..., signatures=...)",
            )
        self._function = signatures[key]
        self._tf = tf
        inputs = self._function.structured_input_signature[1]
        outputs = self._function.structured_outputs
        self.signature = Signature(
            # by name: these mappings have another order in each process
            inputs=tuple(_tensor(name, spec) for name, spec in sorted(inputs.items())),
            outputs=served_first([_tensor(name, spec) for name, spec in sorted(outputs.items())], named),
        )
        self._input = self.signature.inputs[0].name
        self._output = self.signature.outputs[0].name

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the first output for a batch."""
        answers = self._function(**{self._input: self._tf.constant(batch)})
        return np.asarray(answers[self._output].numpy())

    def function(self) -> Any:
        """Return a concrete function of the first input alone that gives the first output alone."""
        tf = self._tf
        tensor = self.signature.inputs[0]
        spec = tf.TensorSpec(tensor.shape, tensor.dtype, name=_ROWS)
        serve = tf.function(
            lambda rows: self._function(**{self._input: rows})[self._output], input_signature=[spec]
        )
        return serve.get_concrete_function()


def freeze(reference: SavedModelRuntime, path: Path) -> None:
    """Write the graph of a model, its variables made constants, for :class:`FrozenRuntime`."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(reference.function())
    graph = frozen.graph.as_graph_def()
    answers = graph.node.add(op="Identity", name=_ANSWERS, input=[frozen.outputs[0].name])
    answers.attr["T"].type = frozen.outputs[0].dtype.as_datatype_enum
    path.write_bytes(graph.SerializeToString())


class FrozenRuntime:
    """A frozen graph in a TensorFlow session of its own, run in the thread that calls.

    Args:
        path: What :func:`freeze` wrote.
        signature: The SavedModel's.
        threads: Threads one prediction may use; the first model of a process decides for all.
    """

    name: RuntimeName = "frozen"
    examination: Examination

    def __init__(self, path: Path, signature: Signature, threads: int = 1) -> None:
        import tensorflow as tf
        from tensorflow.core.protobuf.config_pb2 import CallableOptions

        _limit_threads(tf, threads)
        self.signature = signature
        content = tf.compat.v1.GraphDef()
        content.ParseFromString(path.read_bytes())
        graph = tf.Graph()
        with graph.as_default():
            tf.graph_util.import_graph_def(content, name="")
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1
        )
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        options = CallableOptions(feed=[f"{_ROWS}:0"], fetch=[f"{_ANSWERS}:0"])
        # In the caller's thread: handing over to another and back costs 180 us, and models would queue there.
        options.run_options.inter_op_thread_pool = -1
        # Session.make_callable, the public way, knows no such options, and costs 60 us a call.
        self._call = self._session._make_callable_from_options(options)

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the first output for a batch."""
        return np.asarray(self._call(batch)[0])


def _tensor(name: str, spec: Any) -> Tensor:
    shape = tuple(spec.shape.as_list()) if spec.shape.rank is not None else ()
    return Tensor(name=name, dtype=spec.dtype.name, shape=shape)


def _limit_threads(tf: Any, threads: int) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        # TensorFlow has started in this process: its threads are what the first model made them.
        return
