"""How to train, and what comes of it: the values that cross the training layer's border."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from mlaas_ray.core import Signature
from mlaas_ray.core.package import ModelFormat
from mlaas_ray.core.settings import Settings


class TrainSettings(Settings):
    """How a network is trained; the defaults suit tables of 10^4 to 10^7 events.

    Attributes:
        workers: Training processes; each sees its share of the events.
        gpus_per_worker: GPUs of each worker; 0 trains on the CPU.
        cpus_per_worker: CPUs each worker reserves. By default one, or less on a cluster so small that
            nothing would be left for the tasks that read files.
        batch_size: Events of one optimisation step over all workers together, so that the number of
            workers does not change what is learnt.
        epochs: Times each event is seen.
        learning_rate: Step size of AdamW at the start; it falls to zero along a half cosine.
        weight_decay: Decoupled weight decay of AdamW.
        shuffle_bytes: Memory of one worker for mixing events. A shard that fits is read once and kept for
            all epochs, and shuffled completely; a larger one streams through a pool of this size.
        max_failures: Times the workers may die and be restarted from the last epoch's checkpoint.
    """

    workers: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(default=0.0, ge=0.0)
    cpus_per_worker: float | None = Field(default=None, gt=0.0)
    batch_size: int = Field(default=256, ge=1)
    epochs: int = Field(default=12, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0.0)
    weight_decay: float = Field(default=1e-4, ge=0.0)
    shuffle_bytes: int = Field(default=512 * 1024**2, ge=1024)
    max_failures: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class EpochReport:
    """What one epoch came to, over all workers.

    Attributes:
        epoch: Its number, from 1.
        epochs: How many there will be.
        loss: Weighted mean binary cross-entropy of the training events, as they were seen.
        validation_loss: The same of the validation events, after the epoch.
        auc: Area under the ROC curve of the validation events.
        accuracy: Weighted share of the validation events on the right side of 0.5.
        events_per_s: Training events of all workers per second of training.
    """

    epoch: int
    epochs: int
    loss: float
    validation_loss: float
    auc: float
    accuracy: float
    events_per_s: float


@dataclass(frozen=True)
class TrainedModel:
    """A trained network on disk, ready to be packaged.

    Attributes:
        folder: Holds the model file (``model.onnx``, or the SavedModel ``model/``) and ``sample.npz``.
        model_format: ``onnx`` or ``savedmodel``.
        signature: Names, types and shapes of the model's inputs and outputs.
        metrics: ``validation`` and ``training`` (each auc, loss, accuracy, events), ``history`` (one entry an
            epoch), and ``export_difference``: the largest between the exported model and the network.
        events: Training events seen, over all epochs and workers.
        seconds: Wall time of the epochs' training parts.
    """

    folder: Path
    model_format: ModelFormat
    signature: Signature
    metrics: dict[str, Any]
    events: int
    seconds: float

    @property
    def events_per_s(self) -> float:
        """Training events of all workers per second."""
        return self.events / self.seconds if self.seconds > 0 else 0.0
