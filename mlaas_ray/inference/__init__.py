"""Model packages of a repository, answering over HTTP: TFaaS's interface and beyond, on Ray Serve.

Names are imported when they are used: what Ray Serve reads from the environment must be set before its
import, and :mod:`mlaas_ray.inference.service` does so.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlaas_ray.inference.app import build_app
    from mlaas_ray.inference.runtimes import Runtime, load_runtime
    from mlaas_ray.inference.service import Service, running_service, serve_until_stopped
    from mlaas_ray.inference.settings import ServiceSettings

__all__ = [
    "Runtime",
    "Service",
    "ServiceSettings",
    "build_app",
    "load_runtime",
    "running_service",
    "serve_until_stopped",
]

_HOMES = {
    "Runtime": "runtimes",
    "Service": "service",
    "ServiceSettings": "settings",
    "build_app": "app",
    "load_runtime": "runtimes",
    "running_service": "service",
    "serve_until_stopped": "service",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
