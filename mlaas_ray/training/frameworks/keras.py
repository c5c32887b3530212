"""Keras 3 on TensorFlow: gradients summed over the workers' group, exported as a SavedModel."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.package import MODEL_PATHS, ModelFormat
from mlaas_ray.training.batches import Batch
from mlaas_ray.training.framework import INPUT, OUTPUT, Network
from mlaas_ray.training.group import Group
from mlaas_ray.training.metrics import EPSILON

Floats = npt.NDArray[np.float32]

PREDICT_ROWS = 8192


class Keras:
    """The framework; see :class:`mlaas_ray.training.framework.Framework`."""

    name = "keras"
    model_format: ModelFormat = "savedmodel"
    kind = "keras.Model"
    # gradients leave TensorFlow as numpy arrays
    collective_on_gpu = "gloo"

    def prepare(self, threads: int, seed: int) -> None:
        """Set threads and seeds of this process, before anything is built."""
        with _no_greeting():
            import keras
            import tensorflow as tf

        tf.get_logger().setLevel(logging.ERROR)
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            pass  # TensorFlow has begun: its threads stay as they are, which changes no result
        keras.utils.set_random_seed(seed % 2**32)

    def builtin(self, name: str, width: int) -> Any:
        """Build the multilayer perceptron: 128, 64 and 32 nodes, GELU, 10 % dropout."""
        from keras import Sequential, activations, layers

        def gelu(x: Any) -> Any:
            return activations.gelu(x, approximate=False)

        hidden: list[Any] = []
        for nodes in (128, 64, 32):
            hidden += [
                layers.Dense(nodes, activation=gelu, kernel_initializer="he_uniform"),
                layers.Dropout(0.1),
            ]
        return Sequential([layers.Input((width,)), *hidden, layers.Dense(1, activation="sigmoid")])

    def is_network(self, candidate: Any) -> bool:
        """Whether it is a ``keras.Model``."""
        import keras

        return isinstance(candidate, keras.Model)

    def expects(self, module: Any) -> int | None:
        """Return the width of the network's input, where it has been said."""
        try:
            size = module.input_shape[-1]
        except (AttributeError, ValueError, TypeError, IndexError):
            return None
        return size if isinstance(size, int) else None

    def forward(self, module: Any, rows: Floats) -> npt.NDArray[Any]:
        """Run rows through a bare network, without training it."""
        return np.asarray(module(rows, training=False))

    def network(
        self, module: Any, offset: Floats, scale: Floats, group: Group, *, weight_decay: float
    ) -> Network:
        """Make a bare network ready for training, its weights those of rank 0."""
        return KerasNetwork(module, offset, scale, group, weight_decay)

    def answer(self, folder: Path, x: Floats) -> Floats:
        """Load the SavedModel afresh and return the answers of its serving signature."""
        import tensorflow as tf

        serve = tf.saved_model.load(str(folder / MODEL_PATHS["savedmodel"])).signatures["serving_default"]
        return np.asarray(serve(**{INPUT: tf.constant(x)})[OUTPUT], dtype=np.float32)[:, 0]


