"""Group: what the workers of one run say to each other, in numpy arrays and small objects."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


class Group:
    """The workers of a run; with one worker every exchange is with oneself and costs nothing.

    Rides on the ``torch.distributed`` group that Ray Train has made. What is exchanged here lies in the
    machine's own memory, so on GPUs (where Ray's group speaks NCCL) a second group of Gloo is made.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self._group: Any = None

    @classmethod
    def joined(cls) -> Group:
        """Return the group of the worker this runs in."""
        import torch.distributed as dist

        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        group = cls(dist.get_rank(), dist.get_world_size())
        group._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        return group

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
