"""What the worker loop asks of a framework: the two protocols, and the signature all exports have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mlaas_ray.core import Signature, Tensor
from mlaas_ray.core.package import ModelFormat
from mlaas_ray.training.batches import Batch
from mlaas_ray.training.group import Group

Floats = npt.NDArray[np.float32]

INPUT, OUTPUT = "inputs", "outputs"


class Network(Protocol):
    """A network in training: preprocessing, the user's layers, and an optimiser, on one worker of a group."""

    def step(self, batch: Batch, events: int) -> Any:
        """Take one optimisation step together with all ranks.

        Every rank must call it equally often. The gradient is that of the sum of the weighted
        cross-entropies of all ranks' events, divided by their number.

        Args:
            batch: This rank's events; there may be none.
            events: Events of all ranks.

        Returns:
            The predictions for the batch before the step, in the framework's own form, perhaps still being
            computed: see :meth:`collect`.
        """

    def collect(self, steps: list[Any]) -> Floats:
        """Return the predictions of some steps, one after the other: ``(events,)`` float32."""

    def predict(self, x: Floats) -> Floats:
        """Return the probability of class 1 for raw values ``(events, features)``: ``(events,)`` float32."""

    def begin_epoch(self, learning_rate: float, seed: int) -> None:
        """Set the optimiser's step size, and the seed of what is random in the network."""

    def settle(self) -> None:
        """Make all ranks equal again in what no gradient moves; called by all of them after each epoch."""

    def save(self, folder: Path) -> None:
        """Write the state of network and optimiser into a folder."""

    def restore(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""

    def export(self, folder: Path) -> None:
        """Write the model file(s) of the framework's format, with the preprocessing as first layer."""


class Framework(Protocol):
    """A framework: builds networks, and reads exported models back as a stranger would."""

    name: str
    model_format: ModelFormat
    kind: str
    collective_on_gpu: str

    def prepare(self, threads: int, seed: int) -> None:
        """Set threads and seeds of this process, before anything is built."""

    def builtin(self, name: str, width: int) -> Any:
        """Build one of our own networks for ``width`` values."""

    def is_network(self, candidate: Any) -> bool:
        """Whether a user's function returned what this framework trains."""

    def expects(self, module: Any) -> int | None:
        """Values a row a network takes, where that can be told without running it."""

    def forward(self, module: Any, rows: Floats) -> npt.NDArray[Any]:
        """Run rows through a bare network, without training it."""

    def network(
        self, module: Any, offset: Floats, scale: Floats, group: Group, *, weight_decay: float
    ) -> Network:
        """Make a bare network ready for training.

        Args:
            module: The user's network, or a built-in one.
            offset: What is taken from each value, ``(features,)``.
            scale: What the rest is multiplied with, ``(features,)``; values that are not finite become 0.
            group: The workers that train together.
            weight_decay: Decoupled weight decay of AdamW.
        """

    def answer(self, folder: Path, x: Floats) -> Floats:
        """Load an exported model afresh and return its answers ``(events,)`` for raw values."""


def signature(width: int) -> Signature:
    """Return the signature all exported models have: any number of rows of ``width`` raw values."""
    return Signature(
        inputs=(Tensor(name=INPUT, dtype="float32", shape=(None, width)),),
        outputs=(Tensor(name=OUTPUT, dtype="float32", shape=(None, 1)),),
    )
