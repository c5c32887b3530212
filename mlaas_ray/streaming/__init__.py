"""Files, local and remote, to a Ray Dataset of fixed-size events."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# At once: a name that is also its module's cannot come later, for the module would take its place.
from mlaas_ray.streaming.first_pass import FirstPass, Sample, ScannedFile, SkippedFile, first_pass, look_up

if TYPE_CHECKING:
    from mlaas_ray.streaming.blocks import block_schema
    from mlaas_ray.streaming.census import Census, take_census
    from mlaas_ray.streaming.materialized import identifiers, materialize
    from mlaas_ray.streaming.planned import PlannedEvents
    from mlaas_ray.streaming.read import cluster_events, new_record, planned_events, read_events, read_root
    from mlaas_ray.streaming.record import Record
    from mlaas_ray.streaming.root_datasource import ClusterEvents, RootDatasource
    from mlaas_ray.streaming.settings import ReadingSettings
    from mlaas_ray.streaming.sums import sum_over

__all__ = [
    "Census",
    "ClusterEvents",
    "FirstPass",
    "PlannedEvents",
    "ReadingSettings",
    "Record",
    "RootDatasource",
    "Sample",
    "ScannedFile",
    "SkippedFile",
    "block_schema",
    "cluster_events",
    "first_pass",
    "identifiers",
    "look_up",
    "materialize",
    "new_record",
    "planned_events",
    "read_events",
    "read_root",
    "sum_over",
    "take_census",
]

# Each name's module is imported when the name is first asked for: a first pass whose results are known needs
# no Ray, whose import alone takes longer.
_MODULES = {
    "Census": "census",
    "ClusterEvents": "root_datasource",
    "PlannedEvents": "planned",
    "ReadingSettings": "settings",
    "Record": "record",
    "RootDatasource": "root_datasource",
    "block_schema": "blocks",
    "cluster_events": "read",
    "identifiers": "materialized",
    "materialize": "materialized",
    "new_record": "read",
    "planned_events": "read",
    "read_events": "read",
    "read_root": "read",
    "sum_over": "sums",
    "take_census": "census",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
