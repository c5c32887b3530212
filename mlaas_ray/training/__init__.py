"""The training layer: a stream of events in, a trained and exported network out.

>>> from mlaas_ray.training import TrainSettings, fit
>>> trained = fit(train, validation, features, name="tth", framework="torch",
...               settings=TrainSettings(workers=2), storage="runs")        # doctest: +SKIP
>>> trained.folder, trained.metrics["validation"]["auc"]                    # doctest: +SKIP
"""

from mlaas_ray.training.check import check_model
from mlaas_ray.training.fit import fit
from mlaas_ray.training.frameworks import FRAMEWORKS
from mlaas_ray.training.settings import EpochReport, TrainedModel, TrainSettings

__all__ = ["FRAMEWORKS", "EpochReport", "TrainSettings", "TrainedModel", "check_model", "fit"]
