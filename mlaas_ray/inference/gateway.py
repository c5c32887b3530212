"""Gateway: a process that speaks HTTP, and hands rows to what holds the models."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from mlaas_ray.core.flatten import Rows
from mlaas_ray.core.held import sweep
from mlaas_ray.inference import protocol
from mlaas_ray.inference.autoscaling import ROWS
from mlaas_ray.inference.busy import BusyError
from mlaas_ray.inference.catalog import Catalog, Entry
from mlaas_ray.inference.deployments import Deployments
from mlaas_ray.inference.desk import Desk
from mlaas_ray.inference.http import UPLOAD_FOLDERS, HttpFace
from mlaas_ray.inference.inspection import inspect_apart
from mlaas_ray.inference.metrics import Counts
from mlaas_ray.inference.pool import ModelPool
from mlaas_ray.inference.predictor import HERE, SHARED, OwnModels, Predictor, Replicas, ask_all
from mlaas_ray.inference.replica import preload
from mlaas_ray.inference.routes import Routes
from mlaas_ray.inference.runtimes import Predictions
from mlaas_ray.inference.settings import ServiceSettings
from mlaas_ray.inference.status import Status
from mlaas_ray.inference.threads import FILES, LOOKUPS
from mlaas_ray.inference.uploads import Inspect
from mlaas_ray.repository import Repository

logger = logging.getLogger("ray.serve")

# How often a gateway looks how many replicas there are.
PULSE_S = 1.0
# How often it looks for what processes that were killed left.
SWEEP_S = 600.0
# Longest wait for other gateways' counts.
ANSWER_S = 10.0


class Gateway:
    """A deployment's replica: the HTTP face, and the desk, over the models.

    Args:
        settings: The service's settings.
        models: The deployment of model replicas; None where there is none.
    """

    async def __init__(self, settings: ServiceSettings, models: DeploymentHandle[Any] | None) -> None:  # type: ignore[misc]
        self._settings = settings
        catalog = Catalog(Repository(settings.repository))
        here = None
        if settings.predict_in != "replicas":
            here = ModelPool.of(catalog.repository, settings)
            if settings.preload:
                await preload(here, catalog, settings, in_gateway=True)
        self._predictor = Predictor(
            settings,
            shared=Replicas(models, settings) if models else None,
            here=OwnModels(here) if here else None,
        )
        self._routes = Routes(catalog, self._predictor.prepare, settings.predict_timeout_s)
        self._repository = catalog.repository
        self._status = Status()
        self._name = serve.get_replica_context().replica_tag
        self._gateways: DeploymentHandle[Any] | None = None
        self._desk = Desk(self._routes, self._predictor, self._status)
        protocol.install(self._desk if settings.coalesce else None)
        self._face = HttpFace(settings, catalog, self, self._status)
        self.deployments = Deployments(catalog.repository, settings, self._predictor, self._routes.forget)
        self._pulse = asyncio.create_task(self._beat())
        self._sweeps = asyncio.create_task(self._sweep())

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._face.app()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Serve's autoscaler how much there is to do.

        Of a gateway that is busy, requests wait in the sockets. A connection has one request at a time, and
        HAProxy has no more of them than it has requests: those in use are as many as the requests.
        """
        report = self._status.load.report()
        return report | {ROWS: max(report[ROWS], float(self._desk.next_period()))}

    async def find(self, model: str) -> Entry:
        """Return the version that answers for a name; see :meth:`Routes.find`."""
        return await self._routes.find(model)

    async def predict(self, entry: Entry, rows: Rows) -> Predictions:
        """Predict; see :meth:`Predictor.predict`."""
        return await self._predictor.predict(entry, rows)

    def look_again(self, name: str) -> None:
        """Have the next request see what was changed just now."""
        self._routes.look_again(name)

    async def settle(self, name: str) -> None:
        """Wait until the newest version of a model answers for it; see :meth:`Routes.settle`."""
        await self._routes.settle(name)

    def facts(self, entry: Entry) -> dict[str, Any]:
        """Return what was found when a version was loaded."""
        return self._predictor.facts(entry.key)

    def failures(self, name: str) -> dict[int, str]:
        """Return the versions of a model that do not load, and why."""
        return self._routes.failures(name)

    async def state(self) -> dict[str, Any]:
        """Return what the service is doing, and what is in memory.

        Raises:
            TimeoutError: When no replica answers.
        """
        found = await self._predictor.loaded()
        wanted = self._settings.predict_in != "gateways" and self._settings.replicas.fewest > 0
        return {
            "ready": bool(found.get(SHARED)) or not wanted,
            # Which way requests take: connections that came to the desk, or did not, are the proof.
            "path": "coalesced" if self._desk.connections else "plain",
            "coalesced": self._desk.taken,
            "waiting": self._predictor.batcher.waiting,
            "calls": self._predictor.batcher.calls,
            "rows": self._predictor.batcher.rows,
            "predict_in": self._settings.predict_in,
            "processes": [_shown(name) | one for name, each in found.items() for one in each],
            "loaded": sorted({model for each in found.values() for one in each for model in one["models"]}),
        }

    def own_counts(self) -> Counts:
        """Return what this gateway has counted."""
        batcher = self._predictor.batcher
        return Counts(
            gateway=self._name,
            answered=dict(self._status.answered),
            models=dict(self._status.models),
            calls=batcher.calls,
            rows=batcher.rows,
            ongoing=self._status.load.ongoing,
            waiting=batcher.waiting,
        )

    async def counts(self) -> list[Counts]:
        """Return what each gateway has counted; one that is on its way out may be missing.

        Raises:
            TimeoutError: When gateways do not answer.
        """
        if self._gateways is None:
            context = serve.get_replica_context()
            # in a thread: it asks Serve's controller and waits
            self._gateways = await LOOKUPS.run(
                serve.get_deployment_handle, context.deployment, context.app_name
            )
        answers = await ask_all(self._gateways, "own_counts", timeout_s=ANSWER_S)
        return [answer for answer in answers if isinstance(answer, Counts)]

    @property
    def inspect(self) -> Inspect:
        """Loads an uploaded model in a process of its own; blocks."""
        return partial(inspect_apart, timeout_s=self._settings.load_timeout_s, threads=self._settings.threads)

    async def _meet(self) -> None:
        """Find what answers for each model before anybody asks."""
        for name in await LOOKUPS.run(self._repository.names):
            try:
                await self._routes.find(name)
            except Exception as error:  # who asks for it hears of it
                logger.info("%s cannot be asked yet: %s", name, error)

    async def _sweep(self) -> None:
        """Remove what killed uploads left, for as long as the gateway lives."""
        while True:
            try:
                swept = await FILES.run(self._repository.sweep)
                swept += await FILES.run(sweep, Path(tempfile.gettempdir()), UPLOAD_FOLDERS)
                if swept:
                    logger.info("left by processes that were killed: %s", ", ".join(map(str, swept)))
            except (OSError, BusyError) as error:  # a repository may be for reading only
                logger.info("nothing is swept: %s", error)
            await asyncio.sleep(SWEEP_S)

    async def _beat(self) -> None:
        """Look how many replicas there are, for as long as the gateway lives; meet the models meanwhile."""
        meeting: asyncio.Task[None] | None = None
        # one of several gateways is enough
        if serve.get_replica_context().rank.rank == 0:
            try:
                await self.deployments.resume()
            except Exception as error:  # those for all models answer
                logger.warning("models wait for replicas of their own: %s", error)
        while True:
            try:
                await self.deployments.look()
                await self._predictor.loaded()
            except Exception as error:  # whatever it is, the next beat may go better
                logger.info("the model replicas do not answer: %s", error)
            if meeting is None and self._settings.preload:
                meeting = asyncio.create_task(self._meet())
            await asyncio.sleep(PULSE_S)


def _shown(holder: str) -> dict[str, str | None]:
    """Say where models are, and which model has replicas of its own."""
    if holder == HERE:
        return {"place": "gateway", "model": None}
    return {"place": "replica", "model": holder or None}
