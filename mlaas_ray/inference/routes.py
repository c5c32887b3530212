"""Routes: the version that answers for a name, which is always one that is in memory.

``higgs`` stands for its newest version, ``higgs:production`` for whatever the alias says. When that becomes
another version, it is loaded and warmed while the one before goes on answering, and takes its place when it
can; one that does not load never does. Nobody is told of such changes: whether the folder of a name changed
costs one look a request.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mlaas_ray.core.errors import (
    MlaasError,
    ModelError,
    ModelMissingError,
    PackageError,
    VersionMissingError,
)
from mlaas_ray.inference.busy import BusyError
from mlaas_ray.inference.catalog import Catalog, Entry
from mlaas_ray.inference.shipment import ModelKey
from mlaas_ray.inference.threads import LOOKUPS
from mlaas_ray.repository import ModelVersion

logger = logging.getLogger("ray.serve")

# The folders of a model that is asked again and again are looked at so often (seconds): for a hundred models
# it would be two hundred system calls a turn of the event loop.
LOOK_S = 0.05
# A new version that another gateway has had loaded takes over within this time.
GLANCE_S = 0.1
# What did not load is tried again after this time: it may have been a matter of memory.
RETRY_S = 30.0
# Folders carry the time of their last change in ticks of some milliseconds: two changes may look like one.
TICK_NS = 50_000_000

Prepare = Callable[[Entry], Awaitable[None]]


@dataclass(slots=True)
class _Route:
    """Which version answers.

    Attributes:
        entry: It.
        folders: Where a change of mind would show.
        seen: When these changed last; None when that is too recent to be relied on.
        coming: The loading of the version that will take over.
        looked: When the folders were looked at last, seconds.
    """

    entry: Entry
    folders: tuple[str, ...]
    seen: tuple[int, ...] | None
    coming: asyncio.Task[None] | None = None
    looked: float = -math.inf


class Routes:
    """Names to versions that can answer at once; for one event loop.

    Args:
        catalog: The repository.
        prepare: Brings a version into memory, wherever it is going to be asked.
        timeout_s: Longest wait for a version to be loaded, seconds.
    """

    def __init__(self, catalog: Catalog, prepare: Prepare, timeout_s: float) -> None:
        self._catalog = catalog
        self._prepare = prepare
        self._timeout_s = timeout_s
        self._routes: dict[str, _Route] = {}
        self._preparing: dict[ModelKey, asyncio.Task[None]] = {}
        self._prepared: set[ModelKey] = set()
        # How often a model was forgotten: what was prepared before is not where it will be asked.
        self._forgotten: dict[str, int] = {}
        self._failed: dict[ModelVersion, tuple[float, MlaasError]] = {}

    def glance(self, text: str, within_s: float = LOOK_S) -> Entry | None:
        """Return the entry of a name that was asked for before, when nothing changed; for every request.

        Args:
            text: The name.
            within_s: How old the last look at the disk may be, seconds.
        """
        route = self._routes.get(text)
        if route is None:
            return None
        if route.coming is None:
            if route.seen is None:
                return None
            now = time.monotonic()
            if now - route.looked >= within_s:
                if _times(route.folders) != route.seen:
                    return None
                route.looked = now
        return route.entry

    def look_again(self, name: str) -> None:
        """Have the next glance at a model see what was changed just now."""
        for route in self._routes.values():
            if route.entry.key.name == name:
                route.looked = -math.inf

    async def find(self, text: str) -> Entry:
        """Return the entry that answers for ``name``, ``name:version`` or ``name:alias``.

        Raises:
            InvalidNameError: For a name no model may have.
            ModelMissingError: When there is no such model.
            VersionMissingError: When the model has no such version.
            EventError: When no model is named and there are several.
            ModelError: When no version of it loads.
            PackageError: When no version of it is whole.
            BusyError: When it is not loaded in time.
        """
        if not text:
            text = await LOOKUPS.run(self._catalog.only)
        return self.glance(text, within_s=0) or await self._find(text)

    def failures(self, name: str) -> dict[int, str]:
        """Return the versions of a model that do not load, and why."""
        return {
            version.version: str(error)
            for version, (_, error) in list(self._failed.items())
            if version.name == name
        }

    def forget(self, name: str) -> None:
        """Take nothing for granted that was known of a model: it is to live elsewhere."""
        self._forgotten[name] = self._forgotten.get(name, 0) + 1
        self._prepared = {key for key in self._prepared if key.name != name}
        for route in self._routes.values():
            if route.entry.key.name == name:
                route.seen = None

    async def settle(self, name: str) -> None:
        """Wait until the newest version of a model answers for it, or turned out unable to.

        Raises:
            Exception: As :meth:`find`.
        """
        await self.find(name)
        route = self._routes.get(name)
        if route is not None and route.coming is not None:
            await asyncio.wait({route.coming}, timeout=self._timeout_s)
            await self.find(name)

    async def _find(self, text: str) -> Entry:
        route = self._routes.get(text)
        current = route.entry if route is not None and route.entry.package.path.is_dir() else None
        folders = self._folders(text)
        # Looked at before the versions are: a change in between is seen the next time.
        seen = _times(folders)
        if seen and max(seen) > time.time_ns() - TICK_NS:
            seen = None
        first: MlaasError | None = None
        for version in await LOOKUPS.run(self._wanted, text):
            error = self._failure(version)
            if error is None:
                try:
                    entry = await LOOKUPS.run(self._catalog.entry, version)
                    coming = await self._bring(entry, GLANCE_S if current else self._timeout_s)
                    if coming is not None:
                        if current is None:
                            raise BusyError(f"{version} is being loaded", "Try again in some seconds")
                        self._routes[text] = _Route(current, folders, None, coming)
                        coming.add_done_callback(lambda _: self._came(text))
                        return current
                    known = seen if entry.key in self._prepared else None
                    self._routes[text] = route = _Route(entry, folders, known)
                    if current is not None:
                        self._leave(current.key)
                    if first is not None:  # a better one is tried again
                        asyncio.get_running_loop().call_later(RETRY_S, _doubt, route)
                    return entry
                except (ModelError, PackageError) as failure:
                    error = failure
                    self._failed[version] = (time.monotonic(), failure)
                    logger.error("%s cannot be served: %s", version, failure)
                except (ModelMissingError, VersionMissingError) as gone:  # deleted meanwhile
                    error = gone
                except Exception as trouble:  # it may pass, and the one before answers meanwhile
                    if current is None:
                        raise
                    logger.warning("%s goes on with %s: %s", text, current.version, trouble)
                    self._routes[text] = _Route(current, folders, None)
                    return current
            first = first or error
        raise first or ModelMissingError(f"no model {text!r}", "")

    def _folders(self, text: str) -> tuple[str, ...]:
        """Return the folders whose change may mean another version."""
        name, reference = ModelVersion.parse(text)
        root = self._catalog.repository.root
        if isinstance(reference, str):
            return (str(root / name), str(root / ".aliases" / name))
        return (str(root / name),)

    def _wanted(self, text: str) -> list[ModelVersion]:
        """Return the versions that may answer, the best first."""
        name, reference = ModelVersion.parse(text)
        repository = self._catalog.repository
        if reference is None:
            return [ModelVersion(name, number) for number in reversed(repository.versions(name))]
        return [repository.find(text)]

    def _leave(self, key: ModelKey) -> None:
        """Take a version that no name stands for any more as one to be loaded: it may leave memory."""
        if all(route.entry.key != key for route in self._routes.values()):
            self._prepared.discard(key)

    def _failure(self, version: ModelVersion) -> MlaasError | None:
        failure = self._failed.get(version)
        if failure is None:
            return None
        if time.monotonic() - failure[0] > RETRY_S:
            del self._failed[version]
            return None
        return failure[1]

    async def _bring(self, entry: Entry, patience_s: float) -> asyncio.Task[None] | None:
        """Have a version loaded; return the loading when it takes longer than that.

        Raises:
            ModelError: When it does not load.
            PackageError: When it is damaged.
        """
        if entry.key in self._prepared:
            return None
        task = self._preparing.get(entry.key)
        if task is None:
            task = self._preparing[entry.key] = asyncio.create_task(self._load(entry))
            task.add_done_callback(lambda _: self._preparing.pop(entry.key, None))
        done, _ = await asyncio.wait({task}, timeout=patience_s)
        if not done:
            return task
        task.result()
        return None

    async def _load(self, entry: Entry) -> None:
        forgotten = self._forgotten.get(entry.key.name)
        try:
            await self._prepare(entry)
        except (ModelError, PackageError) as failure:  # also when nobody waits for it any more
            self._failed[entry.version] = (time.monotonic(), failure)
            raise
        if self._forgotten.get(entry.key.name) == forgotten:
            self._prepared.add(entry.key)

    def _came(self, text: str) -> None:
        """Look again at the next request: the version that was to come has come, or failed."""
        route = self._routes.get(text)
        if route is None or route.coming is None:
            return
        error = None if route.coming.cancelled() else route.coming.exception()
        if error is not None:
            logger.warning("%s goes on with %s: %s", text, route.entry.version, error)
        route.coming = None


def _doubt(route: _Route) -> None:
    """Look again at the next request."""
    route.seen = None


def _times(folders: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return when folders changed last; None where one is missing."""
    try:
        return tuple([os.stat(folder).st_mtime_ns for folder in folders])
    except OSError:
        return None
