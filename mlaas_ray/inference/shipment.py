"""Shipment: the rows of many models in the one message of a call, and the answers to them.

Rows lie end to end as bytes, and a short table says whose they are: pickling an array for each model would
cost more than a small model's prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import MlaasError
from mlaas_ray.inference.runtimes import Predictions


class ModelKey(NamedTuple):
    """One version of a model; its package's digest tells it from another of the same number."""

    name: str
    version: int
    digest: str

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the rows of one model.

    Attributes:
        answer: ``(events, outputs…)``; the error; None when the model is not in the replica's memory.
        seconds: What the model took for them.
        by_rows: Whether the error came of running these rows: without some of them it might not come.
    """

    answer: Predictions | MlaasError | None
    seconds: float = 0.0
    by_rows: bool = False


# in place of an answer's type
_BY_ROWS = "rows"

ModelRows = tuple[ModelKey, npt.NDArray[Any]]
Packed = tuple[list[tuple[str, int, str, int, int, str]], bytes]
PackedOutcomes = tuple[list[tuple[tuple[int, ...] | MlaasError | None, str, float]], bytes]


def pack(loads: Sequence[ModelRows]) -> Packed:
    """Pack the rows ``(events, features)`` of several models, each in the type that it takes."""
    table = [(*key, *rows.shape, rows.dtype.char) for key, rows in loads]
    return table, b"".join([np.ascontiguousarray(rows).data for _, rows in loads])


def unpack(packed: Packed) -> list[ModelRows]:
    """Undo :func:`pack`; the rows are views, unless another model's lie so that theirs are not aligned."""
    table, data = packed
    loads = []
    start = 0
    for name, version, digest, count, width, kind in table:
        rows: npt.NDArray[Any] = np.ndarray((count, width), kind, data, start)
        start += rows.nbytes
        loads.append((ModelKey(name, version, digest), rows if rows.flags.aligned else rows.copy()))
    return loads


def pack_outcomes(outcomes: Sequence[Outcome]) -> PackedOutcomes:
    """Pack what became of each model's rows."""
    table: list[tuple[tuple[int, ...] | MlaasError | None, str, float]] = []
    parts = []
    for outcome in outcomes:
        answer = outcome.answer
        if isinstance(answer, np.ndarray):
            parts.append(np.ascontiguousarray(answer).tobytes())
            table.append((answer.shape, answer.dtype.str, outcome.seconds))
        else:
            table.append((answer, _BY_ROWS if outcome.by_rows else "", outcome.seconds))
    return table, b"".join(parts)


def unpack_outcomes(packed: PackedOutcomes) -> list[Outcome]:
    """Undo :func:`pack_outcomes`; the answers are views."""
    table, data = packed
    outcomes = []
    start = 0
    for shape, kind, seconds in table:
        if not isinstance(shape, tuple):
            outcomes.append(Outcome(shape, seconds, kind == _BY_ROWS))
            continue
        count = math.prod(shape)
        answer = np.frombuffer(data, kind, count, start).reshape(shape)
        start += answer.nbytes
        outcomes.append(Outcome(answer, seconds))
    return outcomes
