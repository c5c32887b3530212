"""Trainer: Ray Train's, without the processes and imports that it starts for what is not used here."""

from __future__ import annotations

from typing import Any

from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class _Devices(Backend):
    # Each worker sees the GPUs of all on its node, as NCCL wants it.
    share_cuda_visible_devices = True


class _Workers(BackendConfig):
    """Workers join by themselves: see :meth:`mlaas_ray.training.group.Group.joined`."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Devices


class Trainer(DataParallelTrainer):
    """A trainer that starts no process which has nothing to do.

    Args:
        train: What each worker does.
        datasets: What Ray Data reads for the workers; empty when they ask for their events themselves.
        own_ray: Whether Ray ends with this process.
        options: Of DataParallelTrainer.
    """

    def __init__(self, train: Any, *, datasets: dict[str, Any], own_ray: bool, **options: Any) -> None:
        super().__init__(train, datasets=datasets, backend_config=_Workers(), **options)
        # Each costs a process, 2 to 3 CPU seconds. One deals out datasets; the other frees the places of
        # workers whose controller died: where its Ray goes with it, there is nothing to free.
        unused = {DatasetsCallback: not datasets, PlacementGroupCleanerCallback: own_ray}
        self._unused = tuple(callback for callback, idle in unused.items() if idle)

    def _create_default_callbacks(self) -> list[Any]:
        # Ray's annotations are still those of Train V1.
        callbacks: list[Any] = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, self._unused)]
