"""PyTorch: trained with DistributedDataParallel, exported as ONNX."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.package import MODEL_PATHS, ModelFormat
from mlaas_ray.training.batches import Batch
from mlaas_ray.training.framework import INPUT, OUTPUT, Network
from mlaas_ray.training.group import Group
from mlaas_ray.training.metrics import EPSILON

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

PREDICT_ROWS = 8192


class Torch:
    """The framework; see :class:`mlaas_ray.training.framework.Framework`."""

    name = "torch"
    model_format: ModelFormat = "onnx"
    kind = "torch.nn.Module"
    collective_on_gpu = "nccl"

    def prepare(self, threads: int, seed: int) -> None:
        """Set threads and seeds of this process, before anything is built."""
        import torch

        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.set_num_threads(threads)
        torch.manual_seed(seed)

    def builtin(self, name: str, width: int) -> Any:
        """Build the multilayer perceptron: 128, 64 and 32 nodes, GELU, 10 % dropout."""
        from torch import nn

        layers: list[nn.Module] = []
        for nodes in (128, 64, 32):
            layer = nn.Linear(width, nodes)
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.GELU(), nn.Dropout(0.1)]
            width = nodes
        return nn.Sequential(*layers, nn.Linear(width, 1), nn.Sigmoid())

    def is_network(self, candidate: Any) -> bool:
        """Whether it is a ``torch.nn.Module``."""
        from torch import nn

        return isinstance(candidate, nn.Module)

    def expects(self, module: Any) -> int | None:
        """Return the width of the first layer that tells one."""
        for layer in module.modules():
            size = getattr(layer, "in_features", None)
            if isinstance(size, int) and size > 0:
                return size
        return None

    def forward(self, module: Any, rows: Floats) -> npt.NDArray[Any]:
        """Run rows through a bare network, without training it."""
        import torch

        module.eval()
        with torch.no_grad():
            return np.asarray(module(torch.from_numpy(rows)).detach().cpu().numpy())

    def network(
        self, module: Any, offset: Floats, scale: Floats, group: Group, *, weight_decay: float
    ) -> Network:
        """Make a bare network ready for training, spread over Ray Train's group if there is one."""
        from torch import nn

        full = nn.Sequential(_preprocess(offset, scale), module)
        return TorchNetwork(full, len(offset), group, weight_decay)

    def answer(self, folder: Path, x: Floats) -> Floats:
        """Load the ONNX file afresh with ONNX Runtime and return its answers."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = folder / MODEL_PATHS["onnx"]
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run([OUTPUT], {INPUT: x})[0], dtype=np.float32)[:, 0]


class TorchNetwork:
    """A PyTorch network in training; see :class:`mlaas_ray.training.framework.Network`."""

    def __init__(self, full: torch.nn.Module, width: int, group: Group, weight_decay: float) -> None:
        import torch

        self._full = full
        self._width = width
        self._group = group
        self._device = torch.device("cpu")
        self._spread = full
        if group.size > 1 or torch.cuda.is_available():
            from ray.train.torch import get_device, prepare_model

            self._device = get_device()
            self._spread = prepare_model(full)
        self._optimizer = torch.optim.AdamW(full.parameters(), lr=1e-3, weight_decay=weight_decay, fused=True)

    def step(self, batch: Batch, events: int) -> torch.Tensor:
        """Take one optimisation step together with all ranks."""
        import torch

        x, y, weight = self._tensors(batch)
        self._optimizer.zero_grad()
        prediction = self._spread(x)[:, 0]
        # DDP averages over ranks, however many events each has: undo that, and average over events.
        p = prediction.clamp(EPSILON, 1 - EPSILON)
        loss = -(weight * torch.where(y > 0.5, p.log(), torch.log1p(-p))).sum()
        torch.autograd.backward(loss * (self._group.size / events))
        self._optimizer.step()
        return torch.Tensor.detach(prediction)[: len(batch)]

    def collect(self, steps: list[Any]) -> Floats:
        """Return the predictions of some steps, one after the other."""
        import torch

        return np.asarray(torch.cat(steps).cpu().numpy(), dtype=np.float32)

    def predict(self, x: Floats) -> Floats:
        """Return the probability of class 1 for raw values ``(events, features)``."""
        import torch

        self._full.eval()
        try:
            with torch.no_grad():
                parts = [
                    self._full(self._tensor(x[i : i + PREDICT_ROWS]))[:, 0].cpu().numpy()
                    for i in range(0, len(x), PREDICT_ROWS)
                ]
        finally:
            self._full.train()
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)

    def begin_epoch(self, learning_rate: float, seed: int) -> None:
        """Set the optimiser's step size, and the seed of what is random in the network."""
        import torch

        torch.manual_seed(seed)
        self._full.train()
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = learning_rate

    def settle(self) -> None:
        """Give all ranks the mean of what no gradient moves, such as BatchNorm's statistics."""
        import torch

        for buffer in self._full.buffers():
            if buffer.is_floating_point() and self._group.size > 1:
                total = self._group.sum(buffer.detach().cpu().numpy().astype(np.float32))
                with torch.no_grad():
                    buffer.copy_(torch.from_numpy(total / self._group.size))

    def save(self, folder: Path) -> None:
        """Write the state of network and optimiser into a folder."""
        import torch

        state = {"network": self._full.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save(state, folder / "torch.pt")

    def restore(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        import torch

        state = torch.load(folder / "torch.pt", map_location=self._device, weights_only=True)
        self._full.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])

    def export(self, folder: Path) -> None:
        """Write ``model.onnx``: one file, any number of rows."""
        import torch

        full = self._full.cpu().eval()
        rows = torch.zeros(2, self._width)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter talks about its own future
            torch.onnx.export(
                full,
                (rows,),
                str(folder / MODEL_PATHS["onnx"]),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("events")},),
                dynamo=True,
                external_data=False,
                optimize=True,
                verbose=False,
            )
        full.to(self._device)

    def _tensors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Move a batch to the device, filled up to two rows with events of no weight.

        Layers such as BatchNorm refuse fewer than two rows, and DDP wants a backward pass of every rank.
        """
        lack = max(0, 2 - len(batch))
        arrays = (batch.x, batch.y, batch.weight)
        if lack:
            arrays = tuple(np.pad(a, [(0, lack)] + [(0, 0)] * (a.ndim - 1)) for a in arrays)  # type: ignore[assignment]
        x, y, weight = (self._tensor(array) for array in arrays)
        return x, y, weight

    def _tensor(self, array: Floats) -> torch.Tensor:
        """Move an array to the device; one that lies read-only in the object store is copied."""
        import torch

        return torch.from_numpy(np.require(array, requirements="W")).to(self._device, non_blocking=True)


def _preprocess(offset: Floats, scale: Floats) -> torch.nn.Module:
    """Make the first layer: normalise, and put 0 where there is no finite value."""
    import torch
    from torch import nn

    class Preprocess(nn.Module):
        largest = float(np.finfo(np.float32).max)
        offset: torch.Tensor
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("offset", torch.from_numpy(offset.copy()))
            self.register_buffer("scale", torch.from_numpy(scale.copy()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # False for NaN and infinities, in every runtime that follows IEEE 754
            valid = x.abs() <= self.largest
            return torch.where(valid, (x - self.offset) * self.scale, torch.zeros_like(x))

    return Preprocess()
