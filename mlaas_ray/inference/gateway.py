"""Gateway: a process that speaks HTTP, and hands rows to the model replicas. It holds no model."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from mlaas_ray.core.flatten import Rows
from mlaas_ray.inference.catalog import Catalog, Entry
from mlaas_ray.inference.http import HttpFace
from mlaas_ray.inference.inspection import inspect_apart
from mlaas_ray.inference.runtimes import Predictions
from mlaas_ray.inference.settings import ServiceSettings
from mlaas_ray.inference.uploads import Inspect
from mlaas_ray.repository import Repository

HEALTH_TIMEOUT_S = 10.0


class ReplicaPool:
    """The model replicas, as the HTTP face sees them.

    Args:
        settings: Time-outs.
        handle: The deployment of model replicas.
    """

    def __init__(self, settings: ServiceSettings, handle: DeploymentHandle[Any]) -> None:
        self._settings = settings
        self._handle = handle

    async def predict(self, entry: Entry, rows: Rows) -> Predictions:
        """Ask a replica for the predictions of rows ``(events, features)``.

        Raises:
            TimeoutError: When no replica answers in time.
        """
        ask = partial(
            self._handle.predict.remote, entry.version.name, entry.version.version, entry.digest, rows
        )
        async with asyncio.timeout(self._settings.predict_timeout_s):
            try:
                answer: Predictions = await ask()
            except RayActorError:
                # The replica died under the request; a prediction may be asked twice, once more is enough.
                answer = await ask()
        return answer

    async def loaded(self) -> list[str]:
        """Return the versions in a replica's memory.

        Raises:
            TimeoutError: When no replica answers.
        """
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            versions: list[str] = await self._handle.loaded.remote()
        return versions

    @property
    def inspect(self) -> Inspect:
        """Loads an uploaded model in a process of its own; blocks."""
        return partial(inspect_apart, timeout_s=self._settings.load_timeout_s)


class Gateway:
    """A deployment's replica: the HTTP face over the pool of model replicas.

    Args:
        settings: The service's settings.
        models: The deployment of model replicas.
    """

    def __init__(self, settings: ServiceSettings, models: DeploymentHandle[Any]) -> None:
        self._face = HttpFace(
            settings, Catalog(Repository(settings.repository)), ReplicaPool(settings, models)
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._face.app()
