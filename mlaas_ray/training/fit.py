"""fit: events in, a trained model on storage out."""

from __future__ import annotations

import contextlib
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
from ray.data import Dataset
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)

from mlaas_ray.core import FeatureSpec, MlaasError
from mlaas_ray.core.cluster import environment, see_logs
from mlaas_ray.core.errors import ExportError, JobError, ModelError
from mlaas_ray.core.task import Task
from mlaas_ray.training.check import check_model, worker_environment
from mlaas_ray.training.events import DatasetSource, EventSource, Shards, StoredEvents
from mlaas_ray.training.framework import Framework, signature
from mlaas_ray.training.frameworks import find_framework, find_model, load_framework
from mlaas_ray.training.loop import Run, train_worker
from mlaas_ray.training.progress import delivered
from mlaas_ray.training.settings import EpochReport, StepReport, TrainedModel, TrainSettings, Weighting
from mlaas_ray.training.shards import WholeShards
from mlaas_ray.training.source import one_line
from mlaas_ray.training.trainer import Trainer

# Seconds between the looks of Ray Train's controller at its workers. A report waits for the next look, and at
# Ray's own two seconds an epoch of a small dataset would be mostly waiting.
_POLL = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
# A process that waits for a cloud to announce that it takes a node away: nobody takes away one's own machine.
_NO_WATCH = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
# A network for tables gains nothing from more threads.
_MOST_CPUS = 8


