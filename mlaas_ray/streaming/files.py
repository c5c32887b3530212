"""Old name of :mod:`mlaas_ray.streaming.sources`, until its callers have moved."""

from mlaas_ray.streaming.sources import Files, find_files

__all__ = ["Files", "find_files"]
