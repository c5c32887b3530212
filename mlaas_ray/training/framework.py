"""What the training loop asks of a framework: two small interfaces that anybody can implement.

A framework of one's own is a file with a function ``framework()`` that returns a :class:`Framework`; the job
names it in place of ``torch`` (docs/training/frameworks.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from mlaas_ray.core import FeatureSpec, Signature, Tensor
from mlaas_ray.core.errors import ModelError, nearest
from mlaas_ray.core.package import ModelFormat
from mlaas_ray.core.task import Task
from mlaas_ray.training.batches import Batch, Floats
from mlaas_ray.training.group import Group
from mlaas_ray.training.settings import TrainSettings
from mlaas_ray.training.source import Source
from mlaas_ray.training.steps import take_steps

if TYPE_CHECKING:
    from mlaas_ray.training.steps import Epoch

INPUT, OUTPUT = "inputs", "outputs"


@dataclass(frozen=True)
class Setup:
    """What a network is made from.

    Attributes:
        model: One of the framework's own models, or the user's code.
        options: What the job says about it, such as ``{"hidden": [512, 512]}``.
        features: The columns, and how they are normalised.
        task: What it is to answer.
        settings: How it is trained; every value is given.
        group: The workers that train together.
    """

    model: Source
    options: Mapping[str, Any]
    features: FeatureSpec
    task: Task
    settings: TrainSettings
    group: Group

    @property
    def width(self) -> int:
        """Columns of an event."""
        return self.features.width


class Network(ABC):
    """A model in training on one worker of a group: preprocessing, the layers, and what makes them learn.

    It is given raw values, NaN where there is none, and answers as :class:`~mlaas_ray.core.task.Task` says.

    Attributes:
        steps_ahead: How many steps before its own a batch is staged: on a GPU one, to be copied beside what
            is computed; on a CPU none, as it would be out of the cache again.
        trial: Whether a few made-up events show that it learns and is exported. Trees do not grow on them
            where their leaves must be heavy.
    """

    steps_ahead = 0
    trial = True

    def learn(self, epoch: Epoch) -> None:
        """See every event of an epoch once, and learn from it; by steps, unless this is overridden."""
        take_steps(self, epoch)

    def stage(self, batch: Batch) -> Any:
        """Bring a batch to where it is used; what is returned goes to :meth:`step`."""
        return batch

    def step(self, batch: Any, events: int) -> Any:
        """Take one optimisation step together with all ranks.

        Every rank must call it equally often. The gradient is that of the sum of the weighted losses of all
        ranks' events, divided by their number.

        Args:
            batch: This rank's events, as :meth:`stage` gave them; there may be none.
            events: Events of all ranks.

        Returns:
            The answers for the batch before the step, in the framework's own form, perhaps still being
            computed: see :meth:`collect`.
        """
        raise NotImplementedError(f"{type(self).__name__} neither takes steps nor learns otherwise")

    def collect(self, steps: list[Any]) -> Floats:
        """Return the answers of some steps, one after the other: ``(events, outputs)`` float32."""
        raise NotImplementedError(f"{type(self).__name__} takes no steps")

    @abstractmethod
    def predict(self, x: Floats) -> Floats:
        """Return the answers ``(events, outputs)`` float32 to raw values ``(events, features)``."""

    def set_rate(self, learning_rate: float) -> None:  # noqa: B027
        """Set the optimiser's step size."""

    def reseed(self, seed: int) -> None:  # noqa: B027
        """Set the seed of what is random in the network, such as dropout; each rank has its own."""

    def settle(self) -> None:  # noqa: B027
        """Make all ranks equal again in what no gradient moves; called by all of them after each epoch."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the state of network and optimiser into a folder."""

    @abstractmethod
    def restore(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""

    def warm_start(self, folder: Path) -> None:
        """Begin with the weights of another run, from what its :meth:`save` wrote."""
        self.restore(folder)

    @abstractmethod
    def export(self, folder: Path) -> list[str]:
        """Write the model in its format (and in others, where there are), preprocessing included.

        Returns:
            The files written, those of the framework's ``model_format`` first.
        """


class Framework(Protocol):
    """A framework: makes networks, and reads exported models back as a stranger would.

    Attributes:
        name: What jobs call it.
        models: Names of its own models; the first is used when a job names none.
        tasks: Kinds of tasks it can be trained for.
        defaults: Of settings that a job may leave out: ``epochs``, ``learning_rate``, ``schedule``,
            ``early_stopping``; and ``steps``, see :meth:`TrainSettings.filled`.
        model_format: What it exports.
        collective_on_gpu: What ``torch.distributed`` speaks when workers have GPUs: ``nccl`` or ``gloo``.
        by_steps: Whether its networks see each epoch in steps, so that its events are read ahead; may be left
            out, and is true then.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def models(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def tasks(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def defaults(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def model_format(self) -> ModelFormat: ...  # noqa: D102
    @property
    def collective_on_gpu(self) -> str: ...  # noqa: D102

    def prepare(self, threads: int, seed: int, precision: str) -> None:
        """Set threads, seeds and precision of this process, before anything is built."""

    def network(self, setup: Setup) -> Network:
        """Make a network ready for training, the same on all ranks.

        Raises:
            ModelError: When the user's model cannot be built, or does not answer as the task wants.
        """

    def answer(self, folder: Path, file: str, x: Floats) -> npt.NDArray[Any]:
        """Load an exported file afresh and return its answers ``(events, outputs)`` to raw values."""


def check_parameters(setup: Setup, framework: str, known: Collection[str] = ()) -> None:
    """Refuse what a job says in ``train.parameters`` and nobody would look at.

    Raises:
        ModelError: Naming the first that is not known.
    """
    for name in setup.settings.parameters:
        if name not in known:
            remedy = nearest(name, known) if known else "What a model is built with goes under model"
            raise ModelError(f"train.parameters: {framework} has no parameter {name!r}", remedy)


def signature(features: int, task: Task) -> Signature:
    """Return the signature all exported models have: any number of rows of raw values."""
    return Signature(
        inputs=(Tensor(name=INPUT, dtype="float32", shape=(None, features)),),
        outputs=(Tensor(name=OUTPUT, dtype="float32", shape=(None, task.outputs)),),
    )