def fit(
    train: EventSource | DatasetSource | Dataset,
    validation: EventSource | DatasetSource | Dataset,
    features: FeatureSpec,
    *,
    name: str,
    task: Task | None = None,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    framework: str = "torch",
    settings: TrainSettings | None = None,
    weighting: Weighting | None = None,
    expected: int = 0,
    seed: int = 0,
    storage: str | Path,
    filesystem: pyarrow.fs.FileSystem | None = None,
    resume: bool = False,
    first_weights: Mapping[str, bytes] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> TrainedModel:
    """Train a model on a stream of events and export it.

    Args:
        train: Events to learn from: a source, which each worker asks for blocks; or what Ray Data reads, a
            Ray Dataset of one's own with the columns of a source among them: each epoch is a run of it, and
            workers take its blocks as they come. Trees, and for a dataset of one's own
            ``checkpoint.every_steps``, need the same blocks again: then it is run once, and kept in the
            object store. Blocks may hold one class only: workers mix.
        validation: Events to judge by, after each epoch.
        features: What the columns of ``x`` mean, and how they are normalised.
        name: Of the run, a folder below ``storage``; unless ``resume``, a unique ending is added.
        task: What the model is to answer; None for the probability of a signal.
        model: One of the framework's (``mlp``, ``masked_linear``, ``deepsets``, ``cnn``), a file with a
            function ``model(input_dim)``, or ``package.module:function``; None for the framework's usual one.
            A network takes normalised values ``(events, features)``, 0 where there is none, and, if it takes
            two arguments, the mask.
        options: What else it is built with.
        framework: ``torch``, ``keras``, ``xgboost``, or a file or function of one's own.
        settings: How to train.
        weighting: How weights count.
        expected: Training events of an epoch, about; 0 for not known.
        seed: Of initial weights, order and dropout.
        storage: Folder or URL where checkpoints and the model go; all nodes must reach it.
        filesystem: Of ``storage``, when that is a path of another than this machine's.
        resume: Whether to go on with a run of this name from its last checkpoint, if there is one.
        first_weights: Files of a trained model's ``state`` to begin with.
        on_epoch: Called after each epoch, in this process, from a thread of its own.
        on_step: Called about every second, likewise.

    Returns:
        The model, its metrics, and what training took.

    Raises:
        JobError: For a framework that is none, or cannot do the task.
        ModelError: When the model cannot be built, trained or exported.
        ExportError: When the trained network cannot be exported, although the trial's could; it is kept.
        MlaasError: What reading the events raised.
    """
    source = find_framework(framework)
    chosen = load_framework(source)
    task, settings = task or Task(), (settings or TrainSettings()).filled(chosen.defaults, expected)
    check_model(model, framework, features, task=task, options=options, settings=settings)
    where = str(storage)
    if filesystem is None and "://" not in where:
        where = str(Path(where).expanduser().absolute())
    own_ray = _on_own_ray()
    controlled = {**_POLL, **(_NO_WATCH if own_ray else {})}  # where the user has not said so
    with delivered(on_epoch, on_step) as mailbox, environment(controlled), _own_interrupt():
        least, _ = settings.worker_range
        given = {"train": train, "validation": validation}
        sources, datasets = _handed_on(given, settings, getattr(chosen, "by_steps", True))
        check_workers(settings, for_reading=bool(datasets))
        if settings.cpus_per_worker is None:
            share = cpu_share(_nodes(), least, for_reading=bool(datasets))
            settings = settings.model_copy(update={"cpus_per_worker": share})
        run = Run(
            framework=source,
            model=find_model(model, chosen),
            options=dict(options or {}),
            features=features,
            task=task,
            settings=settings,
            weighting=weighting or Weighting((1.0,)),
            seed=seed,
            **sources,
            expected=expected,
            first_weights=first_weights or {},
            mailbox=mailbox,
            storage=where,
        )
        trainer = Trainer(
            train_worker,
            own_ray=own_ray,
            train_loop_config={"run": run},
            scaling_config=_scaling(settings),
            datasets=datasets,
            dataset_config=WholeShards(),
            run_config=_run_config(
                name if resume else f"{name}-{uuid.uuid4().hex[:8]}", where, settings, filesystem
            ),
        )
        try:
            result = trainer.fit()
        except (TrainingFailedError, ray.exceptions.RayError) as error:
            raise unwrap(error) from error
    return _trained(result, chosen, features, task)


def _handed_on(
    given: Mapping[str, EventSource | DatasetSource | Dataset], settings: TrainSettings, by_steps: bool
) -> tuple[dict[str, EventSource | Shards], dict[str, Dataset]]:
    """Return what workers are told of where their events come from, and the datasets that they share in."""
    sources: dict[str, EventSource | Shards] = {}
    datasets: dict[str, Dataset] = {}
    for name, events in given.items():
        if isinstance(events, Dataset):
            dataset, begin = events, None
        elif isinstance(events, DatasetSource):
            dataset, begin = events.dataset, events.begin
        else:
            sources[name] = events
            continue
        if by_steps and (begin is not None or not settings.checkpoint.every_steps):
            datasets[name], sources[name] = dataset, Shards(name, begin)
        else:
            sources[name] = StoredEvents(dataset, settings.worker_range[1])
    return sources, datasets


def unwrap(error: BaseException) -> MlaasError:
    """Find in what Ray Train raised the error that began it, in a form to show.

    Returns:
        The first MlaasError in it, or a ModelError that names the cause on one line.
    """
    waiting, seen = [error], []
    while waiting:
        current = waiting.pop(0)
        # Ray's own copies of our errors carry a traceback in their message; the original lies in `cause`.
        if isinstance(current, MlaasError) and not isinstance(current, ray.exceptions.RayTaskError):
            return current
        seen.append(current)
        causes = [
            *getattr(current, "worker_failures", {}).values(),
            getattr(current, "controller_failure", None),
            getattr(current, "_base_exc", None),
            getattr(current, "cause", None),
            current.__cause__,
        ]
        waiting += [
            cause
            for cause in causes
            if isinstance(cause, BaseException) and not any(cause is known for known in seen)
        ]
    return ModelError(f"training failed with {_reason(seen)}", see_logs())


def _reason(errors: list[BaseException]) -> str:
    """Say on one line what errors, each the cause of one before, come from."""
    for error in errors:
        # Ray Data drops what a function over the data raised, and keeps its traceback as text.
        before, found, _ = str(error).partition("\n\nThe above exception was the direct cause")
        if found and isinstance(error, ray.exceptions.UserCodeException):
            return before.splitlines()[-1].rstrip(".")
    return one_line(errors[-1])


def _trained(result: Result, framework: Framework, features: FeatureSpec, task: Task) -> TrainedModel:
    reported = result.metrics or {}
    if "unexported" in reported and result.checkpoint is not None:
        message, remedy, kept = reported["unexported"]
        raise ExportError(
            f"{message}; the trained network is kept in {result.checkpoint.path}/{kept}", remedy
        )
    outcome = reported.get("result")
    if not outcome or result.checkpoint is None:
        raise ModelError("training ended without a model", see_logs())
    metrics = {key: value for key, value in outcome.items() if key not in ("events", "seconds")}
    return TrainedModel(
        folder=_local(result.checkpoint),
        model_format=framework.model_format,
        signature=signature(features.width, task),
        metrics={**metrics, "time": outcome["seconds"]},
        events=outcome["events"],
        seconds=outcome["seconds"]["training"],
    )


def _local(checkpoint: Checkpoint) -> Path:
    """Return the checkpoint's folder, fetched to this machine when it lies elsewhere."""
    if isinstance(checkpoint.filesystem, pyarrow.fs.LocalFileSystem):
        return Path(checkpoint.path)
    return Path(checkpoint.to_directory())


def _run_config(
    name: str, where: str, settings: TrainSettings, filesystem: pyarrow.fs.FileSystem | None
) -> RunConfig:
    # Ray's annotations are still those of Train V1.
    options: dict[str, Any] = {
        "worker_runtime_env": {"env_vars": worker_environment(settings.gpus_per_worker)},
        "logging_config": LoggingConfig(log_level="CRITICAL"),
    }
    return RunConfig(
        name=name,
        storage_path=where,
        storage_filesystem=filesystem,
        checkpoint_config=CheckpointConfig(num_to_keep=settings.checkpoint.keep),
        failure_config=FailureConfig(max_failures=settings.max_failures),
        **options,
    )


def _scaling(settings: TrainSettings) -> ScalingConfig:
    least, most = settings.worker_range
    resources = {"CPU": settings.cpus_per_worker or 1.0}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    workers: Any = most if least == most else (least, most)  # whose range Ray's annotation does not know
    return ScalingConfig(
        num_workers=workers,
        use_gpu=settings.gpus_per_worker > 0,
        resources_per_worker=resources,
    )


def check_workers(settings: TrainSettings, *, for_reading: bool = False) -> None:
    """Refuse workers for which there will never be room: Ray would wait for it without a word, and end.

    Only of a Ray that this process started itself is it known that no node will join.

    Args:
        settings: How many workers, and of what.
        for_reading: Whether tasks read for the workers, each of which takes a CPU.

    Raises:
        JobError: Saying what there is room for.
    """
    if not _on_own_ray():
        return
    least, _ = settings.worker_range
    wanted = {"CPU": settings.cpus_per_worker or 0.0, "GPU": settings.gpus_per_worker}
    wanted = {kind: count for kind, count in wanted.items() if count}
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    totals = [node["Resources"] for node in nodes if node["Alive"]]
    sums = {kind: sum(total.get(kind, 0.0) for total in totals) for kind in ("CPU", "GPU")}
    room = sum(
        min((int(total.get(kind, 0.0) / count + 1e-6) for kind, count in wanted.items()), default=least)
        for total in totals
    )
    each = " and ".join(f"{count:g} {kind}{'' if count == 1 else 's'}" for kind, count in wanted.items())
    there = " and ".join(f"{count:g} {kind}{'' if count == 1 else 's'}" for kind, count in sums.items())
    if room < least:
        raise JobError(
            f"there is room for {room} of {least} workers of {each} each: this machine's Ray has {there}",
            "Lower train.workers, or the CPUs or GPUs of each, or name a cluster: --address",
        )
    if for_reading and wanted.get("CPU") and sums["CPU"] - least * wanted["CPU"] < 1:
        raise JobError(
            f"{least} workers of {each} each leave no CPU for the tasks that read: "
            f"this machine's Ray has {there}",
            "Lower train.cpus_per_worker, or say reading.mode: workers",
        )


def _on_own_ray() -> bool:
    """Return whether this process has started the Ray that it is connected to."""
    started: Any = ray._private.worker._global_node
    return started is not None and bool(started.is_head())


def _nodes() -> list[float]:
    """Return the CPUs of each node that has some."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    cpus = [node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"]]
    return [count for count in cpus if count] or [1.0]


def cpu_share(nodes: Sequence[float], workers: int, *, for_reading: bool) -> float:
    """Return the CPUs one worker reserves, and computes with: its part of the smallest node, at most 8.

    Args:
        nodes: CPUs of each node.
        workers: Workers to place.
        for_reading: Whether tasks read for the workers. Each takes a whole CPU, and a worker waits for it: on
            two CPUs, two workers that reserve one each would wait for ever.
    """
    on_a_node = -(-workers // len(nodes))
    cpus = min(nodes)
    if for_reading:
        cpus = cpus - 1 if cpus > 1 else cpus / 2
    share = cpus / on_a_node
    return float(min(_MOST_CPUS, int(share))) if share >= 1 else int(share * 100) / 100 or 0.01


@contextlib.contextmanager
def _own_interrupt() -> Iterator[None]:
    """Put back the caller's handler of Ctrl-C, which Ray Train replaces for good and answers with exit(0)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)
