"""Spectators: variables that a report draws the score against, whether the model sees them or not: a mass."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.inputs import Inputs
from mlaas_ray.streaming import FirstPass, first_pass, read_events
from mlaas_ray.training.batches import block_arrays
from mlaas_ray.training.evaluation import Chosen, key_of
from mlaas_ray.workflows.job import Job

if TYPE_CHECKING:
    from mlaas_ray.workflows.report.answers import Answers

_IDS = ("dataset", "file", "entry")


def spectators(job: Job, found: FirstPass, progress: bool | None = None) -> FirstPass | None:
    """Look for the variables of ``report.against`` in the files; None when there are none.

    Raises:
        DataError: Naming the file, tree and branch that cannot be used.
        JobError: When a variable is no branch, and is not defined.
    """
    if not job.report.against:
        return None
    inputs = Inputs(
        include=job.report.against,
        define=job.define,
        select=job.select,
        normalise="none",
    )
    return first_pass(found.samples, inputs, reading=job.reading, key=job.split.key, progress=progress)


def values_of(
    job: Job, found: FirstPass, judged: Answers, classes: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Return what the events of a report, the first of its answers, have of each variable.

    Args:
        job: The job.
        found: What :func:`spectators` returned.
        judged: The answers to the validation events, with the inputs of some.
        classes: How many classes there are; 0 for targets.
    """
    few = judged.taken(len(next(iter(judged.inputs.values()), judged.y)))
    events = read_events(found, part=job.split.parts[1], seed=job.seed, reading=job.reading, classes=classes)
    events.context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # which tells on the terminal what it does
    chosen = Chosen(len(few.y))
    for table in events.iter_batches(batch_size=None, batch_format="pyarrow"):
        for rows in block_arrays(table, ("x", "y", *_IDS)):
            chosen.add(rows, key_of(rows))
    if not np.array_equal(chosen.rows.get("y", ()), few.y):
        logging.getLogger(__name__).warning("the report lacks report.against: the events read now are others")
        return {}
    starts = found.features.starts
    return {
        feature.name: chosen.rows["x"][:, starts[feature.name]]
        for feature in found.features.features
        if feature.columns
    }
