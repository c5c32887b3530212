"""Truth: what events are to be learnt as, and how much each counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.columns import Columns
from mlaas_ray.core.errors import LabelError
from mlaas_ray.core.expressions import Expression
from mlaas_ray.core.prepare import Rules, computed

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Truth:
    """Labels and weights of the events of one dataset.

    Attributes:
        label: A number for all events, or expressions: one for a class's number or a target, several for as
            many targets.
        weight: Expression; None for 1.
        constants: Numbers that the expressions may name, such as ``xsec``.
    """

    label: float | tuple[str, ...] = 0.0
    weight: str | None = None
    constants: Mapping[str, float] = field(default_factory=dict)

    @property
    def texts(self) -> dict[str, str]:
        """The expressions, by what they are for."""
        labels = self.label if isinstance(self.label, tuple) else ()
        texts = {
            f"label {number + 1}" if len(labels) > 1 else "label": text for number, text in enumerate(labels)
        }
        return texts if self.weight is None else {**texts, "weights": self.weight}

    @property
    def names(self) -> tuple[str, ...]:
        """What the expressions need, of the files or defined."""
        used = (Expression.parse(text, what).names for what, text in self.texts.items())
        return tuple(dict.fromkeys(name for names in used for name in names if name not in self.constants))

    @property
    def targets(self) -> int:
        """Numbers that are to be learnt of an event."""
        return len(self.label) if isinstance(self.label, tuple) else 1

    def of(
        self, columns: Columns, rules: Rules, events: int, absent: Mapping[str, str] | None = None
    ) -> tuple[Floats, Floats]:
        """Compute labels ``(events,)`` (or ``(events, targets)``) and weights ``(events,)``.

        Args:
            columns: The branches, by name.
            rules: What is defined.
            events: How many there are.
            absent: Columns that stand for branches that the file lacks, with the branches' numpy types.

        Raises:
            BranchMissingError: For a name that is no branch.
            FeatureError: When an expression gives objects where one number an event is due.
        """
        found = computed(columns, rules, self.texts, self.constants, absent)
        weight = found.pop("weights", None)
        if isinstance(self.label, tuple):
            y = np.stack([values.astype(np.float32) for values in found.values()], axis=1)
            y = y[:, 0] if len(self.label) == 1 else y
        else:
            y = np.full(events, self.label, np.float32)
        return y, np.ones(events, np.float32) if weight is None else weight.astype(np.float32)


def check_values(
    y: Floats,
    weight: Floats,
    kept: Mask | None,
    classes: int,
    where: str,
    start: int = 0,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Refuse labels and weights that cannot be learnt from.

    Args:
        y: Labels or targets.
        weight: Weights.
        kept: Which events count ``(events,)``; None for all.
        classes: How many there are; 0 for targets.
        where: File and tree, for messages.
        start: Entry of the first event.
        texts: The expressions they come from, as :attr:`Truth.texts`, for messages.

    Raises:
        LabelError: Naming the first event that has one, and the expression.
    """
    texts = texts or {}
    labels = [text for what, text in texts.items() if what != "weights"]
    remedy = "Leave such events out with select, as in isfinite(…)"
    checks = [("weight", texts.get("weights"), weight, ~np.isfinite(weight), remedy)]
    for number, values in enumerate(y.T if y.ndim == 2 else [y]):
        text = labels[number] if labels else None
        checks.append(("label", text, values, ~np.isfinite(values), remedy))
        if classes:
            beyond = (values < 0) | (values >= classes) | (values != np.floor(values))
            hint = f"Classes are numbered 0 to {classes - 1}: correct label, or task.classes"
            checks.append(("class", text, values, beyond, hint))
    for what, text, values, strange, hint in checks:
        found = np.flatnonzero(strange if kept is None else strange & kept)
        if len(found):
            first = int(found[0])
            raise LabelError(
                f"the {what}{'' if text is None else f' {text!r}'} of entry {start + first} in {where} is"
                f" {values[first]:g}" + (f" (and {len(found) - 1:,} more like it)" if len(found) > 1 else ""),
                hint,
            )
