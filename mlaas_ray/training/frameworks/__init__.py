"""The frameworks, one module each, and the one list of them; importing one imports no framework yet."""

from __future__ import annotations

from mlaas_ray.core.errors import JobError, nearest
from mlaas_ray.training.framework import Framework
from mlaas_ray.training.frameworks.keras import Keras
from mlaas_ray.training.frameworks.torch import Torch

FRAMEWORKS: dict[str, type[Framework]] = {"keras": Keras, "torch": Torch}


def load_framework(name: str) -> Framework:
    """Return a framework by name; the framework itself is imported when it is first used.

    Raises:
        JobError: For a name that is none.
    """
    if name not in FRAMEWORKS:
        raise JobError(f"no framework {name!r}", nearest(name, FRAMEWORKS))
    return FRAMEWORKS[name]()
