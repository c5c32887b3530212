"""The training layer: a stream of events in, a trained and exported network out.

>>> from mlaas_ray.training import TrainSettings, fit
>>> trained = fit(train, validation, features, name="tth", framework="torch",
...               settings=TrainSettings(workers=2), storage="runs")        # doctest: +SKIP
>>> trained.folder, trained.metrics["validation"]["auc"]                    # doctest: +SKIP
"""

from mlaas_ray.training.check import check_model
from mlaas_ray.training.events import EventSource
from mlaas_ray.training.fit import check_workers, fit
from mlaas_ray.training.frameworks import FRAMEWORKS, find_framework, load_framework
from mlaas_ray.training.settings import EpochReport, StepReport, TrainedModel, TrainSettings, Weighting
from mlaas_ray.training.state import LAST, reached

__all__ = [
    "FRAMEWORKS",
    "LAST",
    "EpochReport",
    "EventSource",
    "StepReport",
    "TrainSettings",
    "TrainedModel",
    "Weighting",
    "check_model",
    "check_workers",
    "find_framework",
    "fit",
    "load_framework",
    "reached",
]
