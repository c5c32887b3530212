"""How to train, and what comes of it: the values that cross the training layer's border."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mlaas_ray.core import Signature
from mlaas_ray.core.package import ModelFormat
from mlaas_ray.core.settings import Settings, word
from mlaas_ray.training.batches import Floats

Monitor = Literal["validation_loss", "auc", "accuracy", "r2", "mae", "rmse"]
# Of these, less is better.
FALLING = ("validation_loss", "mae", "rmse")


class ScheduleSettings(Settings):
    """How the step size changes in the course of training.

    Attributes:
        kind: ``cosine``: falls to zero along half a cosine; ``linear``: in a straight line; ``constant``:
            stays; ``step``: times ``factor`` after every ``every`` epochs; ``plateau``: times ``factor``
            after ``every`` epochs in which the validation loss has not fallen.
        warmup: Epochs, or part of one, in which it rises from zero to its value.
        factor: For ``step`` and ``plateau``.
        every: For ``step`` and ``plateau``, in epochs.
    """

    kind: Literal["cosine", "linear", "constant", "step", "plateau"] = "cosine"
    warmup: float = Field(default=0.0, ge=0.0)
    factor: float = Field(default=0.1, gt=0.0, lt=1.0)
    every: int = Field(default=3, ge=1)

    def rate(self, passed: float, epochs: int, drops: int = 0) -> float:
        """Return the step size as part of its value.

        Args:
            passed: Epochs that have passed, with the part of the present one.
            epochs: How many there will be.
            drops: With ``plateau``: how often the validation loss stood still.
        """
        share = min(1.0, passed / epochs)
        rate = 1.0
        if self.kind == "cosine":
            rate = 0.5 * (1.0 + math.cos(math.pi * share))
        elif self.kind == "linear":
            rate = 1.0 - share
        elif self.kind == "step":
            rate = self.factor ** (int(passed) // self.every)
        elif self.kind == "plateau":
            rate = self.factor**drops
        return rate * min(1.0, passed / self.warmup) if self.warmup else rate


class EarlyStopping(Settings):
    """When training ends before its last epoch; the network of the best epoch is exported.

    Attributes:
        monitor: What to look at after each epoch, of the validation events.
        patience: Epochs without improvement that are allowed.
        min_delta: What counts as an improvement.
    """

    monitor: Monitor = "validation_loss"
    patience: int = Field(default=3, ge=1)
    min_delta: float = Field(default=0.0, ge=0.0)


# What frameworks that take steps do when a job says nothing: small data is seen more often, so that there are
# enough steps to learn from; a network that gains nothing for long is left at its best.
MOST_EPOCHS = 60
NETWORK_DEFAULTS: Mapping[str, Any] = {
    "epochs": 12,
    "steps": 2000,
    "learning_rate": 2e-3,
    "early_stopping": EarlyStopping(patience=15),
}


class CheckpointSettings(Settings):
    """When the state of a run is written, beside the end of each epoch.

    Attributes:
        every_steps: Steps of one epoch between checkpoints; left out, only epochs count.
        keep: How many of the last ones are kept.
    """

    every_steps: int | None = Field(default=None, ge=1)
    keep: int = Field(default=2, ge=1)


class TrainSettings(Settings):
    """How a model is trained; the defaults suit tables of 10^4 to 10^7 events.

    Attributes:
        workers: Training processes; each sees its share of the events. ``[2, 8]``: as many as there is room
            for, at least two; their number may change while the run goes on.
        gpus_per_worker: GPUs of each worker; 0 trains on the CPU.
        cpus_per_worker: CPUs each worker reserves. By default one; with ``reading.mode: cluster`` on a
            cluster so small that nothing would be left for the tasks that read files, less.
        batch_size: Events of one optimisation step over all workers together, so that the number of
            workers does not change what is learnt.
        epochs: Times each event is seen; for trees, how many of them there will be. Left out, what suits the
            framework: a network sees few events up to 60 times, many 12 times.
        learning_rate: Step size of AdamW, or the weight of a tree. Left out, what suits the framework.
        schedule: How it changes. Left out, along half a cosine to zero; for trees, not at all.
        weight_decay: Decoupled weight decay of AdamW.
        average: Decay, per step, of the moving average of the weights, which is judged and exported in
            their place; 0 for none. Left out, 0.995 with PyTorch; the other frameworks have none.
        clip: Norm to which a longer gradient is cut; left out, none is.
        precision: Of the network's arithmetic on GPUs; weights stay in float32.
        loss: For targets: ``mse``, ``mae`` or ``huber``, in deviations of the target.
        early_stopping: When to end early; ``false`` for never. Left out, networks stop after 15 epochs
            without a lower validation loss, trees never.
        checkpoint: When the state is written.
        shuffle_bytes: Memory of one worker for mixing events. When the events of all workers fit, they are
            read once and kept for all epochs; else they stream through windows of half this size.
        max_failures: Times the workers may die and be restarted from the last checkpoint.
        parameters: Further ones of the framework's own, such as ``max_depth`` of XGBoost's.
    """

    workers: int | tuple[int, int] = 1
    gpus_per_worker: float = Field(default=0.0, ge=0.0)
    cpus_per_worker: float | None = Field(default=None, gt=0.0)
    batch_size: int = Field(default=256, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0.0)
    schedule: Annotated[ScheduleSettings | None, word("kind")] = None
    weight_decay: float = Field(default=1e-4, ge=0.0)
    average: float | None = Field(default=None, ge=0.0, lt=1.0)
    clip: float | None = Field(default=None, gt=0.0)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    loss: Literal["mse", "mae", "huber"] = "mse"
    early_stopping: Annotated[EarlyStopping, word("monitor")] | Literal[False] | None = None
    checkpoint: CheckpointSettings = CheckpointSettings()
    shuffle_bytes: int = Field(default=1024**3, ge=1024)
    max_failures: int = Field(default=0, ge=0)
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> TrainSettings:
        least, most = self.worker_range
        if not 1 <= least <= most:
            raise ValueError("workers is a number of at least 1, or two of them, [least, most]")
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        """The least and most workers."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers

    @property
    def rates(self) -> ScheduleSettings:
        """How the step size changes."""
        return self.schedule or ScheduleSettings()

    def filled(self, defaults: Mapping[str, Any], events: int = 0) -> TrainSettings:
        """Return settings with a framework's own defaults for what was left out.

        Args:
            defaults: By name of the setting; ``steps`` is the least number of steps, which raises ``epochs``
                where there are few events.
            events: Training events of an epoch, about; 0 for not known.
        """
        missing = {
            name: value for name, value in defaults.items() if name != "steps" and getattr(self, name) is None
        }
        if "epochs" in missing and events:
            wanted = math.ceil(defaults.get("steps", 0) * self.batch_size / events)
            missing["epochs"] = max(missing["epochs"], min(MOST_EPOCHS, wanted))
        return self.model_copy(update=missing)


