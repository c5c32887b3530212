"""Fault: why one attempt at a file's bytes failed, and whether another may succeed."""

from __future__ import annotations

from typing import Literal

# missing, denied and wrong stay what they are however often one asks the same server; refused: nobody
# answers; failing: the next attempt may well succeed.
Kind = Literal["missing", "denied", "wrong", "refused", "failing"]

MEANING: dict[Kind, str] = {
    "missing": "no such file",
    "denied": "permission denied",
    "wrong": "",  # the text says it
    "refused": "the server does not answer",
    "failing": "the server failed",
}


class Fault(OSError):  # noqa: N818 - what users see is one of core.errors, made of these
    """One attempt failed.

    Args:
        kind: What sort of failure it is.
        text: What the library or server said; may be empty.
        meaning: What that means, where it is more than the kind says.

    Attributes:
        kind: As given.
    """

    def __init__(self, kind: Kind, text: str = "", meaning: str = "") -> None:
        text = " ".join(text.split())[:300]
        meaning = meaning or MEANING[kind]
        super().__init__(f"{meaning} ({text})" if meaning and text else meaning or text)
        self.kind = kind

    @property
    def may_pass(self) -> bool:
        """Whether another attempt at the same server may succeed."""
        return self.kind in ("refused", "failing")
