"""Modules: networks of frameworks that build them layer by layer, ours and the user's, and their checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import ModelError
from mlaas_ray.training.batches import Floats
from mlaas_ray.training.framework import Setup
from mlaas_ray.training.source import MODEL, Source, one_line

# Rows for the check: two would do for shapes, but an output that lacks its sigmoid shows only by chance.
_ROWS = 64

_ENDS = {
    "binary": "End the network with one output and a sigmoid",
    "multiclass": "End the network with {outputs} outputs and a softmax",
    "regression": "End the network with {outputs} outputs, without an activation",
}


class Modules(Protocol):
    """What must be known of a framework to check its modules.

    Attributes:
        kind: What a user's function must return, for messages.
    """

    kind: str

    def ours(self, setup: Setup) -> Any:
        """Build one of our own networks."""

    def is_module(self, candidate: Any) -> bool:
        """Whether a user's function returned what this framework trains."""

    def expects(self, module: Any) -> int | None:
        """Values a row a module takes, where that can be told without running it."""

    def takes_mask(self, module: Any) -> bool:
        """Whether a module is called with values and mask, or with values only."""

    def run(self, module: Any, x: Floats, mask: Floats) -> npt.NDArray[Any]:
        """Run rows through a bare module, without training it."""


def module_of(setup: Setup, modules: Modules) -> Any:
    """Build a bare module and check it.

    It takes normalised values ``(events, features)``, 0 where there is none; if it takes two arguments, also
    the mask, 1 where there is a value and else 0.

    Raises:
        ModelError: When it cannot be built or run, or does not answer as the task wants.
    """
    if setup.model.builtin:
        return modules.ours(setup)
    source = setup.model
    build = source.function()
    call, arguments = _call(source, build, setup)
    try:
        module = build(**arguments)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{source.where(error)}: {call} failed with {one_line(error)}", "Correct the model's code"
        ) from None
    if not modules.is_module(module):
        raise ModelError(
            f"{source.name}: {call} returned {type(module).__module__}.{type(module).__name__},"
            f" no {modules.kind}",
            f"Return a {modules.kind}, or set framework to what the model is made with",
        )
    _check_answers(module, f"{source.name}: {call}", setup, modules)
    return module


def _call(source: Source, build: Callable[..., Any], setup: Setup) -> tuple[str, dict[str, Any]]:
    """Return how a user's function is called: with those of our arguments that it takes, and its options."""
    known = {"outputs": setup.task.outputs, "features": setup.features, "task": setup.task}
    parameters = list(inspect.signature(build).parameters.values())
    if not parameters or parameters[0].kind is inspect.Parameter.VAR_KEYWORD:
        raise ModelError(f"{source.name}: the function {build.__name__} takes no argument", MODEL.usage)
    first = parameters[0].name
    taken = {parameter.name for parameter in parameters[1:]}
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    strange = sorted(set(setup.options) - taken)
    if strange and not anything:
        raise ModelError(
            f"{source.name}: model() has no argument {strange[0]!r}, which the job gives it",
            "Take it out of the job's model, or give the function such an argument",
        )
    arguments = {
        first: setup.width,
        **{name: known[name] for name in known if name in taken},
        **setup.options,
    }
    return f"model({setup.width})", arguments


def _check_answers(module: Any, call: str, setup: Setup, modules: Modules) -> None:
    width, task = setup.width, setup.task
    takes = modules.expects(module)
    random = np.random.default_rng(0)
    mask = (random.random((_ROWS, width)) < 0.8).astype(np.float32)
    rows = random.normal(scale=10.0, size=(_ROWS, width)).astype(np.float32) * mask
    try:
        answers = modules.run(module, rows, mask)
    except Exception as error:
        if takes is not None and takes != width:
            raise ModelError(
                f"{call} returned a network that takes {takes} values, but the events have {width}",
                "Use the argument input_dim as the size of the first layer",
            ) from None
        raise ModelError(
            f"{setup.model.where(error)}: the network fails on events of {width} values with"
            f" {one_line(error)}",
            "Correct the model's code",
        ) from None
    ending = _ENDS[task.kind].format(outputs=task.outputs)
    if answers.shape != (_ROWS, task.outputs):
        shape = ", ".join(["events", *map(str, answers.shape[1:])] if answers.ndim else [])
        raise ModelError(f"{call} answers with shape ({shape}), not (events, {task.outputs})", ending)
    if task.kind != "regression" and not (np.all(answers >= 0.0) and np.all(answers <= 1.0)):
        raise ModelError(f"{call} answers outside [0, 1]", ending)
    if task.kind == "multiclass" and np.abs(answers.sum(axis=1) - 1).max() > 1e-3:
        raise ModelError(f"{call} answers with probabilities that do not come to 1", ending)
    if not np.isfinite(answers).all():
        raise ModelError(f"{call} answers with what is no number", "Correct the model's code")
