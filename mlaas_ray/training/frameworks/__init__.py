"""The frameworks, one module each, and the one list of them; importing one imports no framework yet."""

from __future__ import annotations

from collections.abc import Callable

from mlaas_ray.core.errors import JobError, ModelError
from mlaas_ray.training.framework import Framework
from mlaas_ray.training.frameworks.keras import Keras
from mlaas_ray.training.frameworks.torch import Torch
from mlaas_ray.training.frameworks.xgboost import XGBoost
from mlaas_ray.training.source import FRAMEWORK, MODEL, Source, one_line

FRAMEWORKS: dict[str, Callable[[], Framework]] = {"keras": Keras, "torch": Torch, "xgboost": XGBoost}

# What a framework of one's own must have.
_NEEDED = ("name", "models", "tasks", "defaults", "model_format", "prepare", "network", "answer")


def find_framework(name: str) -> Source:
    """Find a framework by the name a job gives it: one of ours, a file, or ``package.module:function``.

    Raises:
        JobError: For a name that is none.
    """
    try:
        return Source.locate(name, FRAMEWORK, sorted(FRAMEWORKS))
    except ModelError as error:
        raise JobError(error.message, error.remedy) from None


def load_framework(source: Source | str) -> Framework:
    """Return a framework; what it is made with is imported when it is first used.

    Raises:
        JobError: For a name that is none, or code that returns no framework.
    """
    if isinstance(source, str):
        source = find_framework(source)
    if source.builtin:
        return FRAMEWORKS[source.name]()
    try:
        made: Framework = source.function()()
    except ModelError as error:
        raise JobError(error.message, error.remedy) from None
    except (Exception, SystemExit) as error:
        raise JobError(f"{source.where(error)}: {one_line(error)}", "Correct the code") from None
    lacking = [name for name in _NEEDED if not hasattr(made, name)]
    if lacking:
        raise JobError(
            f"{source.name}: {FRAMEWORK.function}() returned a {type(made).__name__} without {lacking[0]!r}",
            "Give it all that mlaas_ray.training.framework.Framework has",
        )
    return made


def find_model(name: str | None, framework: Framework) -> Source:
    """Find a model by the name a job gives it; None for the framework's usual one.

    Raises:
        ModelError: For a name that is none, and a file that cannot be read.
    """
    return Source.locate(name or framework.models[0], MODEL, framework.models)
