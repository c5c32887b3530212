"""Our own networks in Keras. Each takes normalised values and the mask, both ``(events, features)``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from mlaas_ray.training.framework import Setup
from mlaas_ray.training.frameworks.models import (
    FREQUENCY,
    MIXTURES,
    Cnn,
    DeepSets,
    Image,
    MaskedLinear,
    Mlp,
    Periodic,
    halvings,
    images_of,
    lacking,
    objects_of,
    options_of,
    waved,
)


def build(setup: Setup) -> Any:
    """Build one of our own networks, with the ending that the task wants."""
    from keras import layers

    options = options_of(setup)
    ending = {"binary": "sigmoid", "multiclass": "softmax"}.get(setup.task.kind, "linear")
    if isinstance(options, MaskedLinear):
        nodes = options.hidden[0] if options.hidden else setup.task.outputs
        first = jagged_array_linear(setup.width, nodes, bias=True, presence=True)
        rest = [layers.Activation(_gelu), layers.Dropout(options.dropout)] if options.hidden else []
        rest += _hidden(options.hidden[1:], options.dropout)
        rest += [layers.Dense(setup.task.outputs)] if options.hidden else []
        return module(_masked, first=first, rest=[*rest, layers.Activation(ending)])
    if isinstance(options, Mlp) and not isinstance(options, Periodic):
        rest = [*_hidden(options.hidden, options.dropout), layers.Dense(setup.task.outputs, ending)]
        return module(_values_only, rest=rest)
    rest = [*_hidden(options.hidden, options.dropout), layers.Dense(setup.task.outputs, ending)]  # type: ignore[attr-defined]
    if isinstance(options, Periodic):
        columns = waved(setup.features)
        waves = _periodic_layer()(columns, options.frequencies)
        return module(_periodic, columns=columns, missing=lacking(setup.features), waves=waves, rest=rest)
    if isinstance(options, DeepSets):
        parts = objects_of(setup.features)
        networks = [_hidden(options.objects, 0.0) for _ in parts.collections]
        return module(_deep_sets, parts=parts, pool=options.pool, networks=networks, rest=rest)
    assert isinstance(options, Cnn)
    images = images_of(setup.features)
    convolutions = [_convolutions(view, options) for view in images.views]
    return module(_cnn, parts=images, networks=convolutions, rest=rest)


def module(forward: Callable[..., Any], **children: Any) -> Any:
    """Make a ``keras.Model`` of a function and what it works with.

    Args:
        forward: Called with the model, values, mask, and whether it trains; the children are the model's
            attributes.
        children: Layers, lists of them, or plain values.
    """
    return _function_model()(forward, children)


@functools.cache
def _function_model() -> Any:
    import keras

    class FunctionModel(keras.Model):  # type: ignore[misc]
        takes_mask = True

        def __init__(self, function: Callable[..., Any], children: dict[str, Any]) -> None:
            super().__init__()
            self.function = function
            for name, child in children.items():
                setattr(self, name, child)

        def call(self, inputs: Any, training: bool | None = None) -> Any:
            values, there = inputs
            return self.function(self, values, there, training)

    return FunctionModel


def jagged_array_linear(width: int, nodes: int, *, bias: bool, presence: bool) -> Any:
    """See :func:`mlaas_ray.training.layers.jagged_array_linear`."""
    from keras import layers

    values = layers.Dense(nodes, use_bias=bias, kernel_initializer="he_uniform")
    there = layers.Dense(nodes, use_bias=False, kernel_initializer="he_uniform") if presence else None
    layer = _jagged_layer()(values, there)
    layer.build((None, width))
    return layer


@functools.cache
def _jagged_layer() -> Any:
    from keras import layers, ops

    class JaggedArrayLinear(layers.Layer):  # type: ignore[misc]
        def __init__(self, values: Any, presence: Any) -> None:
            super().__init__()
            self.values = values
            self.presence = presence

        def build(self, shape: Any) -> None:
            self.values.build(shape)
            if self.presence is not None:
                self.presence.build(shape)
            self.built = True

        # not called mask, a word that Keras gives another meaning
        def call(self, x: Any, there: Any) -> Any:
            # not a product: what is missing may be NaN
            y = self.values(ops.where(there > 0, x, ops.zeros_like(x)))
            return y if self.presence is None else y + self.presence(there)

    return JaggedArrayLinear


@functools.cache
def _periodic_layer() -> Any:
    from keras import initializers, layers, ops

    class Waves(layers.Layer):  # type: ignore[misc]
        def __init__(self, columns: int, frequencies: int) -> None:
            super().__init__()
            shape = (columns, frequencies)
            normal, uniform = initializers.RandomNormal, initializers.RandomUniform
            self.frequencies = self.add_weight(shape, normal(0.0, FREQUENCY * 2 * math.pi))
            self.phases = self.add_weight(shape, uniform(-math.pi, math.pi))
            self.mixtures = self.add_weight((*shape, MIXTURES), normal(0.0, 1 / math.sqrt(frequencies)))

        def call(self, x: Any) -> Any:
            waves = ops.cos(ops.expand_dims(x, 2) * self.frequencies + self.phases)
            mixed = ops.einsum("ncf,cfm->ncm", waves, self.mixtures)
            return ops.reshape(mixed, (-1, mixed.shape[1] * mixed.shape[2]))

    return Waves


def _periodic(self: Any, x: Any, there: Any, training: bool | None) -> Any:
    from keras import ops

    seen = [x, self.waves(x[:, : self.columns]), ops.take(there, self.missing, axis=1)]
    return _through(self.rest, ops.concatenate(seen, axis=1), training)


def _values_only(self: Any, x: Any, there: Any, training: bool | None) -> Any:
    return _through(self.rest, x, training)


def _masked(self: Any, x: Any, there: Any, training: bool | None) -> Any:
    return _through(self.rest, self.first(x, there), training)


def _deep_sets(self: Any, x: Any, there: Any, training: bool | None) -> Any:
    from keras import ops

    found = [ops.take(x, self.parts.flat, axis=1)]
    for collection, network in zip(self.parts.collections, self.networks, strict=True):
        shape = (-1, *collection.columns.shape)  # (events, objects, variables)
        values = ops.reshape(ops.take(x, collection.columns.reshape(-1), axis=1), shape)
        known = ops.reshape(ops.take(there, collection.columns.reshape(-1), axis=1), shape)
        exists = ops.max(known, axis=2, keepdims=True)
        seen = _through(network, ops.concatenate([values, known], axis=2), training) * exists
        if self.pool == "max":
            seen = ops.max(ops.where(exists > 0, seen, ops.full_like(seen, -1e9)), axis=1)
            pooled = ops.where(ops.max(exists, axis=1) > 0, seen, ops.zeros_like(seen))
        else:
            pooled = ops.sum(seen, axis=1)
            if self.pool == "mean":
                pooled = pooled / ops.maximum(ops.sum(exists, axis=1), 1.0)
        found.append(pooled)
    return _through(self.rest, ops.concatenate(found, axis=1), training)


def _cnn(self: Any, x: Any, there: Any, training: bool | None) -> Any:
    from keras import ops

    found = [x[:, : self.parts.scalars]]
    for view, network in zip(self.parts.views, self.networks, strict=True):
        images = ops.reshape(x[:, view.start : view.stop], (-1, *view.shape))
        # TensorFlow convolves on CPUs only where channels come last
        seen = _through(network, ops.transpose(images, (0, 2, 3, 1)), training)
        found.append(ops.reshape(seen, (-1, seen.shape[1] * seen.shape[2] * seen.shape[3])))
    return _through(self.rest, ops.concatenate(found, axis=1), training)


def _convolutions(view: Image, options: Cnn) -> list[Any]:
    from keras import layers

    made: list[Any] = []
    halved = halvings(min(view.shape[1:]), len(options.channels))
    for number, filters in enumerate(options.channels):
        made += [layers.Conv2D(filters, options.kernel, padding="same", activation=_gelu)]
        if number < halved:
            made.append(layers.MaxPooling2D(2))
    return made


def _hidden(hidden: Sequence[int], dropout: float) -> list[Any]:
    from keras import layers

    made: list[Any] = []
    for nodes in hidden:
        made.append(layers.Dense(nodes, activation=_gelu, kernel_initializer="he_uniform"))
        if dropout:
            made.append(layers.Dropout(dropout))
    return made


def _through(network: Sequence[Any], x: Any, training: bool | None) -> Any:
    """Send values through layers, one after the other."""
    from keras import layers

    for layer in network:
        x = layer(x, training=training) if isinstance(layer, layers.Dropout) else layer(x)
    return x


def _gelu(x: Any) -> Any:
    from keras import activations

    return activations.gelu(x, approximate=False)
