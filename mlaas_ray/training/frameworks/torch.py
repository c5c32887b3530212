"""PyTorch: trained with DistributedDataParallel, exported as ONNX and as a program of ``torch.export``."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import json
import logging
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import MlaasError, ModelError
from mlaas_ray.core.package import MODEL_PATHS, ModelFormat
from mlaas_ray.training.batches import Batch, Floats
from mlaas_ray.training.framework import INPUT, OUTPUT, Network, Setup, check_parameters
from mlaas_ray.training.frameworks.mlaas4hep import give_package
from mlaas_ray.training.frameworks.models import MODELS
from mlaas_ray.training.frameworks.modules import NO_ENDING, Ending, module_of
from mlaas_ray.training.metrics import EPSILON, HUBER
from mlaas_ray.training.normalised import Normaliser
from mlaas_ray.training.refusal import refusal
from mlaas_ray.training.settings import NETWORK_DEFAULTS
from mlaas_ray.training.source import Source

if TYPE_CHECKING:
    import torch

PREDICT_ROWS = 8192
PROGRAM = "model.pt2"


class Torch:
    """The framework; see :class:`mlaas_ray.training.framework.Framework`."""

    name = "torch"
    models = tuple(MODELS)
    tasks = ("binary", "multiclass", "regression")
    defaults = {**NETWORK_DEFAULTS, "average": 0.995}  # noqa: RUF012
    model_format: ModelFormat = "onnx"
    collective_on_gpu = "nccl"
    kind = "torch.nn.Module"

    def prepare(self, threads: int, seed: int, precision: str) -> None:
        """Set threads and seeds of this process, before anything is built."""
        import torch

        logging.getLogger("torch").setLevel(logging.CRITICAL)  # what is wrong is in an exception too
        logging.getLogger("torch.onnx").setLevel(logging.CRITICAL)
        give_package()
        torch.set_num_threads(threads)
        torch.manual_seed(seed)

    def network(self, setup: Setup) -> Network:
        """Make a network ready for training, spread over Ray Train's group if there is one."""
        check_parameters(setup, self.name)
        module, ending = module_of(setup, self)
        return TorchNetwork(setup, module, masked=self.takes_mask(module), ending=ending)

    def answer(self, folder: Path, file: str, x: Floats) -> npt.NDArray[Any]:
        """Load an exported file afresh, with ONNX Runtime or as a program, and return its answers."""
        if file == PROGRAM:
            import torch

            program = torch.export.load(folder / file).module()
            with torch.no_grad():
                return np.asarray(program(torch.from_numpy(x)).numpy(), dtype=np.float32)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            str(folder / file), options, providers=["CPUExecutionProvider"]
        )
        return np.asarray(session.run([OUTPUT], {INPUT: x})[0], dtype=np.float32)

    def ours(self, setup: Setup) -> torch.nn.Module:
        """Build one of our own networks."""
        from mlaas_ray.training.frameworks import torch_models

        return torch_models.build(setup)

    def is_module(self, candidate: Any) -> bool:
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

    def takes_mask(self, module: Any) -> bool:
        """Whether ``forward`` takes two arguments."""
        parameters = inspect.signature(module.forward).parameters.values()
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return sum(one.default is one.empty and one.kind in positional for one in parameters) >= 2

    def run(self, module: Any, x: Floats, mask: Floats) -> npt.NDArray[Any]:
        """Run rows through a bare module, without training it."""
        import torch

        module.eval()
        inputs = [torch.from_numpy(x), torch.from_numpy(mask)][: 2 if self.takes_mask(module) else 1]
        with torch.no_grad():
            return np.asarray(module(*inputs).detach().cpu().numpy())

    def ends_linear(self, module: Any, x: Floats, mask: Floats) -> bool:
        """Whether its answers are what an ``nn.Linear`` gave, which nothing changed since."""
        from torch import nn

        given: list[tuple[Any, int]] = []
        hooks = [
            layer.register_forward_hook(lambda _, __, out: given.append((out, out._version)))
            for layer in module.modules()
            if isinstance(layer, nn.Linear)
        ]
        last: list[Any] = []
        hooks.append(module.register_forward_hook(lambda _, __, out: last.append(out)))
        try:
            self.run(module, x, mask)
        finally:
            for hook in hooks:
                hook.remove()
        return any(out is answer and out._version == version for out, version in given for answer in last)

    def finish(self, answers: Any, ending: Ending) -> Any:
        """Put an ending behind answers."""
        import torch

        answers = torch.as_tensor(answers).float()  # of two bytes, what is near 0 or 1 would be it
        if ending.activation:
            answers = answers.sigmoid() if ending.activation == "sigmoid" else answers.softmax(dim=1)
        return answers[:, 1:] if ending.second else answers


