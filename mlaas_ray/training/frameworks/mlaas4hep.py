"""What model files written for MLaaS4HEP take for granted: its PyTorch layer, and ``lr`` of Keras 2."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
import types
from typing import Any


@functools.cache
def give_package() -> None:
    """Let ``from MLaaS4HEP.jarray.pytorch import JaggedArrayLinear`` (or ``jarray.pytorch``) give our layer.

    The original takes numpy arrays of two events' length; where it is installed, ours is given all the same.
    """
    import torch
    from torch import nn

    class JaggedArrayLinear(nn.Linear):
        """A linear layer over values, 0 where there is none; it may be called with their mask too."""

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            # not a product: what is missing may be NaN
            return super().forward(x if mask is None else torch.where(mask > 0, x, torch.zeros_like(x)))

    for package in ("MLaaS4HEP", "MLaaS4HEP.jarray", "jarray"):
        top = package.partition(".")[0]
        if package not in sys.modules and (top in sys.modules or importlib.util.find_spec(top) is None):
            sys.modules[package] = types.ModuleType(package)
    for package in ("MLaaS4HEP.jarray", "jarray"):
        module: Any = types.ModuleType(f"{package}.pytorch")
        module.JaggedArrayLinear = JaggedArrayLinear
        sys.modules[module.__name__] = module


@functools.cache
def give_lr() -> None:
    """Let Keras's optimisers take ``lr``, as Keras 2's did, for ``learning_rate``."""
    import keras

    kind = next(
        one
        for one in reversed(keras.optimizers.Optimizer.__mro__)
        if "learning_rate" in inspect.signature(one).parameters
    )
    begin = kind.__init__

    @functools.wraps(begin)
    def with_lr(self: Any, learning_rate: Any, *arguments: Any, **named: Any) -> None:
        begin(self, named.pop("lr", learning_rate), *arguments, **named)

    kind.__init__ = with_lr
