"""Trainer: Ray Train's for PyTorch, without the processes that it starts for what is not used here."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback


class Trainer(TorchTrainer):
    """A TorchTrainer that starts no process which has nothing to do.

    Args:
        train: What each worker does.
        datasets: What Ray Data reads for the workers; empty when they ask for their events themselves.
        own_ray: Whether Ray ends with this process.
        options: Of TorchTrainer.
    """

    def __init__(self, train: Any, *, datasets: dict[str, Any], own_ray: bool, **options: Any) -> None:
        super().__init__(train, datasets=datasets, **options)
        # Each costs a process, 2 to 3 CPU seconds. One deals out datasets; the other frees the places of
        # workers whose controller died: where its Ray goes with it, there is nothing to free.
        unused = {DatasetsCallback: not datasets, PlacementGroupCleanerCallback: own_ray}
        self._unused = tuple(callback for callback, idle in unused.items() if idle)

    def _create_default_callbacks(self) -> list[Any]:
        # Ray's annotations are still those of Train V1.
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in callbacks if not isinstance(each, self._unused)]
