"""Check a model before anything is started for it: it loads, takes the events, and answers in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray

from mlaas_ray.core import FeatureSpec, MlaasError
from mlaas_ray.core.errors import ModelError
from mlaas_ray.training.framework import Framework
from mlaas_ray.training.frameworks import load_framework
from mlaas_ray.training.source import ModelSource, one_line

WORKER_ENVIRONMENT = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}

# Rows for the check: two would do for shapes, but an output that lacks its sigmoid shows only by chance.
_ROWS = 64


def check_model(model: str, framework: str, features: FeatureSpec) -> None:
    """Build a model and run some rows through it, in a process of its own.

    Args:
        model: ``mlp``, a file with a function ``model(input_dim)``, or ``package.module:function``.
        framework: ``torch`` or ``keras``.
        features: The columns the model will be given.

    Raises:
        JobError: For a framework that is none.
        ModelError: When the model cannot be found, built, or run on such events, or does not answer with
            one probability an event.
    """
    load_framework(framework)
    source = ModelSource.locate(model)
    if source.builtin:
        return
    # The process ends with the task: a later task in it may read over XRootD, which dies after TensorFlow.
    task = ray.remote(num_cpus=0, max_calls=1, max_retries=0, runtime_env={"env_vars": WORKER_ENVIRONMENT})(
        _build_and_forget
    )
    try:
        error = ray.get(task.remote(source, framework, features.width))
    except ray.exceptions.RayError as death:
        raise ModelError(
            f"{model}: building the model ended its process ({one_line(death)})", "Run the file by itself"
        ) from None
    if error is not None:
        raise error


def build_network(source: ModelSource, framework: Framework, width: int) -> Any:
    """Build a bare network and check it, in a process that may import its framework.

    Args:
        source: Where the network comes from.
        framework: What it must be made for.
        width: Columns of the events.

    Raises:
        ModelError: When it cannot be built or run, or does not answer with one probability an event.
    """
    build = source.builder()
    if build is None:
        return framework.builtin(source.name, width)
    call = f"{source.name}: model({width})"
    try:
        network = build(width)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{source.where(error)}: model({width}) failed with {one_line(error)}", "Correct the model's code"
        ) from None
    if not framework.is_network(network):
        raise ModelError(
            f"{call} returned {type(network).__module__}.{type(network).__name__}, no {framework.kind}",
            f"Return a {framework.kind}, or set framework to what the model is made with",
        )
    _check_answers(network, source, framework, width)
    return network


def _check_answers(network: Any, source: ModelSource, framework: Framework, width: int) -> None:
    call = f"{source.name}: model({width})"
    takes = framework.expects(network)
    rows = np.random.default_rng(0).normal(scale=10.0, size=(_ROWS, width)).astype(np.float32)
    try:
        answers = framework.forward(network, rows)
    except Exception as error:
        if takes is not None and takes != width:
            raise ModelError(
                f"{call} returned a network that takes {takes} values, but the events have {width}",
                "Use the argument input_dim as the size of the first layer",
            ) from None
        raise ModelError(
            f"{source.where(error)}: the network fails on events of {width} values with {one_line(error)}",
            "Correct the model's code",
        ) from None
    if answers.shape != (_ROWS, 1):
        shape = ", ".join(["events", *map(str, answers.shape[1:])] if answers.ndim else [])
        raise ModelError(
            f"{call} answers with shape ({shape}), not (events, 1)", "End the network with one output"
        )
    if not (np.all(answers >= 0.0) and np.all(answers <= 1.0)):
        raise ModelError(f"{call} answers outside [0, 1]", "End the network with a sigmoid")


def _build_and_forget(source: ModelSource, framework: str, width: int) -> MlaasError | None:
    """Return what is wrong; an exception would come back with a traceback in the log."""
    chosen = load_framework(framework)
    chosen.prepare(threads=1, seed=0)
    try:
        build_network(source, chosen, width)
    except MlaasError as error:
        return error
    return None
