"""Answers: what a model said to the events of one part of the split, as ``evaluation.npz`` keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.task import Task


@dataclass(frozen=True)
class Answers:
    """Events and answers.

    Attributes:
        prediction: ``(events, outputs)``.
        y: Class numbers ``(events,)``, or targets.
        weight: Weights that count, as in training and in all scores ``(events,)``.
        dataset: Index of each event's dataset ``(events,)``.
        events: How many there were, of which these are some.
        defined: Weights as the job defines them: events expected ``(events,)``; None for ``weight``.
        inputs: Values by column of the first of these events: the most important inputs.
    """

    prediction: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]
    dataset: npt.NDArray[np.int32]
    events: int
    defined: npt.NDArray[np.float32] | None = None
    inputs: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether these are all events."""
        return len(self.y) >= self.events

    @property
    def expected(self) -> npt.NDArray[np.float32]:
        """Weights in events expected."""
        return self.weight if self.defined is None else self.defined

    @classmethod
    def read(cls, package: Path, part: str) -> Answers:
        """Read those of ``validation`` or ``training`` from a package."""
        with np.load(package / "evaluation.npz") as arrays:
            names = ("prediction", "y", "dataset")
            values: dict[str, Any] = {name: arrays[f"{part}_{name}"] for name in names}
            defined, used = f"{part}_weight", f"{part}_used_weight"
            columns = arrays.get(f"{part}_columns", ())
            inputs = {str(name): arrays[f"{part}_inputs"][:, place] for place, name in enumerate(columns)}
            return cls(
                **values,
                weight=arrays[used if used in arrays else defined],
                events=int(arrays[f"{part}_events"]),
                defined=arrays[defined],
                inputs=inputs,
            )

    def taken(self, count: int) -> Answers:
        """Return the first of these events."""
        few = slice(count)
        return Answers(
            self.prediction[few],
            self.y[few],
            self.weight[few],
            self.dataset[few],
            self.events,
            self.expected[few],
            {name: values[few] for name, values in self.inputs.items()},
        )

    def choice(self, task: Task) -> npt.NDArray[np.int64]:
        """Return the class that each event is taken for."""
        if task.kind == "binary":
            return (self.prediction[:, 0] > 0.5).astype(np.int64)
        return np.asarray(self.prediction.argmax(axis=1), dtype=np.int64)
