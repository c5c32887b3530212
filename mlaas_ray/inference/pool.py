"""ModelPool: the models in a process's memory, within a budget, and the threads that run them.

A call that takes no longer than to hand it to a thread is made at once, by the event loop itself. Other
models that answer in milliseconds share one thread, one after the other: a message with the rows of fifty of
them costs one hand-over. What may take long (a slow model, thousands of rows, a model still to be loaded) has
threads of its own, so that nobody waits for it who did not ask for it.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import psutil

from mlaas_ray.core.errors import MlaasError, ModelError, ModelMissingError
from mlaas_ray.core.flatten import Rows
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.inference.busy import BusyError
from mlaas_ray.inference.predictions import first_line
from mlaas_ray.inference.runtimes import Predictions, Runtime, load_runtime, predict
from mlaas_ray.inference.settings import MEBIBYTE, ServiceSettings
from mlaas_ray.inference.shipment import ModelKey, ModelRows, Outcome
from mlaas_ray.inference.threads import LOOKUPS
from mlaas_ray.repository import Repository

logger = logging.getLogger("ray.serve")

# A call that was measured to take no longer (seconds) is not handed to a thread: that would cost 150 us of
# CPU where there is little to do, and a few dozen requests keep the event loop as long.
AT_ONCE_S = 0.0005
# After so long (seconds) of such calls in a row, whatever else the event loop has to do has its turn.
STRETCH_S = 0.002
# A model keeps its lock no longer than for as many rows.
PART_ROWS = 4096
# How often (seconds) it is looked whether models in memory are still wanted; and how long a version that is
# neither the newest of its name nor has an alias stays after its last use.
TIDY_S, UNUSED_S = 2.0, 30.0
PATIENT_THREADS = 8
# Those who are waited for by many at a time come first where threads compete for a CPU.
PATIENT_NICENESS = 10


@dataclass
class Loaded:
    """A model in memory.

    Attributes:
        package: What it was loaded from.
        runtime: It.
        bytes: What it takes, about.
        identity: The package's, when it was loaded.
        lock: Held by who runs it: a runtime answers one call at a time.
        used: When it was asked for last, on the clock of ``time.monotonic``.
    """

    package: ModelPackage
    runtime: Runtime
    bytes: int
    identity: tuple[int, ...]
    lock: threading.Lock = field(default_factory=threading.Lock)
    used: float = field(default_factory=time.monotonic)

    def seconds(self, rows: int) -> float:
        """Return what a call was measured to take at most; infinity where that is not known."""
        return next((seconds for size, seconds in self._measured if size >= rows), math.inf)

    @cached_property
    def _measured(self) -> list[tuple[int, float]]:
        # those that were put in place of a package's were not examined
        examination = getattr(self.runtime, "examination", None)
        return list(examination.seconds.items()) if examination is not None else []


class ModelPool:
    """Models by version, the one used last at the end.

    Args:
        repository: Where they come from.
        threads: Threads a model may use for one prediction.
        memory_bytes: What all of them may take; the one not used for longest makes room.
        load_timeout_s: Longest examination of a model, seconds.
        load: Opens a package.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        threads: int,
        memory_bytes: int,
        load_timeout_s: float = 120.0,
        load: Callable[..., Runtime] = load_runtime,
    ) -> None:
        self._repository = repository
        self._threads = threads
        self._budget = memory_bytes
        self._load_timeout_s = load_timeout_s
        self._load = load
        self._models: OrderedDict[ModelKey, Loaded] = OrderedDict()
        self._loading: dict[ModelKey, asyncio.Task[Loaded]] = {}
        self._tidying: asyncio.Task[None] | None = None
        # Off the event loop: a slow model must not keep the process from answering its health checks.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="quick")
        self._patient = ThreadPoolExecutor(
            PATIENT_THREADS, thread_name_prefix="patient", initializer=_step_back
        )

    @classmethod
    def of(cls, repository: Repository, settings: ServiceSettings) -> ModelPool:
        """Make a pool by a service's settings."""
        return cls(
            repository,
            threads=settings.threads,
            memory_bytes=settings.memory_mb * MEBIBYTE,
            load_timeout_s=settings.load_timeout_s,
        )

    @property
    def bytes(self) -> int:
        """What the models in memory take, about."""
        return sum(loaded.bytes for loaded in self._models.values())

    def loaded(self) -> list[ModelKey]:
        """Return the versions in memory, the one used last at the end."""
        return list(self._models)

    async def run(self, loads: Sequence[ModelRows], *, patient: bool) -> list[Outcome]:
        """Run rows through their models.

        Args:
            loads: Whose rows ``(events, features)``.
            patient: Whether who asks waits for models to be loaded, and for slow ones. Otherwise a model that
                is not in memory is loaded too, but gets no answer.
        """
        if patient:
            return list(await asyncio.gather(*(self._run_patiently(key, rows) for key, rows in loads)))
        outcomes = [Outcome(None)] * len(loads)
        longer: dict[int, tuple[Loaded, Rows]] = {}
        stretch = 0.0
        for number, (key, rows) in enumerate(loads):
            loaded = self._find(key)
            if loaded is None:
                self._start_loading(key)
                continue
            if stretch > STRETCH_S:
                await asyncio.sleep(0)
                stretch = 0.0
            # Whom a thread has, only a thread may wait for.
            if loaded.seconds(len(rows)) > AT_ONCE_S or loaded.lock.locked():
                longer[number] = loaded, rows
            else:
                outcomes[number] = outcome = _run(loaded, rows)
                stretch += outcome.seconds
        if longer:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._quick, _run_all, list(longer.values()))
            for number, outcome in zip(longer, found, strict=True):
                outcomes[number] = outcome
        return outcomes

    async def prepare(self, key: ModelKey) -> Runtime:
        """Bring a model into memory, so that its next answer is no first one.

        Raises:
            ModelMissingError: When the package is no longer the one of the key.
            ModelError: When the model does not load, or fails.
            PackageError: When the package is damaged.
        """
        return (await self._get(key)).runtime

    async def _run_patiently(self, key: ModelKey, rows: Rows) -> Outcome:
        try:
            loaded = await self._get(key)
        except MlaasError as error:
            return Outcome(error)
        return await asyncio.get_running_loop().run_in_executor(self._patient, _run, loaded, rows)

    def _find(self, key: ModelKey) -> Loaded | None:
        loaded = self._models.get(key)
        if loaded is not None:
            self._models.move_to_end(key)
            loaded.used = time.monotonic()
        return loaded

    async def _get(self, key: ModelKey) -> Loaded:
        """Return a loaded model; callers that come while it loads wait for the same load."""
        loaded = self._find(key)
        if loaded is not None:
            return loaded
        # Shielded: a caller that goes away does not take the load from the others.
        return await asyncio.shield(self._start_loading(key))

    def _start_loading(self, key: ModelKey) -> asyncio.Task[Loaded]:
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._bring(key))
            task.add_done_callback(lambda done: self._arrived(key, done))
        return task

    async def _bring(self, key: ModelKey) -> Loaded:
        loaded = await asyncio.get_running_loop().run_in_executor(self._loader, self._open, key)
        self._models[key] = loaded
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(self._tidy())
        await self._make_room(key)
        return loaded

    def _arrived(self, key: ModelKey, task: asyncio.Task[Loaded]) -> None:
        # What failed is tried again when it is asked for again.
        self._loading.pop(key, None)
        if not task.cancelled() and task.exception() is not None:
            logger.warning("%s was not loaded: %s", key, task.exception())

    async def _make_room(self, newest: ModelKey) -> None:
        """Drop what was not used for longest; who still runs it keeps it until then."""
        dropped = []
        room = self._budget - self.bytes
        for key, loaded in self._models.items():
            if room >= 0:
                break
            if key != newest:
                dropped.append(key)
                room += loaded.bytes
        await self._drop(dropped, f"made room for {newest}")

    async def _tidy(self) -> None:
        """Drop what is no longer wanted, for as long as there are models."""
        while self._models:
            await asyncio.sleep(TIDY_S)
            try:
                unwanted = await LOOKUPS.run(self._unwanted, dict(self._models))
            except BusyError:  # of that, the next time
                continue
            await self._drop(unwanted, "left memory: deleted, or replaced and unused")

    def _unwanted(self, models: Mapping[ModelKey, Loaded]) -> list[ModelKey]:
        """Return which of these models are deleted or, unless they are used, replaced."""
        since = time.monotonic() - UNUSED_S
        found = []
        for key, loaded in models.items():
            with suppress(OSError):  # a repository that cannot be read now
                try:
                    there = loaded.package.identity == loaded.identity
                    if not (there and (loaded.used >= since or self._is_meant(key))):
                        found.append(key)
                except (FileNotFoundError, NotADirectoryError, MlaasError):
                    found.append(key)
        return found

    def _is_meant(self, key: ModelKey) -> bool:
        """Tell whether a name without a number may stand for a version."""
        kept = {self._repository.latest(key.name).version}
        return key.version in kept | set(self._repository.aliases(key.name).values())

    async def _drop(self, keys: Sequence[ModelKey], why: str) -> None:
        dropped = [str(key) for key in keys if self._models.pop(key, None) is not None]
        if dropped:
            logger.info("%s %s", ", ".join(dropped), why)
            await asyncio.get_running_loop().run_in_executor(self._loader, _give_back)

    def _open(self, key: ModelKey) -> Loaded:
        package = self._repository.get(key.name, key.version)
        if package.digest != key.digest:
            raise ModelMissingError(f"{key} was replaced meanwhile", "Ask again")
        identity = package.identity
        before = psutil.Process().memory_info().rss
        runtime = self._load(package, self._threads, timeout_s=self._load_timeout_s)
        grown = psutil.Process().memory_info().rss - before
        size = sum(record.bytes for record in package.manifest.files.values())
        return Loaded(package, runtime, max(grown, size), identity)


