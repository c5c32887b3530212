"""Where the layers meet: a job to a package, a package to the repository, the whole way in one command."""

from mlaas_ray.workflows.cluster import connected
from mlaas_ray.workflows.job import Job
from mlaas_ray.workflows.train import publish, train

__all__ = ["Job", "connected", "publish", "train"]
