"""Answers: what a model said to the events of one part of the split, as ``evaluation.npz`` keeps it."""

from __future__ import annotations

from dataclasses import dataclass
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
        weight: Weights, as read ``(events,)``.
        dataset: Index of each event's dataset ``(events,)``.
        events: How many there were, of which these are some.
    """

    prediction: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]
    dataset: npt.NDArray[np.int32]
    events: int

    @classmethod
    def read(cls, package: Path, part: str) -> Answers:
        """Read those of ``validation`` or ``training`` from a package."""
        with np.load(package / "evaluation.npz") as arrays:
            names = ("prediction", "y", "weight", "dataset", "events")
            values: dict[str, Any] = {name: arrays[f"{part}_{name}"] for name in names}
        return cls(**{**values, "events": int(values["events"])})

    def choice(self, task: Task) -> npt.NDArray[np.int64]:
        """Return the class that each event is taken for."""
        if task.kind == "binary":
            return (self.prediction[:, 0] > 0.5).astype(np.int64)
        return np.asarray(self.prediction.argmax(axis=1), dtype=np.int64)