@dataclass(frozen=True)
class Weighting:
    """How an event's weight counts in training.

    Attributes:
        factors: By class what its weights are multiplied with; one for all when there are no classes.
        negative: What becomes of negative weights: they ``keep`` their sign, count by their ``absolute``
            value, or as ``zero``.
    """

    factors: tuple[float, ...] = (1.0,)
    negative: Literal["keep", "absolute", "zero"] = "keep"

    def of(self, y: Floats, weight: Floats) -> Floats:
        """Return the weights ``(events,)`` that count, of events with these class numbers (or targets)."""
        if self.negative == "absolute":
            weight = np.abs(weight)
        elif self.negative == "zero":
            weight = np.maximum(weight, np.float32(0))
        factors = np.asarray(self.factors, np.float32)
        if len(factors) > 1:
            return np.asarray(weight * factors[y.astype(np.int64)])
        return weight if factors[0] == 1 else np.asarray(weight * factors[0])


@dataclass(frozen=True)
class EpochReport:
    """What one epoch came to, over all workers.

    Attributes:
        epoch: Its number, from 1.
        epochs: How many there will be at most.
        loss: Weighted mean loss of the training events, as they were seen.
        validation_loss: The same of the validation events, after the epoch.
        scores: What else the validation events tell: ``auc`` and ``accuracy``, or ``r2``, ``mae``, ``rmse``;
            what they do not define is left out.
        without: Classes (or targets) that the AUC (or R²) leaves out, since they have no validation events.
        learning_rate: Step size at its end.
        events_per_s: Training events of all workers per second of training.
        seconds: Wall time of the epoch, validation included.
        waited: Share of the training time in which the slowest worker waited for events.
        left_s: Seconds until the last epoch's end, if all goes on like this.
    """

    epoch: int
    epochs: int
    loss: float
    validation_loss: float
    scores: Mapping[str, float]
    learning_rate: float
    events_per_s: float
    seconds: float
    waited: float
    left_s: float
    without: Sequence[str] = ()


@dataclass(frozen=True)
class StepReport:
    """How far an epoch has come.

    Attributes:
        epoch: Its number, from 1.
        epochs: How many there will be at most.
        events: Training events seen in it, by all workers.
        expected: How many there will be, about.
        loss: Mean loss of the events since the last report.
        events_per_s: Training events of all workers per second.
    """

    epoch: int
    epochs: int
    events: int
    expected: int
    loss: float
    events_per_s: float


@dataclass(frozen=True)
class TrainedModel:
    """A trained model on disk, ready to be packaged.

    Attributes:
        folder: Holds the model file(s), ``sample.npz`` and ``evaluation.npz``.
        model_format: What the file is that a service loads.
        signature: Names, types and shapes of the model's inputs and outputs.
        metrics: ``validation`` and ``training`` (scores of the last epoch), ``history`` (one entry an epoch),
            ``export_difference`` (largest between each exported file and the model in memory, by file), and
            ``time`` (seconds spent reading, waiting, computing).
        events: Training events seen, over all epochs and workers.
        seconds: Wall time of the epochs' training parts.
    """

    folder: Path
    model_format: ModelFormat
    signature: Signature
    metrics: dict[str, Any] = field(repr=False)
    events: int
    seconds: float

    @property
    def events_per_s(self) -> float:
        """Training events of all workers per second."""
        return self.events / self.seconds if self.seconds > 0 else 0.0
