"""ROOT files, local and remote, to a Ray Dataset of fixed-size events."""

from mlaas_ray.streaming.files import find_files
from mlaas_ray.streaming.first_pass import FirstPass, Sample, ScannedFile, first_pass
from mlaas_ray.streaming.read import read_events, read_root
from mlaas_ray.streaming.root_datasource import RootDatasource, block_schema
from mlaas_ray.streaming.settings import ReadingSettings
from mlaas_ray.streaming.shards import Shard

__all__ = [
    "FirstPass",
    "ReadingSettings",
    "RootDatasource",
    "Sample",
    "ScannedFile",
    "Shard",
    "block_schema",
    "find_files",
    "first_pass",
    "read_events",
    "read_root",
]