def _run_all(calls: Sequence[tuple[Loaded, Rows]]) -> list[Outcome]:
    return [_run(*call) for call in calls]


def _run(loaded: Loaded, rows: Rows) -> Outcome:
    start = time.perf_counter()
    try:
        answer = _in_parts(loaded, rows)
    except MlaasError as error:
        return Outcome(error, time.perf_counter() - start, by_rows=True)
    except Exception as error:  # one model's trouble is not that of the others of its call
        failure = ModelError(f"the model failed: {first_line(error)}", "Check the model with these rows")
        return Outcome(failure, time.perf_counter() - start, by_rows=True)
    return Outcome(answer, time.perf_counter() - start)


def _in_parts(loaded: Loaded, rows: Rows) -> Predictions:
    """Predict, and let others of the same model in between."""
    if len(rows) <= PART_ROWS:
        with loaded.lock:
            return predict(loaded.runtime, rows)
    answers = []
    for start in range(0, len(rows), PART_ROWS):
        with loaded.lock:
            answers.append(predict(loaded.runtime, rows[start : start + PART_ROWS]))
    return np.concatenate(answers)


def _step_back() -> None:
    """Let this thread, and it alone, have less of a CPU that others want too."""
    thread = threading.get_native_id()
    with suppress(OSError):
        # Ray may have started the whole process with less already
        os.setpriority(
            os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + PATIENT_NICENESS)
        )


def _give_back() -> None:
    """Return freed memory to the system: glibc keeps it otherwise, and memory grows with every reload."""
    import gc

    gc.collect()
    with suppress(OSError, AttributeError):
        trim: Any = ctypes.CDLL(None).malloc_trim
        trim(0)
