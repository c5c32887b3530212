"""Sums: the generator's weights of each dataset added up, where a job's weights are divided by them."""

from __future__ import annotations

from collections.abc import Sequence

from mlaas_ray.core.errors import JobError
from mlaas_ray.streaming import Sample, sum_over
from mlaas_ray.workflows.job import Job


def summed(job: Job, samples: Sequence[Sample]) -> list[Sample]:
    """Return the datasets with the sum of their generator's weights, where it is wanted.

    Args:
        job: The job.
        samples: Its datasets, looked up.

    Raises:
        JobError: When a sum is 0.
        DataError: Naming the file, tree and branch that cannot be used.
    """
    wanted = job.wanted_sums
    return [_summed(job, sample) if sample.name in wanted else sample for sample in samples]


def _summed(job: Job, sample: Sample) -> Sample:
    place = job.wanted_sums[sample.name]
    if isinstance(place, float):
        total = place
    else:
        total = sum_over(sample.sources, place.tree, place.branch, reading=job.reading)
    if total == 0:
        raise JobError(f"the sum of weights of dataset {sample.name!r} is 0", "Look at its sum_weights")
    return sample.summed(total)
