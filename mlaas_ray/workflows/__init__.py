"""Where the layers meet: a job to a package, a package to the repository, the whole way in one command."""

from mlaas_ray.workflows.cluster import connected
from mlaas_ray.workflows.compare import compare
from mlaas_ray.workflows.deciding import published_if_wanted
from mlaas_ray.workflows.job import Job
from mlaas_ray.workflows.train import Hooks, publish, resume, train

__all__ = ["Hooks", "Job", "compare", "connected", "publish", "published_if_wanted", "resume", "train"]
