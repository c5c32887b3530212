"""Deployments: models with replicas of their own, beside the pool that all others share.

Each is a Serve application without a route; gateways find it by its name. What is wanted is kept in the
repository, one small file a model (``.deployments/NAME.json``), so that it outlives the service and every
gateway sees it. Until an application's first replica can answer, the pool does.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlaas_ray.core.cluster import see_logs
from mlaas_ray.core.errors import JobError, ModelMissingError
from mlaas_ray.core.package import check_name
from mlaas_ray.inference.predictor import Holder, Predictor, Replicas
from mlaas_ray.inference.settings import Scale, ServiceSettings
from mlaas_ray.inference.threads import DEPLOYMENTS, LOOKUPS
from mlaas_ray.repository import Repository

logger = logging.getLogger("ray.serve")

DEPLOYMENT = "ModelReplica"


class Wish(BaseModel):
    """What a model's own deployment is to have.

    Attributes:
        replicas: How many: a number, or the fewest and the most as in ``1:8``; ``0:2`` lets the last one go
            when nobody asks, and who asks next waits for one.
        cpus: CPUs that Ray reserves for each replica.
        gpus: GPUs, likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: Scale = Scale(fewest=1, most=1)
    cpus: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    gpus: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @classmethod
    def read(cls, content: bytes) -> Wish:
        """Read a wish from JSON.

        Raises:
            JobError: When it is none, naming what is wrong.
        """
        try:
            return cls.model_validate_json(content or b"{}")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the body"
            raise JobError(
                f"{where}: {first['msg']}", 'Send {"replicas": "1:8", "cpus": 1, "gpus": 0}'
            ) from None


class Wishes:
    """The wishes that a repository keeps.

    Args:
        repository: It.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._folder = repository.root / ".deployments"

    def all(self) -> dict[str, Wish]:
        """Return the wishes by model; a file that cannot be read is passed over."""
        found = {}
        for file in sorted(self._folder.glob("*.json")):
            try:
                found[file.stem] = Wish.read(file.read_bytes())
            except (JobError, OSError) as error:
                logger.error("%s is passed over: %s", file, error)
        return found

    def keep(self, name: str, wish: Wish) -> None:
        """Keep a wish, in place of the one before.

        Raises:
            ModelMissingError: When there is no such model.
            RepositoryError: When the folder cannot be written.
        """
        self._repository.versions(name)
        with self._repository.writing():
            self._folder.mkdir(parents=True, exist_ok=True)
            passing = self._folder / f".{name}-{uuid.uuid4().hex}"
            passing.write_text(wish.model_dump_json())
            os.replace(passing, self._folder / f"{name}.json")

    def drop(self, name: str) -> bool:
        """Forget a wish; tell whether there was one.

        Raises:
            InvalidNameError: For a name no model may have.
            RepositoryError: When the folder cannot be written.
        """
        check_name(name)
        with self._repository.writing():
            try:
                (self._folder / f"{name}.json").unlink()
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True


class Deployments:
    """The deployments as a gateway sees them; it starts and stops those it is told to.

    Args:
        repository: Where wishes are kept.
        settings: The service's settings.
        predictor: Sends rows to them.
        forget: Told of a model that is to be answered from elsewhere.
    """

    def __init__(
        self,
        repository: Repository,
        settings: ServiceSettings,
        predictor: Predictor,
        forget: Callable[[str], None],
    ) -> None:
        self._wishes = Wishes(repository)
        self._settings = settings
        self._predictor = predictor
        self._forget = forget
        self._holders: dict[str, Holder] = {}

    async def deploy(self, name: str, wish: Wish) -> None:
        """Give a model replicas of its own, or other ones; ends when they can answer.

        Raises:
            ModelMissingError: When there is no such model.
            JobError: When they do not start.
        """
        before = (await LOOKUPS.run(self._wishes.all)).get(name)
        await LOOKUPS.run(self._wishes.keep, name, wish)
        try:
            await DEPLOYMENTS.run(start, self._settings, {name: wish})
        except JobError:
            if before is None:
                await LOOKUPS.run(self._wishes.drop, name)
                await DEPLOYMENTS.run(stop, name)
            else:
                await LOOKUPS.run(self._wishes.keep, name, before)
            raise
        await self.look()

    async def withdraw(self, name: str) -> None:
        """Let the pool answer for a model again.

        Raises:
            ModelMissingError: When it has no replicas of its own.
        """
        if not await LOOKUPS.run(self._wishes.drop, name):
            raise ModelMissingError(f"{name!r} has no replicas of its own", "See GET /deployments")
        await self.look()
        await DEPLOYMENTS.run(stop, name)

    async def resume(self) -> None:
        """Start the replicas that are wanted and not there: the service was stopped meanwhile, or is another.

        Until they answer, those for all models do.

        Raises:
            JobError: When they do not start.
        """
        wishes = await LOOKUPS.run(self._wishes.all)
        missing = {name: wish for name, wish in wishes.items() if await self._find(name) is None}
        if missing:
            await DEPLOYMENTS.run(partial(start, self._settings, missing, wait=False))

    async def listed(self) -> list[dict[str, Any]]:
        """Return the wishes, and how many replicas there are."""
        wishes = await LOOKUPS.run(self._wishes.all)
        listed = []
        for name, wish in wishes.items():
            replicas = await _answering(self._holders[name]) if name in self._holders else 0
            listed.append({"model": name, "wanted": wish.model_dump(mode="json"), "replicas": replicas})
        return listed

    async def look(self) -> None:
        """Send rows to the deployments there are."""
        wishes = await LOOKUPS.run(self._wishes.all)
        for name in [name for name in self._holders if name not in wishes]:
            del self._holders[name]
        for name, wish in wishes.items():
            if name not in self._holders:
                holder = await self._find(name)
                # One that is to begin with none has none to wait for.
                if holder is not None and (wish.replicas.fewest == 0 or await _answering(holder)):
                    self._holders[name] = holder
        for name in self._predictor.set_holders(self._holders):
            self._forget(name)

    async def _find(self, name: str) -> Replicas | None:
        from ray import serve

        try:
            handle = await LOOKUPS.run(serve.get_deployment_handle, DEPLOYMENT, application(name))
        except KeyError:  # there is no such application
            return None
        return Replicas(handle, self._settings)


def application(name: str) -> str:
    """Return the name of a model's own Serve application."""
    return f"mlaas-{name}"


def start(settings: ServiceSettings, wishes: dict[str, Wish], *, wait: bool = True) -> None:
    """Start the applications of wishes, or change those there are; blocks until they run.

    Args:
        settings: The service's settings.
        wishes: What each model is to have.
        wait: Whether to wait for them; one that asks for what the cluster has not may never run.

    Raises:
        JobError: When one does not start.
    """
    from ray import serve

    from mlaas_ray.inference.app import replicas

    for name, wish in wishes.items():
        target = serve.RunTarget(
            replicas(settings, wish.replicas, only=name, cpus=wish.cpus, gpus=wish.gpus),
            name=application(name),
            route_prefix=None,
        )
        try:
            serve.run_many([target], wait_for_applications_running=wait)
        except RuntimeError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise JobError(f"the replicas of {name!r} do not start: {lines[-1]}", see_logs()) from None


def stop(name: str) -> None:
    """Stop a model's own application; blocks until it is gone."""
    from ray import serve

    serve.delete(application(name))


async def _answering(holder: Holder) -> int:
    try:
        return len(await holder.loaded())
    except Exception:  # not there yet, or not there any more, whatever Serve makes of it
        return 0
