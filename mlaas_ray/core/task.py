"""Task: what a model is to answer, and what its outputs mean."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

TaskKind = Literal["binary", "multiclass", "regression"]
LossKind = Literal["cross_entropy", "mse", "mae", "huber"]


class Task(BaseModel):
    """What a model is to answer for an event.

    ``binary``: the probability of class 1, ``(events, 1)``; ``multiclass``: that of every class,
    ``(events, classes)``; ``regression``: the targets in their own units, ``(events, targets)``.

    Attributes:
        kind: One of these.
        names: Of the classes in the order of their numbers, or of the targets.
        offset: With ``regression``: mean of each target; a network learns (target - offset) / scale.
        scale: With ``regression``: deviation of each target.
        loss: ``cross_entropy`` of classes; for targets ``mse``, ``mae`` or ``huber`` of what is learnt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: TaskKind = "binary"
    names: tuple[str, ...] = ("background", "signal")
    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    loss: LossKind = "cross_entropy"

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind") == "regression":
            targets = len(values.get("names", ("target",)))
            usual = {"names": ("target",), "offset": (0.0,) * targets, "scale": (1.0,) * targets}
            return {**usual, "loss": "mse", **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> Task:
        if self.kind == "binary" and len(self.names) != 2:
            raise ValueError("a binary task has two classes")
        if self.kind == "multiclass" and len(self.names) < 3:
            raise ValueError("a multiclass task has three classes or more")
        if (self.loss == "cross_entropy") == (self.kind == "regression"):
            raise ValueError(f"the loss {self.loss} is not one of {self.kind}")
        if self.kind == "regression" and not len(self.names) == len(self.offset) == len(self.scale) > 0:
            raise ValueError("each target has a name, an offset and a scale")
        return self

    @property
    def classes(self) -> int:
        """How many classes there are; 0 with ``regression``."""
        return 0 if self.kind == "regression" else len(self.names)

    @property
    def outputs(self) -> int:
        """Numbers the model answers with, for each event."""
        return 1 if self.kind == "binary" else len(self.names)

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one event's ``y``: one number, or several targets."""
        return (len(self.names),) if self.kind == "regression" and len(self.names) > 1 else ()

    @property
    def score(self) -> str:
        """The measure that tells most: the larger the better."""
        return "r2" if self.kind == "regression" else "auc"
