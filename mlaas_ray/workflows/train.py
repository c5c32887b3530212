"""train: a job to a model package; resume: an interrupted run; publish: a package to the repository."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray

from mlaas_ray.core.errors import ExportError, FileMissingError, FileUnreadableError, StorageError
from mlaas_ray.core.package import MANIFEST, ModelPackage, staging, write_package
from mlaas_ray.core.storage import writing
from mlaas_ray.core.task import Task
from mlaas_ray.repository import ModelVersion, Repository
from mlaas_ray.streaming import (
    Census,
    FirstPass,
    Record,
    cluster_events,
    first_pass,
    look_up,
    new_record,
    planned_events,
    take_census,
)
from mlaas_ray.streaming.cautions import Caution
from mlaas_ray.training import LAST, EpochReport, StepReport, TrainedModel, check_workers, fit
from mlaas_ray.workflows.cluster import connected, durable
from mlaas_ray.workflows.job import Job
from mlaas_ray.workflows.keeping import (
    begin,
    changes_of,
    code_of,
    first_weights,
    kept_features,
    kept_job,
    kept_task,
)
from mlaas_ray.workflows.learning import task_of, warnings_of, weighting_of
from mlaas_ray.workflows.lineage import lineage
from mlaas_ray.workflows.logs import logged
from mlaas_ray.workflows.resuming import anything_left
from mlaas_ray.workflows.run_folder import RunFolder, filesystem, scratch
from mlaas_ray.workflows.spectators import spectators
from mlaas_ray.workflows.sums import summed
from mlaas_ray.workflows.waiting import told_from, waits_told

RECORD = "record.json"
PACKAGE = "package"
TRAINING = "training"


@dataclass(frozen=True)
class Hooks:
    """What is told of a training while it goes on.

    Attributes:
        on_stage: Called with what begins and takes seconds: ``starting Ray``; with nothing when that ended.
        on_run: Called with the run's folder, once it is known.
        on_first_pass: Called with what the first pass found.
        on_census: Called with how many events of what there are.
        on_step: Called about every second.
        on_epoch: Called after each epoch.
        on_note: Called with lines about what is doubtful in the data, and what is waited for.
    """

    on_stage: Callable[[str], None] | None = None
    on_run: Callable[[RunFolder], None] | None = None
    on_first_pass: Callable[[FirstPass], None] | None = None
    on_census: Callable[[Census], None] | None = None
    on_step: Callable[[StepReport], None] | None = None
    on_epoch: Callable[[EpochReport], None] | None = None
    on_note: Callable[[str], None] | None = None


def train(
    job: Job,
    *,
    address: str | None = None,
    progress: bool | None = None,
    hooks: Hooks | None = None,
    first: ModelPackage | None = None,
) -> ModelPackage:
    """Train what a job describes.

    Args:
        job: The job.
        address: Ray cluster; see :func:`~mlaas_ray.workflows.cluster.connected`.
        progress: Whether the first pass shows a bar; None for only on a terminal.
        hooks: What to call meanwhile.
        first: A package whose weights to begin with; its columns and task are taken too.

    Returns:
        The package, in a folder of its own below ``job.storage``. Its metrics hold ``validation`` (``auc``,
        ``loss``, ``accuracy``, …), ``training``, ``history``, ``events`` (seen in all epochs), ``seconds``
        (of training), ``events_per_s``, ``time``, ``importance``, ``export_difference`` and ``warnings``.

    Raises:
        JobError: When the job contradicts itself.
        DataError: Naming the file, tree and branch that cannot be used.
        ModelError: When the model cannot be built, trained or exported.
    """
    name = f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    run = RunFolder(RunFolder(job.storage).place(name))
    return _run(job, run, address, progress, hooks or Hooks(), first)


def resume(
    run: str | Path,
    *,
    address: str | None = None,
    progress: bool | None = None,
    hooks: Hooks | None = None,
    changes: Sequence[str] = (),
) -> tuple[Job, ModelPackage]:
    """Go on with a run from its last checkpoint: one that was interrupted, or one that is to learn longer.

    Args:
        run: Its folder or URL.
        address: Ray cluster.
        progress: Whether the first pass shows a bar.
        hooks: What to call meanwhile.
        changes: What to change of the run's job, as in ``train.workers=3``.

    Returns:
        The run's job, and its package; the one that is there when nothing is left to train.

    Raises:
        JobError: When there is no such run, its files have changed, or a change could not take effect.
        MlaasError: As of :func:`train`.
    """
    folder = RunFolder(run)
    changing = changes_of(folder, changes)
    job = kept_job(folder, changes)
    package = ModelPackage(folder.fetch(PACKAGE)) if folder.exists(f"{PACKAGE}/{MANIFEST}") else None
    if not anything_left(job, folder, changing, TRAINING, package) and package is not None:
        _tell((hooks or Hooks()).on_run, folder)
        return job, package
    return job, _run(job, folder, address, progress, hooks or Hooks(), None)


def _run(
    job: Job,
    run: RunFolder,
    address: str | None,
    progress: bool | None,
    hooks: Hooks,
    first: ModelPackage | None,
) -> ModelPackage:
    """Train in a run's folder, from its last checkpoint if there is one."""
    run.check()
    # a name that matches nothing is told before a cluster is started
    _tell(hooks.on_stage, "looking for the files")
    samples = look_up(job.samples({}), job.reading)
    with connected(address), waits_told(hooks.on_note):
        _tell(hooks.on_stage, "")
        mode = reading_mode(job.reading.mode, job.train.gpus_per_worker > 0)
        check_workers(job.train, for_reading=mode == "cluster")
        samples = summed(job, samples)
        found = first_pass(
            samples,
            job.wanted,
            reading=job.reading,
            key=job.split.key,
            features=kept_features(run, first),
            progress=progress,
        )
        beside = spectators(job, found, progress)
        _tell(hooks.on_first_pass, found)
        classes = 0 if job.kind == "regression" else job.class_count
        census = take_census(found, reading=job.reading, classes=classes, progress=progress)
        _tell(hooks.on_census, census)
        warnings = warnings_of(job, found, census)
        for warning in warnings:
            _tell(hooks.on_note, str(warning))
        task = kept_task(run, first) or task_of(job, census)
        begin(job, run, found, census, task, first)
        _tell(hooks.on_run, run)
        _tell(hooks.on_stage, "starting the workers")
        with _going_on(run), recorded(found, job, run, hooks.on_note) as record, logged(run) as logs:

            def on_epoch(report: EpochReport) -> None:
                logs.add(report)
                _tell(hooks.on_epoch, report)

            try:
                trained = _trained(job, found, census, task, record, run, hooks, on_epoch)
            except ExportError as error:
                again = f"mlaas train --resume {run} then exports it without training anew"
                raise ExportError(error.message, f"{error.remedy}, in {code_of(job, run)}; {again}") from None
            except (FileUnreadableError, FileMissingError) as error:
                again = f"then go on: mlaas train --resume {run}"
                raise type(error)(error.message, f"{error.remedy}, {again}") from error
            logs.complete(trained.metrics["history"])
        _tell(hooks.on_stage, "drawing the report and packaging the model")
        with _going_on(run):
            return _packaged(job, run, found, beside, census, task, trained, warnings)


