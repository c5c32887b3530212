"""train: a job to a model package; publish: the package to the repository."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import ray

from mlaas_ray.core.errors import JobError
from mlaas_ray.core.location import locate
from mlaas_ray.core.package import ModelPackage, staging, write_package
from mlaas_ray.repository import ModelVersion, Repository
from mlaas_ray.streaming import FirstPass, Record, first_pass, new_record, plan_reader, read_events
from mlaas_ray.training import EpochReport, TrainedModel, fit
from mlaas_ray.workflows.cluster import connected, durable
from mlaas_ray.workflows.job import Job
from mlaas_ray.workflows.lineage import lineage


def train(
    job: Job,
    *,
    address: str | None = None,
    progress: bool | None = None,
    on_first_pass: Callable[[FirstPass], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> ModelPackage:
    """Train what a job describes.

    Args:
        job: The job.
        address: Ray cluster; see :func:`~mlaas_ray.workflows.cluster.connected`.
        progress: Whether the first pass shows a bar; None for only on a terminal.
        on_first_pass: Called with what the first pass found.
        on_epoch: Called after each epoch.

    Returns:
        The package, in a folder of its own below ``job.storage``. Its metrics hold ``validation`` (``auc``,
        ``loss``, ``accuracy``), ``training``, ``history``, ``events`` (seen in all epochs), ``seconds`` (of
        training) and ``events_per_s``.

    Raises:
        JobError: When the job contradicts itself.
        DataError: Naming the file, tree and branch that cannot be used.
        ModelError: When the model cannot be built, trained or exported.
    """
    job.check_labels()
    storage = _storage(job)
    run = storage / f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    # a name that matches nothing is told before a cluster is started
    samples = [sample.found(job.reading.redirectors) for sample in job.samples]
    with connected(address):
        found = first_pass(samples, job.wanted, reading=job.reading, key=job.split.key, progress=progress)
        if on_first_pass:
            on_first_pass(found)
        with recorded(found, job, run / "record.json") as record:
            trained = _trained(job, found, record, run, on_epoch)
    with staging(run / "package") as folder:
        # what the training layer exported: the model file(s) and the sample
        shutil.copytree(trained.folder, folder, dirs_exist_ok=True)
        write_package(
            folder,
            name=job.name,
            framework=job.framework,
            model_format=trained.model_format,
            signature=trained.signature,
            task="binary",
            features=found.features,
            labels=job.classes,
            metrics={
                **trained.metrics,
                "events": trained.events,
                "seconds": trained.seconds,
                "events_per_s": trained.events_per_s,
            },
            lineage=lineage(job, found),
        )
    return ModelPackage(run / "package")


def _trained(
    job: Job,
    found: FirstPass,
    record: Record,
    run: Path,
    on_epoch: Callable[[EpochReport], None] | None,
) -> TrainedModel:
    """Train on what the first pass found, in the mode that suits where the workers are."""
    mode = reading_mode(job.reading.mode, job.train.gpus_per_worker > 0)
    learn, judge = job.split.parts
    common: dict[str, Any] = {"seed": job.seed, "reading": job.reading, "record": record}
    options = {**common, "shares": job.shares, "mode": mode}
    return fit(
        read_events(found, part=learn, shuffle=True, name="train", **options),
        read_events(found, part=judge, name="validation", **options),
        found.features,
        name=job.name,
        model=job.model,
        framework=job.framework,
        settings=job.train,
        seed=job.seed,
        reader=plan_reader(found, **common) if mode == "plan" else None,
        storage=run,
        on_epoch=on_epoch,
    )


@contextmanager
def recorded(found: FirstPass, job: Job, path: Path) -> Iterator[Record]:
    """Keep the record of what a block reads, and write it when the block ends, however it ends."""
    record = new_record(found, job.reading)
    try:
        yield record
    finally:
        record.write(path)


def reading_mode(wish: Literal["auto", "block", "plan"], on_gpus: bool) -> Literal["block", "plan"]:
    """Choose where files are read: by the workers themselves, or on other nodes' CPUs.

    Args:
        wish: ``auto`` chooses.
        on_gpus: Whether the workers train on GPUs.

    Returns:
        ``block`` when workers on GPUs would wait for their own few CPUs while nodes without GPUs stand by,
        else ``plan``, which moves no event between processes.
    """
    if wish != "auto":
        return wish
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cpus_elsewhere = any(node.get("CPU") and not node.get("GPU") for node in nodes)
    return "block" if on_gpus and cpus_elsewhere else "plan"


def publish(
    job: Job, package: ModelPackage, repository: str | os.PathLike[str] | None = None
) -> ModelVersion:
    """Put a package into the repository.

    Args:
        job: Its ``publish`` section may name the model and the repository.
        package: What :func:`train` returned.
        repository: Folder to use where the job names none; None for ``MLAAS_REPOSITORY`` or ``./models``.

    Returns:
        Name and version.
    """
    wish = job.publish
    folder = (wish and wish.repository) or repository or os.environ.get("MLAAS_REPOSITORY") or "models"
    return Repository(durable(folder)).publish(package, wish.name if wish else None)


def _storage(job: Job) -> Path:
    location = locate(job.storage)
    if not location.is_local:
        raise JobError(
            f"storage {job.storage!r} is no folder", "Give a folder that all nodes of the cluster see"
        )
    return durable(location.path)
