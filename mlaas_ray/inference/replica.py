"""ModelReplica: a process that holds models and predicts; it speaks to gateways only.

All models share a pool of such replicas; a model may have replicas of its own too. TensorFlow lives here and
in the checks of uploads, so that what it costs, and what may go wrong in it, stays away from the gateways
(unless ``predict_in: gateways`` leaves no other place).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time

from mlaas_ray.core.errors import MlaasError
from mlaas_ray.inference.autoscaling import Load
from mlaas_ray.inference.catalog import Catalog, Entry
from mlaas_ray.inference.placement import light
from mlaas_ray.inference.pool import ModelPool
from mlaas_ray.inference.settings import MEBIBYTE, ServiceSettings
from mlaas_ray.inference.shipment import ModelKey, Packed, PackedOutcomes, pack_outcomes, unpack
from mlaas_ray.repository import Repository

logger = logging.getLogger("ray.serve")


class ModelReplica:
    """A deployment's replica.

    Args:
        settings: The service's settings.
        only: The one model it is for; None for any.
    """

    async def __init__(self, settings: ServiceSettings, only: str | None = None) -> None:  # type: ignore[misc]
        # Serve awaits it, and sends nothing before it ends: no model of this replica gives a cold answer.
        repository = Repository(settings.repository)
        self._pool = ModelPool.of(repository, settings)
        self._load = Load()
        if settings.preload:
            await preload(self._pool, Catalog(repository), settings, only=only)

    async def run(self, shipment: Packed, patient: bool, waited_s: float, behind: float) -> PackedOutcomes:
        """Predict the rows of several models.

        Args:
            shipment: Models and rows.
            patient: Whether models are waited for that are not in memory.
            waited_s: How long the first of the rows waited to be sent, seconds.
            behind: Rows that wait still, this replica's share of them.
        """
        loads = unpack(shipment)
        with self._load.of(sum(len(rows) for _, rows in loads), waited_s=waited_s, behind=behind):
            return pack_outcomes(await self._pool.run(loads, patient=patient))

    async def prepare(self, key: tuple[str, int, str]) -> str:
        """Load a version, and return what was found out about it, as JSON.

        Raises:
            ModelMissingError: When the package is no longer the one of the key.
            ModelError: When the model does not load, or fails.
            PackageError: When the package is damaged.
        """
        runtime = await self._pool.prepare(ModelKey(*key))
        return runtime.examination.model_dump_json()

    async def loaded(self) -> dict[str, object]:
        """Return the versions in memory, the one used last at the end, and what they take."""
        return {
            "models": [str(key) for key in self._pool.loaded()],
            "memory": self._pool.bytes,
            "pid": os.getpid(),
        }

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Serve's autoscaler how much there is to do."""
        return self._load.report()


async def preload(
    pool: ModelPool,
    catalog: Catalog,
    settings: ServiceSettings,
    *,
    only: str | None = None,
    in_gateway: bool = False,
) -> None:
    """Load the newest version of each model that belongs here, as many as fit; leave the rest to who asks.

    What does not load is passed over: the model's older version is loaded in its place.

    Args:
        pool: Where they are loaded.
        catalog: The models.
        settings: Limits, and where models live.
        only: The one model to load, wherever others live.
        in_gateway: Whether this is a gateway.
    """
    deadline = time.monotonic() + settings.start_timeout_s / 2
    names = [only] if only is not None else await asyncio.to_thread(catalog.repository.names)
    for name in names:
        if time.monotonic() > deadline or pool.bytes > 0.9 * settings.memory_mb * MEBIBYTE:
            logger.warning("not all of %d models were loaded before the start", len(names))
            return
        for entry in await asyncio.to_thread(versions, catalog, name):
            try:
                shared = only is None and settings.predict_in == "auto"
                if shared and await asyncio.to_thread(light, entry.package, settings) != in_gateway:
                    break
                await pool.prepare(entry.key)
                break
            except MlaasError as error:
                logger.warning("%s is passed over: %s", entry.key, error)


def versions(catalog: Catalog, name: str) -> list[Entry]:
    """Return the readable versions of a model, newest first."""
    entries = []
    try:
        numbers = catalog.repository.versions(name)
    except MlaasError:
        return []
    for number in reversed(numbers):
        try:
            entries.append(catalog.find(f"{name}:{number}"))
        except MlaasError as error:
            logger.warning("%s:%d: %s", name, number, error)
    return entries
