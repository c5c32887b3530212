"""Group: what the workers of one run say to each other, in numpy arrays and small objects."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")

# How long an exchange may take: the slowest worker exports, or waits for a data server.
PATIENCE = timedelta(minutes=30)


class Group:
    """The workers of a run; with one worker every exchange is with oneself and costs nothing.

    Rides on a ``torch.distributed`` group. What is exchanged here lies in the machine's own memory, so on
    GPUs (where that group speaks NCCL) a second group of Gloo is made.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self._group: Any = None

    @classmethod
    def joined(cls, collective: str = "gloo") -> Group:
        """Join the workers of the Ray Train run that this process works for; all of them must call it.

        Ray's TorchTrainer does the same, but imports PyTorch in the driver, in Ray Train's controller and in
        a worker that is alone, too: some 2 CPU seconds in each.

        Args:
            collective: What ``torch.distributed`` speaks: ``gloo`` or ``nccl``.
        """
        import ray.train

        context = ray.train.get_context()
        own = cls(context.get_world_rank(), context.get_world_size())
        if own.size == 1:
            return own
        import torch.distributed as dist
        from ray.train.collective import broadcast_from_rank_zero
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host, port, store = "", 0, None
        if own.rank == 0:
            host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            # Port 0: the system finds a free one.
            store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
            port = store.port
        host, port = broadcast_from_rank_zero((host, port))
        store = store or TCPStore(host, port, is_master=False)
        dist.init_process_group(collective, store=store, rank=own.rank, world_size=own.size, timeout=PATIENCE)
        own._group = dist.group.WORLD if collective == "gloo" else dist.new_group(backend="gloo")
        return own

    def leave(self) -> None:
        """Take the group apart, when all is done."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    def gather(self, values: list[int]) -> npt.NDArray[np.int64]:
        """Return every rank's numbers, ``(ranks, numbers)``; all ranks must give equally many."""
        own = np.array(values, dtype=np.int64)
        if self.size == 1:
            return own[None]
        import torch
        import torch.distributed as dist

        everyone = np.empty((self.size, len(own)), dtype=np.int64)
        target = [torch.from_numpy(row) for row in everyone]
        dist.all_gather(target, torch.from_numpy(own), group=self._group)
        return everyone

    def gather_objects(self, value: T) -> list[T]:
        """Return every rank's object, in the order of ranks."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value, group=self._group)
        return everyone

    def from_first_object(self, value: T) -> T:
        """Return rank 0's object."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        found: T = box[0]
        return found

    def sum(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the sum over ranks of an array; the array itself may be overwritten."""
        if self.size == 1:
            return values
        import torch
        import torch.distributed as dist

        tensor = torch.from_numpy(values if values.flags.writeable else values.copy())
        dist.all_reduce(tensor, group=self._group)
        return tensor.numpy()

    def from_first(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return rank 0's array."""
        if self.size == 1:
            return values
        import torch
        import torch.distributed as dist

        tensor = torch.from_numpy(values.copy())
        dist.broadcast(tensor, src=0, group=self._group)
        return tensor.numpy()
