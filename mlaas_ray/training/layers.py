"""Layers for networks of one's own that know which values there are."""

from __future__ import annotations

from typing import Any, Literal


def jagged_array_linear(
    framework: Literal["torch", "keras"],
    width: int,
    nodes: int,
    *,
    bias: bool = True,
    presence: bool = False,
) -> Any:
    """Make a linear layer that takes values and their mask: MLaaS4HEP's ``JaggedArrayLinear``.

    It is called with ``x`` and ``mask``, both ``(events, width)``, and gives ``(events, nodes)``::

        y = W · (x where mask, else 0) + U · mask + b

    With equal weights it gives the same in PyTorch and Keras.

    Args:
        framework: Of which the layer is to be.
        width: Values of an event.
        nodes: Outputs.
        bias: Whether there is ``b``.
        presence: Whether there is ``U``: then "no value" can mean something else than "a value of 0".
    """
    if framework == "torch":
        from mlaas_ray.training.frameworks import torch_models

        return torch_models.jagged_array_linear(width, nodes, bias=bias, presence=presence)
    from mlaas_ray.training.frameworks import keras_models

    return keras_models.jagged_array_linear(width, nodes, bias=bias, presence=presence)
