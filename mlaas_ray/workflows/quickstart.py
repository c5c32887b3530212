"""quickstart: the whole way on simulated events, from ROOT files to a prediction over HTTP."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import uproot
import yaml

from mlaas_ray.client import Client
from mlaas_ray.core.errors import ServiceError
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.flatten import flatten_events
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.inference import ServiceSettings, running_service
from mlaas_ray.inference.environment import refuse_taken_port
from mlaas_ray.workflows.cluster import connected
from mlaas_ray.workflows.job import Job
from mlaas_ray.workflows.toy import TREE, Process, write_sample
from mlaas_ray.workflows.train import Hooks, publish, train

EVENTS = 50_000
WORKERS = 2
EPOCHS = 5
# The same model was asked twice, once by columns and once by branches: what may differ is rounding.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Quickstart:
    """What came of it.

    Attributes:
        package: The trained model.
        version: Its version in the repository.
        url: Where the service answered.
        repository: Folder of the published model.
        prediction_keys: Answer to the event sent as keys and values.
        prediction_event: Answer to the same event sent raw, jagged.
        curl: A line to try on a running service.
        seconds: Wall time of everything.
        kept: Process of the service, when it was left running.
    """

    package: ModelPackage
    version: int
    url: str
    repository: Path
    prediction_keys: float
    prediction_event: float
    curl: str
    seconds: float
    kept: int | None


def quickstart(
    folder: Path,
    *,
    events: int = EVENTS,
    framework: str = "torch",
    port: int = 8083,
    keep: bool = False,
    say: Callable[[str], None] = print,
    hooks: Hooks | None = None,
) -> Quickstart:
    """Simulate, inspect, train, publish, serve and ask.

    Args:
        folder: Where files, runs and the repository go; what an earlier quickstart left is used again.
        events: Simulated events of each sample.
        framework: ``torch`` or ``keras``.
        port: Where the service listens.
        keep: Leave the service running.
        say: Told of each step.
        hooks: What to call while it trains.

    Raises:
        MlaasError: From whichever step.
    """
    started = time.perf_counter()
    folder = folder.absolute()
    settings = ServiceSettings(repository=folder / "models", port=port)
    # before the minutes of work that a taken port would spoil
    refuse_taken_port(settings.host, settings.port)
    say(f"simulating {events:,} signal and {events:,} background events as ROOT files in {folder / 'data'}")
    processes: tuple[Process, Process] = ("signal", "background")
    files = {
        process: write_sample(folder / "data" / f"{process}.root", process, events, seed=1)
        for process in processes
    }
    job = Job.load(_write_job(folder, files, framework))
    with connected():
        say(f"training on {WORKERS} workers with {framework} (the job: {folder / 'job.yaml'})")
        package = train(job, hooks=hooks)
    version = publish(job, package, settings.repository)
    say(f"published {version} in {settings.repository}; starting the service")
    assert package.features is not None, "a trained package has features"
    event = first_event(files["signal"], package.features)
    with running_service(settings, keep=keep) as service:
        by_keys, by_event = _ask(service.url, version.name, package, event)
    return Quickstart(
        package=package,
        version=version.version,
        url=service.url,
        repository=settings.repository,
        prediction_keys=by_keys,
        prediction_event=by_event,
        curl=f"curl {service.url}/json -d {shlex.quote(json.dumps({'model': version.name, 'event': event}))}",
        seconds=time.perf_counter() - started,
        kept=service.pid if keep else None,
    )


def first_event(file: Path, features: FeatureSpec) -> dict[str, Any]:
    """Return a file's first event as a program would send it: the branches of the model, as plain numbers."""
    with uproot.open(file) as opened:
        arrays = opened[TREE].arrays(list(features.raw), entry_stop=1)
    return {name: ak.to_list(arrays[name][0]) for name in arrays.fields}


def _write_job(folder: Path, files: dict[Process, Path], framework: str) -> Path:
    job = {
        "name": "quickstart",
        "seed": 1,
        "datasets": {
            process: {"files": str(file), "tree": TREE, "label": int(process == "signal")}
            for process, file in files.items()
        },
        "inputs": {"exclude": ["run", "event"]},
        "split": {"validation": 0.2},
        "framework": framework,
        "train": {"workers": WORKERS, "epochs": EPOCHS},
        "storage": str(folder / "runs"),
        "publish": {"name": "quickstart"},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def _ask(url: str, model: str, package: ModelPackage, event: dict[str, Any]) -> tuple[float, float]:
    """Ask for the same event by keys and values, and as it is."""
    features = package.features
    assert features is not None, "a trained package has features"
    row = flatten_events([event], features)[0]
    known = {name: float(value) for name, value in zip(features.columns, row, strict=True) if value == value}
    with Client(url) as client:
        by_keys = client.predict(model, keys=list(known), values=list(known.values()))
        by_event = client.predict(model, event=event)
    if abs(by_keys[0] - by_event[0]) > TOLERANCE:
        raise ServiceError(
            f"the same event got two answers: {by_keys[0]} by keys, {by_event[0]} as an event",
            "Please report this",
        )
    return by_keys[0], by_event[0]