class KerasNetwork:
    """A Keras network in training; see :class:`mlaas_ray.training.framework.Network`."""

    def __init__(self, module: Any, offset: Floats, scale: Floats, group: Group, weight_decay: float) -> None:
        import keras

        self._module = module
        self._offset, self._scale = offset, scale
        self._group = group
        self._forward(np.zeros((2, len(offset)), np.float32), training=False)  # makes the variables
        self._optimizer = keras.optimizers.AdamW(1e-3, weight_decay=weight_decay)
        self._optimizer.build(module.trainable_variables)
        for variable in module.variables:
            if "float" in variable.dtype:
                variable.assign(group.from_first(np.asarray(variable.numpy(), dtype=np.float32)))
        self._compile()

    def _forward(self, x: Any, *, training: bool) -> Any:
        """Normalise, put 0 where there is no finite value, and run the user's layers."""
        import tensorflow as tf

        x = tf.convert_to_tensor(x)
        # False for NaN and infinities, in every runtime that follows IEEE 754
        valid = tf.abs(x) <= np.finfo(np.float32).max
        return self._module(
            tf.where(valid, (x - self._offset) * self._scale, tf.zeros_like(x)), training=training
        )

    def _compile(self) -> None:
        """Make the graphs: gradients, their application, both at once (for one worker), and prediction."""
        import tensorflow as tf

        weights = self._module.trainable_variables
        sizes = [int(np.prod(weight.shape)) for weight in weights]
        columns = tf.TensorSpec((None, len(self._offset)), tf.float32)
        numbers = tf.TensorSpec((None,), tf.float32)
        scalar = tf.TensorSpec((), tf.float32)

        def gradients(x: Any, y: Any, weight: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                prediction = self._forward(x, training=True)[:, 0]
                p = tf.clip_by_value(prediction, EPSILON, 1 - EPSILON)
                loss = -tf.reduce_sum(weight * tf.where(y > 0.5, tf.math.log(p), tf.math.log1p(-p)))
                if self._module.losses:  # regularisation, once for each event, as all is divided by events
                    loss += tf.add_n(self._module.losses) * tf.cast(tf.shape(y)[0], tf.float32)
            parts = tape.gradient(loss, [w.value for w in weights], unconnected_gradients="zero")
            return prediction, tf.concat([tf.reshape(part, (-1,)) for part in parts], axis=0)

        def apply(total: Any, events: Any) -> None:
            parts = tf.split(total / events, sizes)
            self._optimizer.apply(
                [tf.reshape(part, w.shape) for part, w in zip(parts, weights, strict=True)], weights
            )

        def both(x: Any, y: Any, weight: Any, events: Any) -> Any:
            prediction, total = gradients(x, y, weight)
            apply(total, events)
            return prediction

        self._gradients = tf.function(gradients, input_signature=[columns, numbers, numbers])
        self._apply = tf.function(apply, input_signature=[tf.TensorSpec((sum(sizes),), tf.float32), scalar])
        self._both = tf.function(both, input_signature=[columns, numbers, numbers, scalar])
        self._predict = tf.function(
            lambda x: self._forward(x, training=False)[:, 0], input_signature=[columns]
        )

    def step(self, batch: Batch, events: int) -> Any:
        """Take one optimisation step together with all ranks."""
        count = np.float32(events)
        if self._group.size == 1:
            return self._both(batch.x, batch.y, batch.weight, count)
        prediction, own = self._gradients(batch.x, batch.y, batch.weight)
        self._apply(self._group.sum(own.numpy()), count)
        return prediction

    def collect(self, steps: list[Any]) -> Floats:
        """Return the predictions of some steps, one after the other."""
        return np.concatenate([np.asarray(step, dtype=np.float32) for step in steps])

    def predict(self, x: Floats) -> Floats:
        """Return the probability of class 1 for raw values ``(events, features)``."""
        parts = [self._predict(x[i : i + PREDICT_ROWS]).numpy() for i in range(0, len(x), PREDICT_ROWS)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)

    def begin_epoch(self, learning_rate: float, seed: int) -> None:
        """Set the optimiser's step size, and the seed of what is random in the network."""
        self._optimizer.learning_rate.assign(learning_rate)
        # the states of Dropout's and other layers' generators: a seed and a counter each
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
        variables = [*self._module.variables, *self._optimizer.variables]
        arrays = {f"v{i:05d}": variable.numpy() for i, variable in enumerate(variables)}
        np.savez(folder / "keras.npz", **arrays)

    def restore(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        variables = [*self._module.variables, *self._optimizer.variables]
        with np.load(folder / "keras.npz") as arrays:
            for i, variable in enumerate(variables):
                variable.assign(arrays[f"v{i:05d}"])

    def export(self, folder: Path) -> None:
        """Write the SavedModel ``model/`` with one signature, ``serving_default``."""
        import tensorflow as tf

        class Served(tf.Module):  # type: ignore[misc]
            """Holds the network's variables, so that the SavedModel does."""

        served = Served()
        served.module = self._module
        columns = tf.TensorSpec((None, len(self._offset)), tf.float32, name=INPUT)
        served.serve = tf.function(
            lambda inputs: {OUTPUT: self._forward(inputs, training=False)}, input_signature=[columns]
        )
        path = str(folder / MODEL_PATHS["savedmodel"])
        tf.saved_model.save(served, path, signatures={"serving_default": served.serve})


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
