"""Check a model before anything is started for it: it loads, learns, answers as it should, is exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from mlaas_ray.core import FeatureSpec, MlaasError
from mlaas_ray.core.errors import JobError, ModelError, nearest
from mlaas_ray.core.task import Task
from mlaas_ray.training.framework import Setup
from mlaas_ray.training.frameworks import find_framework, find_model, load_framework
from mlaas_ray.training.group import Group
from mlaas_ray.training.metrics import scores_of
from mlaas_ray.training.settings import TrainSettings
from mlaas_ray.training.source import Source, one_line
from mlaas_ray.training.trial import attempt


def worker_environment(gpus: float = 0.0) -> dict[str, str]:
    """Return the environment of a process that trains, or tries a model, on so many GPUs.

    PyTorch's threads spin while they wait for each other, for milliseconds, on CPUs that reading needs: with
    two of them on two busy CPUs a small network was a hundred times slower than with one. Microseconds
    suffice. Ray hides no GPUs from who reserved none, and TensorFlow takes all it sees, with their memory.
    """
    on_gpu = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"} if gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return {
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "GOMP_SPINCOUNT": "1000",
        **on_gpu,
    }


def check_model(
    model: str | None,
    framework: str,
    features: FeatureSpec,
    *,
    task: Task | None = None,
    options: Mapping[str, Any] | None = None,
    settings: TrainSettings | None = None,
) -> None:
    """Build a model, let it learn from a few made-up events, and export it, in a process of its own.

    Args:
        model: One of the framework's, a file with a function ``model(input_dim)``, or
            ``package.module:function``; None for the framework's usual one.
        framework: ``torch``, ``keras``, ``xgboost``, or a file or function of one's own.
        features: The columns the model will be given.
        task: What it is to answer; None for the probability of a signal.
        options: What else the model is built with.
        settings: How it will be trained.

    Raises:
        JobError: For a framework that is none, or cannot do the task, and for early stopping by a measure of
            another task.
        ModelError: When the model cannot be found, built, trained on such events or exported, or does not
            answer as the task wants.
    """
    source = find_framework(framework)
    chosen = load_framework(source)
    task, settings = task or Task(), settings or TrainSettings()
    if task.kind not in chosen.tasks:
        raise JobError(
            f"the framework {chosen.name!r} cannot do {task.kind}", nearest(task.kind, chosen.tasks)
        )
    _check_monitor(task, settings)
    if settings.average and "average" not in chosen.defaults:
        raise JobError(f"train.average: {chosen.name} does not average weights", "Leave it out")
    code = find_model(model, chosen)
    setup = Setup(code, dict(options or {}), features, task, settings.filled(chosen.defaults), Group())
    own = code.builtin and source.builtin and code.name == chosen.models[0]
    if own and not setup.options and not setup.settings.parameters:
        return  # there is nothing to be wrong
    # The process ends with the task: a later task in it may read over XRootD, which dies after TensorFlow.
    attempt = ray.remote(
        num_cpus=0, max_calls=1, max_retries=0, runtime_env={"env_vars": worker_environment()}
    )(_attempt)
    try:
        error = ray.get(attempt.remote(source, setup))
    except ray.exceptions.RayError as death:
        raise ModelError(
            f"{code.name}: trying the model ended its process ({one_line(death)})",
            "Run the file by itself",
        ) from None
    if error is not None:
        raise error


def _check_monitor(task: Task, settings: TrainSettings) -> None:
    """Refuse early stopping by what the validation events of such a task do not tell."""
    measures = ["validation_loss", *(set(scores_of(task).summary()) - {"loss", "events"})]
    if settings.early_stopping and settings.early_stopping.monitor not in measures:
        monitor = settings.early_stopping.monitor
        raise JobError(
            f"early_stopping.monitor: {monitor} is no measure of {task.kind}", nearest(monitor, measures)
        )


def _attempt(source: Source, setup: Setup) -> MlaasError | None:
    """Return what is wrong; an exception would come back with a traceback in the log."""
    try:
        attempt(load_framework(source), setup, source if setup.model.builtin else setup.model)
    except MlaasError as error:
        return error
    return None
