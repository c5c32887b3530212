"""Examination: how a model can be run on this machine, how fast, and which of the ways is taken."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mlaas_ray.core.package import Signature

RuntimeName = Literal["onnxruntime", "signature", "frozen", "litert"]

# Of two that are as good as equally fast the one that comes first here: TensorFlow costs a replica three
# seconds to start, and 680 MB.
PREFERENCE: tuple[RuntimeName, ...] = ("onnxruntime", "litert", "frozen", "signature")
ALIKE = 1.1
# Largest difference from the reference with which a runtime is used.
TOLERANCE = 1e-5
# Rows of the batches that are timed, and of those that decide: a service's are seldom larger.
SIZES = (1, 8, 64, 512)
DECISIVE = (1, 8, 64)
# A batch is large enough when a row of it costs at most this times what it costs in a larger one.
GAIN = 1.1

Seconds = Annotated[dict[int, float], AfterValidator(lambda by_rows: dict(sorted(by_rows.items())))]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Candidate(_Frozen):
    """One way to run a model.

    Attributes:
        name: The runtime.
        seconds: Median time of a call, by rows; empty when it was not timed.
        difference: Largest difference from the reference, see :func:`difference`; None when not compared.
        reason: Why it cannot be used; None when it can.
    """

    name: RuntimeName
    seconds: Seconds = Field(default_factory=dict)
    difference: float | None = None
    reason: str | None = None


class Examination(_Frozen):
    """What was found about a model on this machine.

    Attributes:
        signature: Its inputs and outputs.
        threads: Threads one prediction may use.
        chosen: The runtime to use.
        batch_rows: Rows after which a larger batch hardly makes a row cheaper: what to batch to.
        seconds: Median time of a call of the chosen, by rows.
        candidates: All that were tried; the first is the reference.
    """

    signature: Signature
    threads: int
    chosen: RuntimeName
    batch_rows: int
    seconds: Seconds
    candidates: tuple[Candidate, ...] = Field(min_length=1)

    @classmethod
    def of(
        cls, signature: Signature, threads: int, candidates: list[Candidate], finer: dict[int, float]
    ) -> Examination:
        """Choose among candidates, the first of which is the reference.

        Args:
            signature: The model's inputs and outputs.
            threads: Threads one prediction may use.
            candidates: What was tried.
            finer: Times of the chosen at more sizes; empty when there are none.
        """
        chosen = choose(candidates)
        seconds = finer or chosen.seconds
        return cls(
            signature=signature,
            threads=threads,
            chosen=chosen.name,
            batch_rows=enough_rows(seconds),
            seconds=seconds,
            candidates=tuple(candidates),
        )

    @property
    def reference(self) -> RuntimeName:
        """The runtime the others were compared with."""
        return self.candidates[0].name

    def without_choice(self, reason: str) -> Examination:
        """Return the same with the reference chosen, and why the former choice cannot be used."""
        reference = self.candidates[0]
        others = (
            item.model_copy(update={"reason": reason}) if item.name == self.chosen else item
            for item in self.candidates[1:]
        )
        changed = {
            "chosen": reference.name,
            "batch_rows": enough_rows(reference.seconds),
            "seconds": reference.seconds,
            "candidates": (reference, *others),
        }
        return self.model_copy(update=changed)


def choose(candidates: list[Candidate]) -> Candidate:
    """Return the candidate with the smallest geometric mean of its times at :data:`DECISIVE` rows.

    Of those within :data:`ALIKE` times the best, the first of :data:`PREFERENCE`. The reference (the first)
    is always usable.
    """
    usable = [candidates[0], *(item for item in candidates[1:] if item.reason is None)]
    # a heavy model is timed with few rows only
    sizes = [rows for rows in DECISIVE if all(rows in item.seconds for item in usable)]
    if not sizes:
        return candidates[0]
    means = {item.name: float(np.mean([np.log(item.seconds[rows]) for rows in sizes])) for item in usable}
    best = min(means.values())
    alike = [item for item in usable if means[item.name] <= best + np.log(ALIKE)]
    return min(alike, key=lambda item: PREFERENCE.index(item.name))


def enough_rows(seconds: dict[int, float]) -> int:
    """Return the smallest batch in which a row costs at most :data:`GAIN` times the least it can cost."""
    a_row = {rows: time / rows for rows, time in sorted(seconds.items())}
    return next((rows for rows, time in a_row.items() if time <= GAIN * min(a_row.values())), 1)


def difference(answers: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Return the largest difference of answers; where those expected exceed 1, relative to the largest.

    Returns:
        Infinity for answers of another shape, and where only one of two is a number.
    """
    if answers.shape != expected.shape:
        return float("inf")
    if not answers.size:
        return 0.0
    first, second = answers.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(second) == np.isfinite(first)).all():
        return float("inf")
    finite = np.isfinite(second)
    if not finite.any():
        return 0.0
    scale = max(1.0, float(np.abs(second[finite]).max()))
    return float(np.abs(first[finite] - second[finite]).max()) / scale