def _trained(
    job: Job,
    found: FirstPass,
    census: Census,
    task: Task,
    record: Record,
    run: RunFolder,
    hooks: Hooks,
    on_epoch: Callable[[EpochReport], None],
) -> TrainedModel:
    """Train on what the first pass found, in the mode that suits where the workers are."""
    learn, judge = job.split.parts
    options: dict[str, Any] = {
        "seed": job.seed,
        "reading": job.reading,
        "record": record,
        "shares": job.shares,
        "classes": task.classes,
    }
    mode = reading_mode(job.reading.mode, job.train.gpus_per_worker > 0)
    read = planned_events if mode == "workers" else cluster_events
    path, files = filesystem(run.url)
    return fit(
        read(found, part=learn, shuffle=True, name="train", **options),
        read(found, part=judge, name="validation", **options),
        found.features,
        name=TRAINING,
        task=task,
        model=job.model.name,
        options=job.model.options,
        framework=job.framework,
        settings=job.train,
        weighting=weighting_of(job, census),
        expected=round(census.total.events * (learn[1] - learn[0])),
        seed=job.seed,
        storage=path,
        filesystem=files,
        resume=True,
        first_weights=first_weights(run),
        on_epoch=on_epoch,
        on_step=hooks.on_step,
    )


def _packaged(
    job: Job,
    run: RunFolder,
    found: FirstPass,
    beside: FirstPass | None,
    census: Census,
    task: Task,
    trained: TrainedModel,
    warnings: Sequence[Caution],
) -> ModelPackage:
    """Write the package, and the report of what came of the training."""
    from mlaas_ray.workflows.report import write_report

    home = Path(run.url) if run.is_local else scratch()
    # beside what the run has already, when it was finished before and went on
    made = home / f".{PACKAGE}-{secrets.token_hex(4)}"
    with staging(made) as folder:
        # what the training layer exported: the model file(s), the answers, the state of the best epoch
        shutil.copytree(trained.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LAST))
        metrics = {
            **trained.metrics,
            "events": trained.events,
            "seconds": trained.seconds,
            "events_per_s": trained.events_per_s,
            "warnings": [warning.document() for warning in warnings],
        }
        page = write_report(home / "report", folder, job, found.features, census, task, metrics, beside)
        shutil.copyfile(page, folder / page.name)
        write_package(
            folder,
            name=job.name,
            framework=job.framework,
            model_format=trained.model_format,
            signature=trained.signature,
            task=task,
            features=found.features,
            labels=list(task.names) if task.classes else [],
            metrics=metrics,
            lineage=lineage(job, found),
        )
    shutil.rmtree(home / PACKAGE, ignore_errors=True)
    made.rename(home / PACKAGE)
    if not run.is_local:
        run.put(home / "report", "report")
        run.put(home / PACKAGE, PACKAGE, last=MANIFEST)
    return ModelPackage(home / PACKAGE)


