"""Keras 3 on TensorFlow: gradients summed over the workers' group, exported as a SavedModel.

A model that comes compiled keeps its optimiser; its loss is the task's.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.package import MODEL_PATHS, ModelFormat
from mlaas_ray.training.batches import Batch, Floats
from mlaas_ray.training.framework import INPUT, OUTPUT, Network, Setup, check_parameters
from mlaas_ray.training.frameworks.mlaas4hep import give_lr
from mlaas_ray.training.frameworks.models import MODELS
from mlaas_ray.training.frameworks.modules import NO_ENDING, Ending, module_of
from mlaas_ray.training.metrics import EPSILON, HUBER
from mlaas_ray.training.normalised import Normaliser
from mlaas_ray.training.settings import NETWORK_DEFAULTS

PREDICT_ROWS = 8192


class Keras:
    """The framework; see :class:`mlaas_ray.training.framework.Framework`."""

    name = "keras"
    models = tuple(MODELS)
    tasks = ("binary", "multiclass", "regression")
    defaults = NETWORK_DEFAULTS
    model_format: ModelFormat = "savedmodel"
    # gradients leave TensorFlow as numpy arrays
    collective_on_gpu = "gloo"
    kind = "keras.Model"

    def prepare(self, threads: int, seed: int, precision: str) -> None:
        """Set threads, seeds and precision of this process, before anything is built."""
        if precision == "float16":
            raise ModelError("keras does not train in float16 here", "Use train.precision: bfloat16")
        with _no_greeting():
            import keras
            import tensorflow as tf

        give_lr()
        tf.get_logger().setLevel(logging.ERROR)
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            pass  # TensorFlow has begun: its threads stay as they are, which changes no result
        keras.utils.set_random_seed(seed % 2**32)
        if precision == "bfloat16" and tf.config.list_physical_devices("GPU"):
            keras.mixed_precision.set_global_policy("mixed_bfloat16")

    def network(self, setup: Setup) -> Network:
        """Make a network ready for training, its weights those of rank 0."""
        check_parameters(setup, self.name)
        module, ending = module_of(setup, self)
        return KerasNetwork(setup, module, masked=self.takes_mask(module), ending=ending)

    def answer(self, folder: Path, file: str, x: Floats) -> npt.NDArray[Any]:
        """Load the SavedModel afresh and return the answers of its serving signature."""
        import tensorflow as tf

        serve = tf.saved_model.load(str(folder / file)).signatures["serving_default"]
        return np.asarray(serve(**{INPUT: tf.constant(x)})[OUTPUT], dtype=np.float32)

    def ours(self, setup: Setup) -> Any:
        """Build one of our own networks."""
        from mlaas_ray.training.frameworks import keras_models

        return keras_models.build(setup)

    def is_module(self, candidate: Any) -> bool:
        """Whether it is a ``keras.Model``."""
        import keras

        return isinstance(candidate, keras.Model)

    def expects(self, module: Any) -> int | None:
        """Return the width of the network's input, where it has been said."""
        try:
            shape = module.input_shape
            size = (shape[0] if isinstance(shape, list) else shape)[-1]
        except (AttributeError, ValueError, TypeError, IndexError):
            return None
        return size if isinstance(size, int) else None

    def takes_mask(self, module: Any) -> bool:
        """Whether it has two inputs, or says so by an attribute ``takes_mask``."""
        try:
            inputs = len(module.inputs or ())
        except (AttributeError, ValueError):
            inputs = 0
        return bool(getattr(module, "takes_mask", False)) or inputs == 2

    def run(self, module: Any, x: Floats, mask: Floats) -> npt.NDArray[Any]:
        """Run rows through a bare module, without training it."""
        return np.asarray(module([x, mask] if self.takes_mask(module) else x, training=False))

    def ends_linear(self, module: Any, x: Floats, mask: Floats) -> bool:
        """Whether its last layer is ``Dense`` without activation, or its loss is compiled for logits."""
        import keras

        if getattr(getattr(module, "loss", None), "from_logits", False):
            return True
        layer = module
        while isinstance(layer, keras.Sequential) and layer.layers:
            layer = layer.layers[-1]
        if isinstance(layer, keras.Model):
            try:
                layer = layer.outputs[0]._keras_history.operation
            except (AttributeError, TypeError, IndexError):
                return False
        return isinstance(layer, keras.layers.Dense) and layer.activation is keras.activations.linear

    def finish(self, answers: Any, ending: Ending) -> Any:
        """Put an ending behind answers."""
        import keras

        if ending.activation:
            answers = getattr(keras.ops, ending.activation)(answers)
        return answers[:, 1:] if ending.second else answers


