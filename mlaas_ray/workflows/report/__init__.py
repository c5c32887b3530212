"""Report: what came of a training, as a page that needs no network, and pictures in the field's style."""

from mlaas_ray.workflows.report.write import write_report

__all__ = ["write_report"]
