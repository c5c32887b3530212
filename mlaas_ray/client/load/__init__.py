"""A load generator: many callers of a service at once, and what they saw of it."""

from mlaas_ray.client.load.bodies import draw_rows, json_call, predict_path, proto_call, raw_call
from mlaas_ray.client.load.check import Check
from mlaas_ray.client.load.load import Call, Load, LoadSettings
from mlaas_ray.client.load.tally import LoadReport, Tally

__all__ = [
    "Call",
    "Check",
    "Load",
    "LoadReport",
    "LoadSettings",
    "Tally",
    "draw_rows",
    "json_call",
    "predict_path",
    "proto_call",
    "raw_call",
]