class KerasNetwork(Network):
    """A Keras network in training; see :class:`mlaas_ray.training.framework.Network`."""

    def __init__(self, setup: Setup, module: Any, masked: bool, ending: Ending = NO_ENDING) -> None:
        import keras

        group = setup.group
        self._module = module
        self._masked = masked
        self._ending = ending
        self._source = setup.model
        self._task = setup.task
        self._clip = setup.settings.clip
        self._offset, self._scale = setup.features.affine()
        self._bend = 1 / setup.features.bound**2
        self._normalise = Normaliser(setup, masked=masked)
        self._group = group
        self._forward(np.zeros((2, setup.width), np.float32), training=False)  # makes the variables
        self._optimizer: Any = getattr(module, "optimizer", None)
        # a compiled model has an optimiser of its own, and its step size
        self._rate_scale = 1.0
        if self._optimizer is None:
            self._optimizer = keras.optimizers.AdamW(1e-3, weight_decay=setup.settings.weight_decay)
        else:
            own = float(np.asarray(self._optimizer.learning_rate))
            self._rate_scale = own / (setup.settings.learning_rate or own)
        self._optimizer.build(module.trainable_variables)
        for variable in module.variables:
            if "float" in variable.dtype:
                variable.assign(group.from_first(np.asarray(variable.numpy(), dtype=np.float32)))
        self._compile()

    def _forward(self, x: Any, *, training: bool) -> Any:
        """Normalise, put 0 where nothing finite is, and answer."""
        import tensorflow as tf

        x = tf.convert_to_tensor(x)
        # False for NaN and infinities, in every runtime that follows IEEE 754
        valid = tf.abs(x) <= np.finfo(np.float32).max
        values = tf.where(valid, (x - self._offset) * self._scale, tf.zeros_like(x))
        if self._bend:
            values /= tf.sqrt(1 + self._bend * values * values)
        return self._answers(values, tf.cast(valid, tf.float32), training=training)

    def _answers(self, values: Any, mask: Any, *, training: bool) -> Any:
        """Run the user's layers on normalised values, and give targets their units."""
        import tensorflow as tf

        inputs = [values, mask] if self._masked else values
        answer = tf.cast(self._module(inputs, training=training), tf.float32)
        if self._task.kind != "regression":
            return Keras().finish(answer, self._ending)
        return answer * np.array(self._task.scale, np.float32) + np.array(self._task.offset, np.float32)

    def _losses(self, prediction: Any, y: Any) -> Any:
        """Return the loss of each event; the same as :func:`mlaas_ray.training.metrics.losses`."""
        import tensorflow as tf

        if self._task.kind == "binary":
            p = tf.clip_by_value(prediction[:, 0], EPSILON, 1 - EPSILON)
            return -tf.where(y > 0.5, tf.math.log(p), tf.math.log1p(-p))
        if self._task.kind == "multiclass":
            p = tf.gather(prediction, tf.cast(y, tf.int32), batch_dims=1)
            return -tf.math.log(tf.maximum(p, EPSILON))
        apart = (prediction - tf.reshape(y, tf.shape(prediction))) / np.array(self._task.scale, np.float32)
        size = tf.abs(apart)
        if self._task.loss == "mae":
            each = size
        elif self._task.loss == "huber":
            each = tf.where(size < HUBER, 0.5 * apart**2, HUBER * (size - 0.5 * HUBER))
        else:
            each = apart**2
        return tf.reduce_mean(each, axis=1)

    def _compile(self) -> None:
        """Make the graphs: gradients, their application, both at once (for one worker), and prediction."""
        import tensorflow as tf

        weights = self._module.trainable_variables
        sizes = [int(np.prod(weight.shape)) for weight in weights]
        columns = tf.TensorSpec((None, len(self._offset)), tf.float32)
        targets = tf.TensorSpec((None, *self._task.target_shape), tf.float32)
        numbers = tf.TensorSpec((None,), tf.float32)
        scalar = tf.TensorSpec((), tf.float32)

        def gradients(values: Any, mask: Any, y: Any, weight: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                prediction = self._answers(values, mask, training=True)
                loss = tf.reduce_sum(weight * self._losses(prediction, y))
                if self._module.losses:  # regularisation, once for each event, as all is divided by events
                    loss += tf.add_n(self._module.losses) * tf.cast(tf.shape(y)[0], tf.float32)
            parts = tape.gradient(loss, [w.value for w in weights], unconnected_gradients="zero")
            return prediction, tf.concat([tf.reshape(part, (-1,)) for part in parts], axis=0)

        def apply(total: Any, events: Any) -> None:
            mean = total / events
            if self._clip is not None:
                mean = tf.clip_by_norm(mean, self._clip)
            parts = tf.split(mean, sizes)
            self._optimizer.apply(
                [tf.reshape(part, w.shape) for part, w in zip(parts, weights, strict=True)], weights
            )

        def both(values: Any, mask: Any, y: Any, weight: Any, events: Any) -> Any:
            prediction, total = gradients(values, mask, y, weight)
            apply(total, events)
            return prediction

        batch = [columns, tf.TensorSpec((None, None), tf.float32), targets, numbers]
        self._gradients = tf.function(gradients, input_signature=batch)
        self._apply = tf.function(apply, input_signature=[tf.TensorSpec((sum(sizes),), tf.float32), scalar])
        self._both = tf.function(both, input_signature=[*batch, scalar])
        self._predict = tf.function(lambda x: self._forward(x, training=False), input_signature=[columns])

    def stage(self, batch: Batch) -> tuple[Any, ...]:
        """Normalise a batch."""
        return (*self._normalise(batch), batch.y, batch.weight)

    def step(self, batch: tuple[Any, ...], events: int) -> Any:
        """Take one optimisation step together with all ranks."""
        count = np.float32(events)
        if self._group.size == 1:
            return self._both(*batch, count)
        prediction, own = self._gradients(*batch)
        self._apply(self._group.sum(own.numpy()), count)
        return prediction

    def collect(self, steps: list[Any]) -> Floats:
        """Return the answers of some steps, one after the other."""
        return np.concatenate([np.asarray(step, dtype=np.float32) for step in steps])

    def predict(self, x: Floats) -> Floats:
        """Return the answers to raw values."""
        parts = [self._predict(x[i : i + PREDICT_ROWS]).numpy() for i in range(0, len(x), PREDICT_ROWS)]
        return np.concatenate(parts) if parts else np.empty((0, self._task.outputs), np.float32)

    def set_rate(self, learning_rate: float) -> None:
        """Set the optimiser's step size."""
        self._optimizer.learning_rate.assign(learning_rate * self._rate_scale)

    def reseed(self, seed: int) -> None:
        """Set the states of Dropout's and other layers' generators: a seed and a counter each."""
        states = [variable for variable in self._module.variables if variable.dtype == "uint32"]
        for i, state in enumerate(states):
            state.assign(np.array([(seed + i) % 2**32, 0], dtype=np.uint32))

    def settle(self) -> None:
        """Give all ranks the mean of what no gradient moves, such as BatchNorm's statistics."""
        for variable in self._module.non_trainable_variables:
            if "float" in variable.dtype and self._group.size > 1:
                total = self._group.sum(np.array(variable.numpy(), dtype=np.float32))
                variable.assign(total / self._group.size)

    def save(self, folder: Path) -> None:
        """Write the state of network and optimiser into a folder."""
        arrays = {f"w{i:05d}": variable.numpy() for i, variable in enumerate(self._module.variables)}
        arrays |= {f"o{i:05d}": variable.numpy() for i, variable in enumerate(self._optimizer.variables)}
        np.savez(folder / "keras.npz", **arrays)

    def restore(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        with np.load(folder / "keras.npz") as arrays:
            for letter, variables in (("w", self._module.variables), ("o", self._optimizer.variables)):
                for i, variable in enumerate(variables):
                    variable.assign(arrays[f"{letter}{i:05d}"])

    def warm_start(self, folder: Path) -> None:
        """Begin with the weights of another run."""
        with np.load(folder / "keras.npz") as arrays:
            for i, variable in enumerate(self._module.variables):
                variable.assign(arrays[f"w{i:05d}"])

    def export(self, folder: Path) -> list[str]:
        """Write the SavedModel ``model/``: ``serving_default`` answers, ``names`` names the outputs."""
        import tensorflow as tf

        class Served(tf.Module):  # type: ignore[misc]
            """Holds the network's variables, so that the SavedModel does."""

        served = Served()
        served.module = self._module
        columns = tf.TensorSpec((None, len(self._offset)), tf.float32, name=INPUT)
        served.serve = tf.function(
            lambda inputs: {OUTPUT: self._forward(inputs, training=False)}, input_signature=[columns]
        )
        for operation in served.serve.get_concrete_function().graph.get_operations():
            if operation.type in ("PyFunc", "PyFuncStateless", "EagerPyFunc"):
                lines = "".join(f'File "{one.filename}", line {one.lineno}\n' for one in operation.traceback)
                raise ModelError(
                    f"{self._source.where(RuntimeError(lines))}: the network calls Python by tf.py_function,"
                    " which a SavedModel cannot hold",
                    "Use functions of keras.ops or tf",
                )
        names = tf.constant(list(self._task.names))
        served.names = tf.function(lambda: {"names": names}, input_signature=[])
        file = MODEL_PATHS["savedmodel"]
        signatures = {"serving_default": served.serve, "names": served.names}
        tf.saved_model.save(served, str(folder / file), signatures=signatures)
        return [file]


@contextlib.contextmanager
def _no_greeting() -> Iterator[None]:
    """Keep off the terminal what TensorFlow prints while it loads, before its log level counts."""
    terminal = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
