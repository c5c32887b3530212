"""Trainer: Ray Train's for PyTorch, without the processes that it starts for what is not used here."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback


class Trainer(TorchTrainer):
    """A TorchTrainer whose workers ask for their events themselves.

    Args:
        train: What each worker does.
        own_ray: Whether Ray ends with this process.
        options: Of TorchTrainer.
    """

    def __init__(self, train: Any, *, own_ray: bool, **options: Any) -> None:
        super().__init__(train, **options)
        # Each costs a process, 2 to 3 CPU seconds: one splits Ray Datasets among the workers, and there are
        # none; the other frees the workers' places after a controller that died, and its Ray goes too.
        self._unused = (DatasetsCallback, PlacementGroupCleanerCallback) if own_ray else (DatasetsCallback,)

    def _create_default_callbacks(self) -> list[Any]:
        # Ray's annotations are still those of Train V1.
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in callbacks if not isinstance(each, self._unused)]
