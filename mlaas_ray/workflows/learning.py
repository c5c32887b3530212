"""Learning: what a job and the census of its events make of task and weights."""

from __future__ import annotations

from mlaas_ray.core.errors import JobError, LabelError
from mlaas_ray.core.task import Task
from mlaas_ray.streaming import Census, FirstPass
from mlaas_ray.streaming.cautions import Caution, cautions
from mlaas_ray.training import Weighting
from mlaas_ray.training.frameworks import FRAMEWORKS
from mlaas_ray.workflows.job import Job


def task_of(job: Job, census: Census) -> Task:
    """Return the task, with the scale of what there is to learn.

    Raises:
        LabelError: When a class has no events after the cuts; shows the cut flow.
        JobError: When the names do not fit the labels.
    """
    if census.total.events == 0:
        raise LabelError("no event passes the selection", f"The cut flow:\n    {census.flow()}")
    if job.kind == "regression":
        offset, scale = census.spread()
        names = job.targets
        if len(names) != len(offset):
            raise JobError(
                f"task.targets has {len(names)} names for {len(offset)} targets", "Name each of them"
            )
        return Task(
            kind="regression",
            names=tuple(names),
            offset=tuple(offset),
            scale=tuple(scale),
            loss=job.train.loss,
        )
    for label, (name, count) in enumerate(zip(job.classes, census.classes(job.class_count), strict=True)):
        if count.events == 0:
            raise LabelError(
                f"no event of class {label} ({name}) passes the selection",
                f"The cut flow:\n    {census.flow()}",
            )
    return Task(kind=job.kind, names=tuple(job.classes))


def warnings_of(job: Job, found: FirstPass, census: Census | None) -> list[Caution]:
    """Return what should be looked at before a job is trained; see :func:`cautions`."""
    ours = job.framework in FRAMEWORKS and job.framework != "xgboost"
    own_code = job.model.name is not None and not job.model.name.isidentifier()
    return cautions(
        found,
        census,
        () if job.kind == "regression" else job.classes,
        job.split.parts,
        network=ours and not own_code and found.features.representation == "vector",
    )


def weighting_of(job: Job, census: Census) -> Weighting:
    """Return how weights count: on average 1 in training, whatever their unit.

    Raises:
        JobError: When weights are negative and nobody said what becomes of them, or come to nothing.
    """
    negative = census.total.negative
    choice = job.weights.negative
    if negative and choice is None:
        share = negative / census.total.events
        where = [dataset.name for dataset in census.datasets if dataset.total.negative]
        raise JobError(
            f"{share:.2%} of the events have negative weights (in {', '.join(where)})",
            "Say weights.negative: keep (for torch and keras), absolute, or zero",
        )
    counts = census.classes(job.class_count) if job.kind != "regression" else [census.total]
    signs = {"keep": 0.0, "absolute": -2.0, "zero": -1.0}[choice or "keep"]
    sums = [count.weight + signs * count.negative_weight for count in counts]
    for name, total in zip([*job.classes, "all"], sums, strict=False):
        if total <= 0:
            raise JobError(
                f"the weights of {name} come to {total:g}", "Look at weights.expression, or its sign"
            )
    events = sum(count.events for count in counts)
    if job.weights.balance == "classes":
        factors = tuple(events / (len(sums) * total) for total in sums)
    elif job.weights.expression is None:
        factors = (1.0,)
    else:
        factors = (events / sum(sums),)
    return Weighting(factors, choice or "keep")