class TorchNetwork(Network):
    """A PyTorch network in training; see :class:`mlaas_ray.training.framework.Network`."""

    def __init__(
        self, setup: Setup, module: torch.nn.Module, *, masked: bool, ending: Ending = NO_ENDING
    ) -> None:
        import torch

        settings = setup.settings
        self._setup = setup
        self._task = setup.task
        self._group = setup.group
        self._clip = settings.clip
        self._full: Any = complete(setup, module, masked=masked, ending=ending)
        self._spread: Any = self._full.answering
        self._normalise = Normaliser(setup, masked=masked)
        self._device = torch.device("cpu")
        on_gpu = settings.gpus_per_worker > 0
        if on_gpu:
            from ray.train.torch import get_device

            self._device = get_device()
            torch.cuda.set_device(self._device)
            torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as on CPUs and in exported files
            self._full.to(self._device)
        if on_gpu or setup.group.size > 1:
            from ray.train.torch import prepare_model

            self._spread = prepare_model(self._spread, move_to_device=self._device)
        self.steps_ahead = int(on_gpu)
        self._copies = torch.cuda.Stream(self._device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._half = (
            getattr(torch, settings.precision) if on_gpu and settings.precision != "float32" else None
        )
        self._scaler = torch.amp.GradScaler(enabled=self._half is torch.float16)
        self._optimizer = torch.optim.AdamW(
            self._full.parameters(), lr=1e-3, weight_decay=settings.weight_decay, fused=True
        )
        self._scale = torch.tensor(setup.task.scale or (1.0,), device=self._device)
        self._decay = settings.average or 0.0
        self._steps = 0
        # what is judged and exported: the mean of the weights over the last steps, or these themselves
        self._averaged: Any = copy.deepcopy(self._full) if self._decay else self._full

    def stage(self, batch: Batch) -> tuple[Any, ...]:
        """Bring a batch to the device, filled up to two rows with events of no weight.

        Layers such as BatchNorm refuse fewer than two rows, and DDP wants a backward pass of every rank.
        """
        import torch

        count = len(batch)
        if count < 2:
            short = (batch.x, batch.y, batch.weight)
            x, y, weight = (np.pad(a, [(0, 2 - count)] + [(0, 0)] * (a.ndim - 1)) for a in short)
            batch = Batch(x, y, weight)
        arrays = (*self._normalise(batch), batch.y, batch.weight)
        if self._copies is None:
            return (*(self._tensor(array) for array in arrays), count)
        # from pinned memory, beside what the GPU computes meanwhile
        with torch.cuda.stream(self._copies):
            moved = (
                torch.from_numpy(np.ascontiguousarray(a)).pin_memory().to(self._device, non_blocking=True)
                for a in arrays
            )
            return (*moved, count)

    def step(self, batch: tuple[Any, ...], events: int) -> torch.Tensor:
        """Take one optimisation step together with all ranks."""
        import torch

        *tensors, count = batch
        if self._copies is not None:
            torch.cuda.current_stream().wait_stream(self._copies)
            for tensor in tensors:
                tensor.record_stream(torch.cuda.current_stream())
        values, mask, y, weight = tensors
        self._optimizer.zero_grad()
        with self._arithmetic():
            prediction = self._spread(values, mask).float()
        # DDP averages over ranks, however many events each has: undo that, and average over events.
        loss = (weight * self._losses(prediction, y)).sum() * (self._group.size / events)
        torch.autograd.backward(self._scaler.scale(loss))
        if self._clip is not None:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._full.parameters(), self._clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._average()
        return torch.Tensor.detach(prediction)[:count]

    def collect(self, steps: list[Any]) -> Floats:
        """Return the answers of some steps, one after the other."""
        import torch

        return np.asarray(torch.cat(steps).cpu().numpy(), dtype=np.float32)

    def predict(self, x: Floats) -> Floats:
        """Return the answers to raw values."""
        import torch

        self._averaged.eval()
        try:
            with torch.no_grad():
                parts = [
                    self._averaged(self._tensor(x[i : i + PREDICT_ROWS])).cpu().numpy()
                    for i in range(0, len(x), PREDICT_ROWS)
                ]
        finally:
            self._averaged.train()
        return np.concatenate(parts) if parts else np.empty((0, self._task.outputs), np.float32)

    def set_rate(self, learning_rate: float) -> None:
        """Set the optimiser's step size."""
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = learning_rate

    def reseed(self, seed: int) -> None:
        """Set the seed of dropout."""
        import torch

        torch.manual_seed(seed)
        self._full.train()

    def settle(self) -> None:
        """Give all ranks the mean of what no gradient moves, such as BatchNorm's statistics."""
        import torch

        for buffer in self._full.buffers():
            if buffer.is_floating_point() and self._group.size > 1:
                total = self._group.sum(buffer.detach().cpu().numpy().astype(np.float32))
                with torch.no_grad():
                    buffer.copy_(torch.from_numpy(total / self._group.size))
        for own, averaged in zip(self._full.buffers(), self._averaged.buffers(), strict=True):
            averaged.copy_(own)

    def save(self, folder: Path) -> None:
        """Write the state of network and optimiser into a folder."""
        import torch

        state = {
            "network": self._full.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }
        if self._decay:
            state |= {"averaged": self._averaged.state_dict(), "steps": self._steps}
        torch.save(state, folder / "torch.pt")

    def restore(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        state = self._read(folder)
        self._full.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._decay:  # else these are the weights themselves, whatever was averaged before
            self._averaged.load_state_dict(state.get("averaged", state["network"]))
            self._steps = state.get("steps", 0)

    def warm_start(self, folder: Path) -> None:
        """Begin with the weights of another run."""
        state = self._read(folder)
        for module in (self._full, self._averaged):
            module.load_state_dict(state.get("averaged", state["network"]))

    def export(self, folder: Path) -> list[str]:
        """Write ``model.onnx`` and ``model.pt2``: one file each, any number of rows."""
        full = self._averaged.cpu().eval()
        try:
            return [write_onnx(full, self._setup, folder, program=PROGRAM), PROGRAM]
        finally:
            full.to(self._device)
            full.train()

    def _average(self) -> None:
        """Let the averaged weights follow those of the last step; in the first steps, more closely."""
        import torch

        if not self._decay:
            return
        self._steps += 1
        share = 1 - min(self._decay, self._steps / (9 + self._steps))
        with torch.no_grad():
            torch._foreach_lerp_([*self._averaged.parameters()], [*self._full.parameters()], share)

    def _read(self, folder: Path) -> dict[str, Any]:
        import torch

        state: dict[str, Any] = torch.load(folder / "torch.pt", map_location=self._device, weights_only=True)
        return state

    def _arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        import torch

        if self._half is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self._half)

    def _losses(self, prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the loss of each event; the same as :func:`mlaas_ray.training.metrics.losses`."""
        import torch

        if self._task.kind == "binary":
            p = prediction[:, 0].clamp(EPSILON, 1 - EPSILON)
            return -torch.where(y > 0.5, p.log(), torch.log1p(-p))
        if self._task.kind == "multiclass":
            p = prediction.gather(1, y.long()[:, None])[:, 0]
            return -p.clamp(min=EPSILON).log()
        apart = (prediction - y.reshape(prediction.shape)) / self._scale
        if self._task.loss == "mae":
            return apart.abs().mean(dim=1)
        if self._task.loss == "huber":
            zeros = torch.zeros_like(apart)
            return torch.nn.functional.huber_loss(apart, zeros, reduction="none", delta=HUBER).mean(dim=1)
        return apart.square().mean(dim=1)

    def _tensor(self, array: Floats) -> torch.Tensor:
        """Move an array to the device; one that lies read-only in the object store is copied."""
        import torch

        return torch.from_numpy(np.require(array, requirements="W")).to(self._device)


def write_onnx(module: torch.nn.Module, setup: Setup, folder: Path, program: str | None = None) -> str:
    """Write a module that takes raw values as an ONNX file, and as a program if that is wanted.

    Args:
        module: With everything in it; on the CPU, and not training.
        setup: Whose task is written into the file.
        folder: Where the file goes.
        program: File for the program of ``torch.export``, in the same folder.

    Returns:
        The file's name.
    """
    import torch

    file = MODEL_PATHS["onnx"]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporters talk about their own future
        exported = _program(module.eval(), setup.width)
        if program is not None:
            torch.export.save(exported, folder / program)
        if any("cdist" in str(node.target) for node in exported.graph.nodes):
            exported = exported.run_decompositions({torch.ops.aten.cdist.default: _distances})
        try:
            written = torch.onnx.export(
                exported,
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                optimize=True,
                verbose=False,
            )
        except Exception as error:
            raise _unwritten(error, setup.model) from error
    assert written is not None
    about = {"task": setup.task.kind, "names": json.dumps(list(setup.task.names))}
    written.model.metadata_props.update(about)
    written.save(str(folder / file))
    return file


def _program(module: torch.nn.Module, width: int) -> Any:
    """Return the program of ``torch.export``, for any number of rows."""
    import torch

    def traced(strict: bool) -> Any:
        rows, shapes = torch.zeros(2, width), ({0: torch.export.Dim("events")},)
        return torch.export.export(module, (rows,), dynamic_shapes=shapes, strict=strict)

    try:
        return traced(strict=False)
    except Exception as error:
        try:
            return traced(strict=True)  # from the bytecode, where len(x) is no number yet
        except Exception as other:
            raise error from other


def _distances(
    a: torch.Tensor, b: torch.Tensor, p: float = 2.0, compute_mode: int | None = None
) -> torch.Tensor:
    """Return ``torch.cdist`` by what ONNX has: ``(…, n, d)``, ``(…, m, d)`` -> ``(…, n, m)``."""
    apart = (a.unsqueeze(-2) - b.unsqueeze(-3)).abs()
    if p == 0:
        return (apart > 0).to(a.dtype).sum(-1)
    if p == math.inf:
        return apart.amax(-1)
    if p == 1:
        return apart.sum(-1)
    return (apart * apart).sum(-1).sqrt() if p == 2 else apart.pow(p).sum(-1).pow(1 / p)


def _unwritten(error: Exception, source: Source) -> MlaasError:
    """Return the error to show when a program could not be written as ONNX: what that lacks, and where."""
    cause: BaseException | None = error
    while cause is not None:
        trace = cause.__traceback__
        while trace is not None:
            node: Any = trace.tb_frame.f_locals.get("node")  # of the program, in PyTorch's exporter
            if node is not None and hasattr(node, "meta"):
                where = source.where(RuntimeError(node.meta.get("stack_trace")))
                return ModelError(
                    f"{where}: the network cannot be exported: ONNX has nothing for {node.target}",
                    "Write it with simpler functions of torch",
                )
            trace = trace.tb_next
        error, cause = cause if isinstance(cause, Exception) else error, cause.__cause__
    return refusal(
        source, error, "the network cannot be exported:", "Write it with simpler functions of torch"
    )


def complete(setup: Setup, body: torch.nn.Module, *, masked: bool, ending: Ending = NO_ENDING) -> Any:
    """Put preprocessing before a bare module, and its ending or the targets' units behind it.

    Args:
        setup: Whose columns and task it is for.
        body: Takes normalised values ``(events, features)``.
        masked: Whether it takes the mask too.
        ending: What it lacks.

    Returns:
        A module that takes raw values. Its ``answering`` takes normalised ones and the mask, which is ignored
        by a body that takes none: what is trained.
    """
    import torch

    from mlaas_ray.training.frameworks.torch_models import module

    offset, scale = (torch.from_numpy(array.copy()) for array in setup.features.affine())
    regression, finish = setup.task.kind == "regression", Torch().finish

    def answer(self: Any, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = self.body(values, mask) if masked else self.body(values)
        answers: torch.Tensor = found * self.spread + self.centre if regression else finish(found, ending)
        return answers

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        # False for NaN and infinities, in every runtime that follows IEEE 754
        valid = x.abs() <= float(np.finfo(np.float32).max)
        values = torch.where(valid, (x - self.offset) * self.scale, torch.zeros_like(x))
        if self.bend:
            values = values / torch.sqrt(1 + self.bend * values * values)
        answers: torch.Tensor = self.answering(values, valid.to(x.dtype))
        return answers

    answering = module(
        answer,
        body=body,
        centre=torch.tensor(setup.task.offset or (0.0,)),
        spread=torch.tensor(setup.task.scale or (1.0,)),
    )
    bend = 1 / setup.features.bound**2
    return module(forward, raw=True, answering=answering, offset=offset, scale=scale, bend=bend)
