"""Modules: networks of frameworks that build them layer by layer, ours and the user's, and their checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.task import Task
from mlaas_ray.training.batches import Floats
from mlaas_ray.training.framework import Setup
from mlaas_ray.training.refusal import refusal
from mlaas_ray.training.source import MODEL, Source, one_line

# Rows for the check: two would do for shapes, but an output that lacks its sigmoid shows only by chance.
_ROWS, _FEW = 64, 3

_ENDS = {
    "binary": "End the network with one output and a sigmoid",
    "multiclass": "End the network with {outputs} outputs and a softmax",
    "regression": "End the network with {outputs} outputs, without an activation",
}


@dataclass(frozen=True)
class Ending:
    """What is put behind a user's network, so that it answers as the task wants.

    Attributes:
        activation: ``sigmoid`` or ``softmax`` behind a linear layer, else nothing.
        second: Whether of two classes' probabilities the second one, the signal's, is taken.
    """

    activation: Literal["", "sigmoid", "softmax"] = ""
    second: bool = False

    @classmethod
    def of(cls, task: Task, answers: npt.NDArray[Any], linear: bool) -> Ending:
        """Choose it.

        Args:
            task: What is to be answered.
            answers: What the network answers to some rows.
            linear: Whether its last layer is a linear one.
        """
        if task.kind == "regression" or answers.ndim != 2:
            return cls()
        two = task.kind == "binary" and answers.shape[1] == 2
        if linear:
            return cls("softmax" if two or task.kind == "multiclass" else "sigmoid", two)
        return cls("", two and answers.min() >= 0 and bool(np.allclose(answers.sum(axis=1), 1, atol=1e-3)))


NO_ENDING = Ending()


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

    def ends_linear(self, module: Any, x: Floats, mask: Floats) -> bool:
        """Whether a module's answers come out of a linear layer as they are."""

    def finish(self, answers: Any, ending: Ending) -> Any:
        """Put an ending behind answers ``(events, outputs)``, in the framework's own form."""


def module_of(setup: Setup, modules: Modules) -> tuple[Any, Ending]:
    """Build a bare module and check it; return it, and what is to be put behind it.

    It takes normalised values ``(events, features)``, 0 where there is none; if it takes two arguments, also
    the mask, 1 where there is a value and else 0.

    Raises:
        ModelError: When it cannot be built or run, or does not answer as the task wants.
    """
    if setup.model.builtin:
        return modules.ours(setup), NO_ENDING
    source = setup.model
    build = source.function()
    call, arguments = _call(source, build, setup)
    try:
        module = build(**arguments)
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit):
            error = RuntimeError(one_line(error))
        raise refusal(source, error, f"{call} failed with") from None
    if not modules.is_module(module):
        raise ModelError(
            f"{source.name}: {call} returned {type(module).__module__}.{type(module).__name__},"
            f" no {modules.kind}",
            f"Return a {modules.kind}, or set framework to what the model is made with",
        )
    return module, _checked(module, f"{source.name}: {call}", setup, modules)


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


def _checked(module: Any, call: str, setup: Setup, modules: Modules) -> Ending:
    """Run made-up rows through a module; return its ending."""
    width, task = setup.width, setup.task
    takes = modules.expects(module)
    random = np.random.default_rng(0)
    mask = (random.random((_ROWS, width)) < 0.8).astype(np.float32)
    rows = random.normal(scale=10.0, size=(_ROWS, width)).astype(np.float32) * mask
    try:
        bare = modules.run(module, rows, mask)
    except Exception as error:
        if takes is not None and takes != width:
            raise ModelError(
                f"{call} returned a network that takes {takes} values, but the events have {width}",
                "Use the argument input_dim as the size of the first layer",
            ) from None
        raise refusal(setup.model, error, f"the network fails on events of {width} values with") from None
    try:
        modules.run(module, rows[:_FEW], mask[:_FEW])
    except Exception as error:
        raise ModelError(
            f"{setup.model.where(error)}: the network takes {_ROWS} events, but fails on {_FEW} with"
            f" {one_line(error)}",
            "Use x.shape[0] or -1 for the number of events",
        ) from None
    ending = Ending.of(task, bare, modules.ends_linear(module, rows, mask))
    answers = np.asarray(modules.finish(bare, ending))
    wanted = _ENDS[task.kind].format(outputs=task.outputs)
    if answers.shape != (_ROWS, task.outputs):
        shape = ", ".join(["events", *map(str, answers.shape[1:])] if answers.ndim else [])
        raise ModelError(f"{call} answers with shape ({shape}), not (events, {task.outputs})", wanted)
    if not np.isfinite(answers).all():
        raise ModelError(f"{call} answers with what is no number", "Correct the model's code")
    if task.kind != "regression" and not (np.all(answers >= 0.0) and np.all(answers <= 1.0)):
        raise ModelError(f"{call} answers outside [0, 1]", wanted)
    if task.kind == "multiclass" and np.abs(answers.sum(axis=1) - 1).max() > 1e-3:
        raise ModelError(f"{call} answers with probabilities that do not come to 1", wanted)
    return ending
