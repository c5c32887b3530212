"""Keeping: what a run writes down at its beginning, so that it can be gone on with in another process."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mlaas_ray.core import FeatureSpec
from mlaas_ray.core.errors import JobError
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.core.task import Task
from mlaas_ray.streaming import Census, FirstPass
from mlaas_ray.streaming.sources import absolute
from mlaas_ray.workflows.job import Job
from mlaas_ray.workflows.overrides import changed
from mlaas_ray.workflows.resuming import changed_keys
from mlaas_ray.workflows.run_folder import RunFolder

JOB = "job.yaml"
CENSUS = "census.json"

_PLAN = "plan.json"
_TASK = "task.json"
_FEATURES = "features.json"
_FIRST = "first"
_CODE = "code"
# The folder of a package that holds its weights.
_STATE = "state"
# What decides which events make which blocks, and what it comes from.
_PLANNED = {
    "files": "files of the datasets",
    "features": "inputs",
    "seed": "seed",
    "split": "split",
    "key": "split.key",
    "mixing": "mixing",
    "max_events": "reading.max_events",
}


def begin(
    job: Job, run: RunFolder, found: FirstPass, census: Census, task: Task, first: ModelPackage | None
) -> None:
    """Write into a run's folder what it needs to go on later; when it is there, see that it fits.

    Args:
        job: The job.
        run: The folder.
        found: What the first pass found.
        census: How many events there are.
        task: What is learnt.
        first: The package whose weights the run begins with.

    Raises:
        JobError: When files or inputs are not those with which the run began.
    """
    plan = _digest(job, found)
    before = run.read(_PLAN)
    if before is not None:
        began = json.loads(before)
        differing = [_PLANNED[name] for name in plan if began.get(name) != plan[name]]
        if differing:
            raise JobError(
                f"the files or inputs are not those with which {run} began: {', '.join(differing)}",
                "Train anew, without --resume",
            )
        run.write(JOB, _text(job, run))  # what was changed of it counts next time too
        return
    if first is not None:
        run.write(_FEATURES, found.features.to_json())
        run.put(first.path / _STATE, _FIRST)
    run.write(JOB, _text(job, run))
    run.write(_TASK, task.model_dump_json())
    run.write(CENSUS, json.dumps(census.document(), indent=1))
    run.write(_PLAN, json.dumps(plan))


def kept_job(run: RunFolder, changes: Sequence[str] = ()) -> Job:
    """Return the job of a run, with some changes.

    Raises:
        JobError: When there is no such run, or a change is none.
    """
    job = _job(run, changes)
    if not run.is_local:
        model = job.model.model_copy(update={"name": _at_hand(job.model.name or "", run) or None})
        job = job.model_copy(update={"model": model, "framework": _at_hand(job.framework, run)})
    return job.checked(Path.cwd())


def changes_of(run: RunFolder, changes: Sequence[str]) -> list[str]:
    """Return the keys of a run's job that some changes change.

    Raises:
        JobError: When there is no such run, a change is none, or it is of a key that cannot change.
    """
    return changed_keys(_job(run), _job(run, changes))


def kept_task(run: RunFolder, first: ModelPackage | None) -> Task | None:
    """Return the task with which a run began, or that of the package that it begins with."""
    text = run.read(_TASK)
    return Task.model_validate_json(text) if text is not None else first.task if first else None


def kept_features(run: RunFolder, first: ModelPackage | None) -> FeatureSpec | None:
    """Return the columns of the package that a run began with; None when the first pass finds them."""
    text = run.read(_FEATURES)
    return FeatureSpec.from_json(text) if text is not None else first.features if first else None


def first_weights(run: RunFolder) -> dict[str, bytes]:
    """Return the weights that a run begins with; none for random ones."""
    if not run.exists(_FIRST):
        return {}
    return {path.name: path.read_bytes() for path in run.fetch(_FIRST).iterdir()}


def code_of(job: Job, run: RunFolder) -> str:
    """Return where a run keeps its copy of the user's model, or framework; a name where it has no copy."""
    name = job.model.name or job.framework
    return run.place(_CODE, Path(name).name) if name.endswith(".py") else name


def _job(run: RunFolder, changes: Sequence[str] = ()) -> Job:
    text = run.read(JOB)
    if text is None:
        raise JobError(f"{run} is no run: it has no {JOB}", "Give the folder that mlaas train named")
    return Job.of(changed(yaml.safe_load(text), changes), f"the job file {run.place(JOB)}")


def _text(job: Job, run: RunFolder) -> str:
    return yaml.safe_dump(_kept(job, run), sort_keys=False, allow_unicode=True)


def _kept(job: Job, run: RunFolder) -> dict[str, Any]:
    """Return the job for another day and folder: with absolute paths, and its own copy of the user's code."""
    document = job.model_dump(mode="json", exclude_none=True)
    for name, dataset in job.datasets.items():
        if dataset.files:
            document["datasets"][name]["files"] = [absolute(file) for file in dataset.files]
    if job.model.name and job.model.name.endswith(".py"):
        document["model"]["name"] = _copied(job.model.name, run)
    if job.framework.endswith(".py"):
        document["framework"] = _copied(job.framework, run)
    document["storage"] = str(Path(run.url).parent) if run.is_local else run.url.rpartition("/")[0]
    return document


def _copied(file: str, run: RunFolder) -> str:
    name = f"{_CODE}/{Path(file).name}"
    run.write(name, Path(file).expanduser().read_bytes())
    return run.place(name)


def _at_hand(name: str, run: RunFolder) -> str:
    """Return a name, or where on this machine the run's copy of that code is."""
    if not name.startswith(run.place(_CODE)):
        return name
    return str(run.fetch(_CODE) / posixpath.basename(name))


def _digest(job: Job, found: FirstPass) -> dict[str, Any]:
    """Return what decides which events make which blocks."""
    files = [[file.uuid, file.entries, list(file.boundaries), file.dataset] for file in found.files]
    what = {
        "files": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        "features": found.features.digest,
        "seed": job.seed,
        "split": [list(part) for part in job.split.parts],
        "key": list(found.key),
        "mixing": job.mixing,
        "max_events": job.reading.max_events,
    }
    return json.loads(json.dumps(what))  # type: ignore[no-any-return]
