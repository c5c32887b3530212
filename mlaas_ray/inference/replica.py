"""ModelReplica: a process that loads any version of the repository when it is asked for, and predicts.

All models share a pool of such replicas. TensorFlow lives only here (and in the checks of uploads), so that
what it costs, and what may go wrong in it, stays away from the gateways.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mlaas_ray.core.errors import ModelMissingError
from mlaas_ray.core.flatten import Rows
from mlaas_ray.inference.runtimes import Predictions, Runtime, load_runtime, predict
from mlaas_ray.inference.settings import ServiceSettings
from mlaas_ray.repository import ModelVersion, Repository

Key = tuple[str, int, str]


class ModelReplica:
    """A deployment's replica: the models used last, and a thread that runs them.

    Args:
        settings: The service's settings.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._repository = Repository(settings.repository)
        self._models: OrderedDict[Key, asyncio.Task[Runtime]] = OrderedDict()
        # Off the event loop: a slow model must not keep the replica from answering its health checks.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._runner = ThreadPoolExecutor(1, thread_name_prefix="predict")

    async def predict(self, name: str, version: int, digest: str, rows: Rows) -> Predictions:
        """Predict rows with one version.

        Args:
            name: The model.
            version: Its version.
            digest: Digest of the package the caller has in mind.
            rows: ``(events, features)`` float32.

        Returns:
            ``(events, outputs…)``.

        Raises:
            ModelMissingError: When the package is no longer the one the caller has in mind.
            ModelError: When the model does not load, or fails.
            PackageError: When the package is damaged.
        """
        runtime = await self._model((name, version, digest))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._runner, partial(predict, runtime, rows))

    async def loaded(self) -> list[str]:
        """Return the versions in memory, the one used last at the end."""
        return [str(ModelVersion(name, version)) for name, version, _ in self._models]

    async def _model(self, key: Key) -> Runtime:
        """Return a loaded model; callers that come while it loads wait for the same load."""
        task = self._models.get(key)
        if task is None:
            task = self._models[key] = asyncio.create_task(self._load(key))
            # The task that is dropped still answers those who hold it.
            while len(self._models) > self._settings.models_in_memory:
                self._models.popitem(last=False)
        else:
            self._models.move_to_end(key)
        try:
            # Shielded: a caller that goes away does not take the load from the others.
            return await asyncio.shield(task)
        except Exception:
            # What failed is tried again at the next request.
            if self._models.get(key) is task:
                del self._models[key]
            raise

    async def _load(self, key: Key) -> Runtime:
        return await asyncio.get_running_loop().run_in_executor(self._loader, self._load_now, key)

    def _load_now(self, key: Key) -> Runtime:
        name, version, digest = key
        package = self._repository.get(name, version)
        if package.digest != digest:
            raise ModelMissingError(f"{name}:{version} was replaced meanwhile", "Ask again")
        return load_runtime(package, self._settings.threads)
