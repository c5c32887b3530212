"""Resuming: which keys of a job may change when its run goes on, and why the others may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlaas_ray.core.errors import JobError
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.training import find_framework, load_framework, reached
from mlaas_ray.workflows.job import Job
from mlaas_ray.workflows.run_folder import RunFolder, filesystem

# Why a key, or all of a section, cannot change; an empty text where a change takes effect on what is left.
_EVENTS = "the run learns from the events with which it began"
_INPUTS = "the model is made for the inputs with which the run began"
_LEARNT = "what the run has learnt so far was learnt otherwise"
_NETWORK = "the run goes on with the network that it began with"
_STATE = "the optimiser's state, which the run goes on with, belongs to it"

KEYS: Mapping[str, str] = {
    "name": "its packages are called so; publish.name gives another name in the repository",
    "seed": _EVENTS,
    # another place of the same files; others are refused by their content
    "datasets.NAME.files": "",
    "datasets.NAME.das": "",
    "datasets.NAME.origin": "",
    "datasets.NAME.tree": _EVENTS,
    "datasets.NAME.label": _LEARNT,
    "datasets.NAME.xsec": _LEARNT,
    "datasets.NAME.sum_weights": _LEARNT,
    "lumi": _LEARNT,
    "mixing": _EVENTS,
    "reading.mode": "",
    "reading.redirectors": "",
    "reading.allow_duplicates": "",
    "reading.bad_files": "",
    "reading.missing": _INPUTS,
    "reading.fill": _INPUTS,
    "reading.nested": _INPUTS,
    "reading.max_events": _EVENTS,
    "reading.sample": _INPUTS,
    "reading.patience_s": "",
    "reading.checksums": "",
    "reading.cache": "",
    "reading.ahead_bytes": "",
    "reading.in_flight": "",
    "reading.threads": "",
    "define": _INPUTS,
    "select": _EVENTS,
    "inputs": _INPUTS,
    "weights": _LEARNT,
    "task": _LEARNT,
    "split": _EVENTS,
    "model": _NETWORK,
    "framework": _NETWORK,
    "train.workers": "",
    "train.gpus_per_worker": "",
    "train.cpus_per_worker": "",
    "train.batch_size": "the steps of an epoch are counted in batches of this size",
    "train.epochs": "",
    "train.learning_rate": "",
    "train.schedule": "",
    "train.weight_decay": _STATE,
    "train.average": "",
    "train.clip": "",
    "train.precision": _STATE,
    "train.loss": _LEARNT,
    "train.early_stopping": "",
    "train.checkpoint": "",
    "train.shuffle_bytes": "which events of an epoch were seen is told by windows of this size",
    "train.max_failures": "",
    "train.parameters": "the trees that there are were grown with them",
    "report": "",
    "storage": "the run stays in its folder; move that, and give its new place to --resume",
    "publish": "",
}


def changed_keys(before: Job, after: Job) -> list[str]:
    """Return the keys in which two jobs differ, written as in a job file.

    Raises:
        JobError: For the first that cannot change when a run goes on, with the reason.
    """
    one, other = (dict(_flat(job.model_dump(mode="json"))) for job in (before, after))
    said = dict(_flat(after.model_dump(mode="json", exclude_unset=True)))
    absent = object()  # null is a value
    changed = sorted(
        path
        for path in one.keys() | other.keys()
        # a new section's defaults are none of the user's words
        if one.get(path, absent) != other.get(path, absent) and (path in one or path in said)
    )
    for path in changed:
        if reason := KEYS[entry_of(path)]:
            raise JobError(
                f"{'.'.join(path)} cannot change when a run goes on: {reason}",
                "Leave it out, or train anew without --resume",
            )
    return [".".join(path) for path in changed]


def anything_left(
    job: Job, run: RunFolder, changing: Sequence[str], training: str, package: ModelPackage | None
) -> bool:
    """Return whether a run has anything left to train, or to write down.

    Args:
        job: Its job, with what is changed of it.
        run: Its folder.
        changing: The keys that are changed.
        training: Name of the folder of its checkpoints.
        package: Its package, if it has one.

    Raises:
        JobError: When a change could not take effect.
    """
    progress, finished = reached(*filesystem(run.place(training)))
    finished = finished or (progress is None and package is not None)
    defaults = dict(load_framework(find_framework(job.framework)).defaults)
    if progress is not None and progress.epochs:
        defaults["epochs"] = progress.epochs  # which may have been told by the number of events
    settings = job.train.filled(defaults)
    done = progress.cursor.epoch if progress is not None else 0
    if "train.epochs" in changing and (settings.epochs or 1) <= done:
        raise JobError(
            f"{run} has trained {done} epochs, so train.epochs cannot be {settings.epochs}",
            f"Give more than {done}",
        )
    if not finished or (progress is not None and progress.go_on(settings)):
        return True
    idle = [key for key in changing if not key.startswith("publish")]
    if idle and progress is None:
        raise JobError(
            f"{run} is finished and keeps no state to go on from",
            "Begin with its weights: mlaas train --from",
        )
    if idle:
        raise JobError(
            f"{run} has finished its training: {idle[0]} would change nothing",
            f"Give more epochs too, as in --set train.epochs={2 * done}",
        )
    if package is None or progress is None:
        return package is None
    return len(progress.history) > len(package.metrics["history"])


def entry_of(path: Sequence[str]) -> str:
    """Return the key of the table that decides about a job's key: its own, or that of its section.

    Raises:
        KeyError: When there is none.
    """
    parts = list(path)
    if parts[0] == "datasets":
        parts[1:2] = ["NAME"]
    for length in range(len(parts), 0, -1):
        if (entry := ".".join(parts[:length])) in KEYS:
            return entry
    raise KeyError(".".join(path))


def _flat(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give each key that holds no further keys, and its value."""
    if not isinstance(content, Mapping):
        yield path, content
        return
    for name, value in content.items():
        yield from _flat(value, (*path, str(name)))
