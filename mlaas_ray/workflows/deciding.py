"""Deciding: whether a trained model is published, when that depends on the one that is there."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mlaas_ray.core.errors import ModelMissingError, VersionMissingError
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.repository import ModelVersion, Repository
from mlaas_ray.workflows.compare import compare
from mlaas_ray.workflows.job import Job
from mlaas_ray.workflows.train import publish, repository_of


@dataclass(frozen=True)
class Decision:
    """What became of a package.

    Attributes:
        version: As what it was published; None when it was not.
        reason: Why, when that was decided by a comparison.
    """

    version: ModelVersion | None
    reason: str = ""


def published_if_wanted(
    job: Job,
    package: ModelPackage,
    repository: str | os.PathLike[str] | None = None,
    *,
    wanted: bool = False,
    address: str | None = None,
) -> Decision:
    """Publish a package if the job (or the caller) wants it, and it passes the comparison the job asks for.

    Args:
        job: The job.
        package: What was trained.
        repository: The models' folder, unless the job says.
        wanted: Whether to publish even if the job does not say so.
        address: Ray cluster, for the comparison.
    """
    wish = job.publish
    if wish is None:
        return Decision(publish(job, package, repository) if wanted else None)
    models = Repository(repository_of(job, repository))
    reasons = []
    for rival, strict in ((wish.if_better_than, True), (wish.unless_worse_than, False)):
        if rival is None:
            continue
        name = wish.name or package.name
        try:
            other = models.find(f"{name}:{rival}")
        except (ModelMissingError, VersionMissingError):
            continue  # there is nothing to be compared with yet
        found = compare(models.get(other.name, other.version), package, job, address=address)
        passes = found.verdict == "better" if strict else found.verdict != "worse"
        told = found.sentence(str(other), "the new model")
        if not passes:
            return Decision(None, f"not published: {told}")
        reasons.append(told)
    return Decision(publish(job, package, repository), "; ".join(reasons))
