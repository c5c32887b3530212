"""fit: two Datasets in, a trained model on storage out."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
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
    UserCallback,
)

from mlaas_ray.core import FeatureSpec, MlaasError
from mlaas_ray.core.errors import ModelError
from mlaas_ray.training.check import WORKER_ENVIRONMENT, check_model
from mlaas_ray.training.framework import signature
from mlaas_ray.training.frameworks import load_framework
from mlaas_ray.training.loop import Run, train_worker
from mlaas_ray.training.progress import epoch_callbacks
from mlaas_ray.training.settings import EpochReport, TrainedModel, TrainSettings
from mlaas_ray.training.shards import TableReader, WholeShards
from mlaas_ray.training.source import ModelSource, one_line

# Seconds between the controller's looks at its workers. A report waits for the next look, and at Ray's own
# two seconds an epoch of a small dataset would be mostly waiting.
_POLL = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def fit(
    train: Dataset,
    validation: Dataset,
    features: FeatureSpec,
    *,
    name: str,
    model: str = "mlp",
    framework: str = "torch",
    settings: TrainSettings | None = None,
    seed: int = 0,
    reader: TableReader | None = None,
    storage: str | Path,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> TrainedModel:
    """Train a network on a stream of events and export it.

    Both datasets have the columns ``x`` (Arrow fixed-shape tensor of float32, ``(features,)``, NaN where
    there is no value), ``y`` (0 or 1) and ``weight`` (float32), and the identifiers ``dataset``, ``file``
    (int32) and ``entry`` (int64). Their blocks may hold one class only; the workers mix.

    Args:
        train: Events to train on.
        validation: Events to measure on, after each epoch.
        features: What the columns of ``x`` mean, and how they are normalised.
        name: Of the run; a unique ending is added.
        model: ``mlp``, a file with a function ``model(input_dim)``, or ``package.module:function``. The
            network takes normalised values ``(events, features)``, 0 where there is none, and answers
            with the probability of class 1, ``(events, 1)``.
        framework: ``torch`` or ``keras``.
        settings: How to train.
        seed: Of initial weights, shuffling and dropout.
        reader: When the datasets hold not the events, but where to read them: makes such tables of their
            blocks, in the workers.
        storage: Folder or URL where checkpoints and the model go; all nodes must reach it.
        on_epoch: Called after each epoch, in this process, from a thread of its own.

    Returns:
        The model, its metrics, and what training took.

    Raises:
        JobError: For a framework that is none.
        ModelError: When the model cannot be built, trained or exported.
        MlaasError: What reading the datasets raised.
    """
    settings = settings or TrainSettings()
    chosen = load_framework(framework)
    check_model(model, framework, features)
    run = Run(ModelSource.locate(model), framework, features, settings, seed, reader)
    where = str(storage) if "://" in str(storage) else str(Path(storage).expanduser().absolute())
    from ray.train.torch import TorchConfig, TorchTrainer  # imports PyTorch

    with epoch_callbacks(on_epoch, settings.epochs) as callbacks, _quick_reports(), _own_interrupt():
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"run": run},
            torch_config=TorchConfig(
                backend=chosen.collective_on_gpu if settings.gpus_per_worker else "gloo"
            ),
            scaling_config=_scaling(settings),
            datasets={"train": train, "validation": validation},
            dataset_config=WholeShards(),
            run_config=_run_config(name, where, settings, callbacks),
        )
        try:
            result = trainer.fit()
        except (TrainingFailedError, ray.exceptions.RayError) as error:
            raise unwrap(error) from error
    return _trained(result, chosen.model_format, features)


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
    return ModelError(
        f"training failed with {_reason(seen)}", "See the workers' logs in Ray's session folder"
    )


def _reason(errors: list[BaseException]) -> str:
    """Say on one line what errors, each the cause of one before, come from."""
    for error in errors:
        # Ray Data drops what a function over the data raised, and keeps its traceback as text.
        before, found, _ = str(error).partition("\n\nThe above exception was the direct cause")
        if found and isinstance(error, ray.exceptions.UserCodeException):
            return before.splitlines()[-1].rstrip(".")
    return one_line(errors[-1])


def _trained(result: Result, model_format: str, features: FeatureSpec) -> TrainedModel:
    outcome = (result.metrics or {}).get("result")
    if not outcome or result.checkpoint is None:
        raise ModelError("training ended without a model", "See the workers' logs in Ray's session folder")
    metrics = {key: outcome[key] for key in ("validation", "training", "history", "export_difference")}
    return TrainedModel(
        folder=_local(result.checkpoint),
        model_format=model_format,  # type: ignore[arg-type]
        signature=signature(features.width),
        metrics=metrics,
        events=outcome["events"],
        seconds=outcome["seconds"],
    )


def _local(checkpoint: Checkpoint) -> Path:
    """Return the checkpoint's folder, fetched to this machine when it lies elsewhere."""
    if isinstance(checkpoint.filesystem, pyarrow.fs.LocalFileSystem):
        return Path(checkpoint.path)
    return Path(checkpoint.to_directory())


def _run_config(name: str, where: str, settings: TrainSettings, callbacks: list[UserCallback]) -> RunConfig:
    # Ray's annotations are still those of Train V1.
    options: dict[str, Any] = {
        "callbacks": callbacks,
        "worker_runtime_env": {"env_vars": WORKER_ENVIRONMENT},
        "logging_config": LoggingConfig(log_level="CRITICAL"),
    }
    return RunConfig(
        name=f"{name}-{uuid.uuid4().hex[:8]}",
        storage_path=where,
        checkpoint_config=CheckpointConfig(num_to_keep=2),
        failure_config=FailureConfig(max_failures=settings.max_failures),
        **options,
    )


def _scaling(settings: TrainSettings) -> ScalingConfig:
    cpus = settings.cpus_per_worker or cpu_share(_cluster_cpus(), settings.workers)
    resources = {"CPU": cpus}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    return ScalingConfig(
        num_workers=settings.workers,
        use_gpu=settings.gpus_per_worker > 0,
        resources_per_worker=resources,
    )


def _cluster_cpus() -> float:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get("CPU", 1.0)


def cpu_share(cpus: float, workers: int) -> float:
    """Return the CPUs one worker reserves: one, or less where no whole CPU would be left to read files.

    Reading tasks take a whole CPU each, and a worker waits for them: on two CPUs, two workers that
    reserve one each would wait for ever.

    Args:
        cpus: CPUs of the cluster.
        workers: Workers to place.
    """
    if workers <= cpus - 1:
        return 1.0
    left = cpus - 1 if cpus > 1 else cpus / 2
    return int(left / workers * 100) / 100 or 0.01


@contextlib.contextmanager
def _quick_reports() -> Iterator[None]:
    """Let Ray Train's controller look at its workers more often, unless the user has said how often."""
    name, value = _POLL
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


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
