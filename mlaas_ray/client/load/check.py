"""Whether each answer under load is the one its own row has when it is asked alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

# Rows that are computed together may round differently from a row alone.
_RELATIVE = 1e-5
_ABSOLUTE = 1e-6


class Check:
    """Compares answers of ``/json`` with references; to be given to :class:`Load` as its judge.

    Args:
        references: The answer to each call, ``[p0, …]``, None where a prediction is NaN.

    Attributes:
        answers: Answers compared.
        wrong: Those that differ by more than rounding does.
        largest: The largest difference of a number in them.
    """

    def __init__(self, references: Sequence[Sequence[float | None]]) -> None:
        self._references = references
        self.answers = self.wrong = 0
        self.largest = 0.0

    def __call__(self, number: int, body: bytes) -> None:
        """Compare the answer to a call."""
        self.answers += 1
        reference = self._references[number]
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, list) or len(answer) != len(reference):
            self.wrong += 1
            return
        same = [self._same(one, other) for one, other in zip(answer, reference, strict=True)]
        self.wrong += not all(same)

    def document(self) -> dict[str, Any]:
        """Return what was found; answers can tell rows apart only as far as the references differ."""
        distinct = len({tuple(reference) for reference in self._references})
        return {
            "answers": self.answers,
            "wrong": self.wrong,
            "largest_difference": self.largest,
            "distinct": distinct,
        }

    def _same(self, one: Any, other: float | None) -> bool:
        if other is None or not isinstance(one, int | float):
            return one is other
        difference = abs(one - other)
        self.largest = max(self.largest, difference)
        return difference <= _ABSOLUTE + _RELATIVE * abs(other)
