"""materialize: what a job reads, written once as shards, and the job that reads those in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from mlaas_ray.core.errors import DataError
from mlaas_ray.streaming import FirstPass, Sample, first_pass, identifiers, look_up, materialize
from mlaas_ray.workflows.cluster import connected, durable
from mlaas_ray.workflows.job import Job
from mlaas_ray.workflows.sums import summed

JOB = "job.yaml"
RECORD = "record.json"


def materialize_job(
    job: Job,
    output: Path,
    *,
    address: str | None = None,
    progress: bool | None = None,
    on_stage: Callable[[str], None] = lambda what: None,
    on_first_pass: Callable[[FirstPass], None] | None = None,
) -> dict[str, Any]:
    """Write the events a job reads as Parquet shards, beside them the features, the record, and a job.

    A run that ended early goes on where it was. The new job's model is the same: definitions, object rules
    and the split are in it.

    Args:
        job: The job.
        output: Folder of its own; all nodes of the cluster must see it.
        address: Ray cluster; see :func:`~mlaas_ray.workflows.cluster.connected`.
        progress: Whether to show bars; None for only on a terminal.
        on_stage: Called with what begins and takes seconds, and with nothing when that ended.
        on_first_pass: Called with what the first pass found.

    Returns:
        The record, see :meth:`~mlaas_ray.streaming.Record.document`.

    Raises:
        JobError: When the folder holds something else.
        DataError: Naming the file, tree and branch that cannot be used.
    """
    folder = durable(output)
    on_stage("looking for the files")
    samples = look_up(job.samples({}), job.reading)
    on_stage("starting Ray")
    with connected(address):
        on_stage("")
        samples = summed(job, samples)
        found = first_pass(samples, job.wanted, reading=job.reading, key=job.split.key, progress=progress)
        if on_first_pass:
            on_first_pass(found)
        record = materialize(found, folder, reading=job.reading, progress=progress)
        record.write(folder / RECORD)
        document = record.document()
    if document["total"]["read"] == 0:
        raise DataError(f"no event is left of {document['total']['planned']:,}", "Look at the selection")
    (folder / JOB).write_text(yaml.safe_dump(_job(job, found, folder, samples), sort_keys=False))
    return document


def _job(job: Job, found: FirstPass, folder: Path, samples: list[Sample]) -> dict[str, Any]:
    """Return the job with the shards in place of its files."""
    given: dict[str, Any] = job.model_dump(mode="json", exclude_unset=True)
    for sample in samples:
        dataset = given["datasets"][sample.name]
        for key in ("das", "tree", "origin"):
            dataset.pop(key, None)
        dataset["files"] = str(folder / sample.name)
        if "sum_weights" in dataset and "sum_weights" in sample.constants:
            dataset["sum_weights"] = sample.constants["sum_weights"]  # the shards have no other trees
    given["split"] = {**given.get("split", {}), "key": list(identifiers(found))}
    # the branches by name: a glob, or none, would take the identifiers for inputs
    inputs = given.setdefault("inputs", {})
    inputs["include"] = [feature.name for feature in found.features.features]
    inputs.pop("exclude", None)
    # what was about the originals
    reading = given.get("reading", {})
    for key in ("redirectors", "cache", "missing", "nested", "max_events", "bad_files"):
        reading.pop(key, None)
    return given