@contextmanager
def _going_on(run: RunFolder) -> Iterator[None]:
    """Say of what cannot be written in a block how to go on when it can."""
    try:
        with writing(run.url):
            yield
    except StorageError as error:
        raise StorageError(
            error.message, f"{error.remedy}, then go on: mlaas train --resume {run}"
        ) from error


def _tell(hook: Callable[[Any], None] | None, what: Any) -> None:
    if hook is not None:
        hook(what)


@contextmanager
def recorded(
    found: FirstPass, job: Job, run: RunFolder, tell: Callable[[str], None] | None
) -> Iterator[Record]:
    """Keep the record of what a block reads, and write it when the block ends, however it ends.

    Meanwhile tell, in a thread, of servers that readers wait for.
    """
    record = new_record(found, job.reading)
    told: list[str] = []

    def look() -> list[str]:
        lines = record.lines(len(told))
        told.extend(lines)
        return lines

    try:
        with told_from(look, tell):
            yield record
    finally:
        run.write(RECORD, json.dumps(record.document(), indent=1))


def reading_mode(wish: Literal["auto", "workers", "cluster"], on_gpus: bool) -> Literal["workers", "cluster"]:
    """Choose where files are read: by the workers themselves, or on other nodes' CPUs.

    Args:
        wish: ``auto`` chooses.
        on_gpus: Whether the workers train on GPUs.

    Returns:
        ``cluster`` when workers on GPUs would wait for their own few CPUs while nodes without GPUs stand by,
        else ``workers``, which moves no event between processes.
    """
    if wish != "auto":
        return wish
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cpus_elsewhere = any(node.get("CPU") and not node.get("GPU") for node in nodes)
    return "cluster" if on_gpus and cpus_elsewhere else "workers"


def publish(
    job: Job, package: ModelPackage, repository: str | os.PathLike[str] | None = None
) -> ModelVersion:
    """Put a package into the repository, under the aliases that the job wants.

    Args:
        job: Its ``publish`` section may name the model and the repository.
        package: What :func:`train` returned.
        repository: Folder to use where the job names none; None for ``MLAAS_REPOSITORY`` or ``./models``.

    Returns:
        Name and version; those it has already, when it was published before.
    """
    wish = job.publish
    models = Repository(repository_of(job, repository))
    name = (wish and wish.name) or package.name
    # a run that is gone on with after its end, or a command given twice, makes no second version
    with writing(models.root):
        version = models.holding(package, name) or models.publish(package, name)
        for alias in wish.aliases if wish else ():
            models.set_alias(version.name, alias, version.version)
    return version


def repository_of(job: Job, repository: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of the repository that a job publishes to; arguments as of :func:`publish`."""
    wish = job.publish
    folder = (wish and wish.repository) or repository or os.environ.get("MLAAS_REPOSITORY") or "models"
    return durable(folder)
