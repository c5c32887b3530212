"""Where model packages are kept: names, versions; whole or not at all."""

from mlaas_ray.repository.repository import ModelVersion, Repository, check_alias

__all__ = ["ModelVersion", "Repository", "check_alias"]
