from __future__ import annotations

from typing import Any

import pytest

from mlaas_ray.training.trainer import Trainer


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("own_ray", "datasets", "unused"),
    [
        (True, {}, {"DatasetsCallback", "PlacementGroupCleanerCallback"}),
        (False, {}, {"DatasetsCallback"}),
        (False, {"train": 1}, set()),
    ],
)
def test_ray_train_starts_no_process_for_what_is_not_used(
    own_ray: bool, datasets: dict[str, Any], unused: set[str]
) -> None:
    trainer = Trainer(print, own_ray=own_ray, datasets=datasets)
    usual = {type(each).__name__ for each in super(Trainer, trainer)._create_default_callbacks()}
    assert usual - {type(each).__name__ for each in trainer._create_default_callbacks()} == unused
