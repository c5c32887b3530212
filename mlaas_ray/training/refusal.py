"""Refusal: what is wrong with a network that cannot be exported, and what to write instead."""

from __future__ import annotations

import re

from mlaas_ray.core.errors import MlaasError, ModelError
from mlaas_ray.training.source import Source, one_line

_VALUES = "the network branches on the events' values, which an exported model cannot"
_NUMBER = "the network depends on the number of events"
# What the frameworks' compilers say of code that they cannot take, what that means, and what to do.
_KINDS = (
    (
        r"GuardOnDataDependent",
        _VALUES,
        "In place of if, while, assert, min() and max() on values write torch.where, clamp or a mask",
    ),
    (
        r"as a Python `bool`",
        _VALUES,
        "In place of if, while, assert, min() and max() on values write keras.ops.where, clip or a mask",
    ),
    (
        r"specialized it to be a constant",
        _NUMBER,
        "Use x.shape[0] or -1 for it, and functions of whole tensors in place of a loop",
    ),
    (
        r"len is not well defined|Iterating over a symbolic|convert elements of \(None",
        _NUMBER,
        "Use keras.ops.shape(x)[0] or -1 for it, and functions of whole tensors in place of a loop",
    ),
    (
        r"\.numpy\(\) is not supported",
        "the network leaves torch for numpy, which an exported model cannot",
        "Use functions of torch",
    ),
    (
        r"no attribute 'numpy'|symbolic tf.Tensor .*to a numpy array|not 'SymbolicTensor'",
        "the network leaves Keras for numpy or Python's numbers, which an exported model cannot",
        "Use functions of keras.ops",
    ),
    (r"ScriptModule", "the network is TorchScript, which is not exported", "Return the module itself"),
)


def refusal(
    source: Source, error: Exception, what: str, remedy: str = "Correct the model's code"
) -> MlaasError:
    """Return the error to show for one of a framework or of a user's code.

    Args:
        source: The user's code.
        error: What was raised; one of ours is returned as it is.
        what: What failed, and the word before the error: ``the network cannot be exported:``.
        remedy: What to do, unless the kind of error tells more.
    """
    if isinstance(error, MlaasError):
        return error
    where, text = source.where(error), f"{type(error).__name__}: {error}"
    for pattern, why, better in _KINDS:
        if re.search(pattern, text):
            return ModelError(f"{where}: {why}", better)
    return ModelError(f"{where}: {what} {one_line(error)}", remedy)
