"""Cautions: inputs and classes from which little, or too much, will be learnt; said before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlaas_ray.core.statistics import Sketches

if TYPE_CHECKING:
    from mlaas_ray.streaming.census import Census
    from mlaas_ray.streaming.first_pass import FirstPass

# Events of a class below which a training, or its validation, says little.
FEW_TRAINING = 100
FEW_VALIDATION = 10
# Events to learn from for each column below which trees did better than networks (docs/training/quality.md).
FEW_FOR_A_NETWORK = 200
# Branches that a line names; --json and the package have all.
_SHOWN = 8


@dataclass(frozen=True)
class Caution:
    """One warning.

    Attributes:
        kind: What is wrong with it.
        names: Branches, or classes.
        datasets: Where it is so.
        text: What is the matter.
        remedy: What to do.
    """

    kind: Literal["missing", "constant", "duplicate", "few", "trees"]
    names: tuple[str, ...]
    datasets: tuple[str, ...]
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"warning: {self.text}. {self.remedy}."

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def cautions(
    found: FirstPass,
    census: Census | None = None,
    classes: Sequence[str] = (),
    parts: Sequence[tuple[float, float]] = (),
    *,
    network: bool = False,
) -> list[Caution]:
    """Return what should be looked at before a training on some events.

    Args:
        found: What the first pass found; of what it did not measure nothing is said.
        census: Events of each class after the cuts, if they were counted.
        classes: Names of the classes in the order of their labels; none when targets are learnt.
        parts: The intervals of [0, 1) whose events are learnt from and judged by.
        network: Whether it is one of our networks that learns, where trees could.
    """
    few = _few(census, classes, parts) if census is not None else ()
    trees = _trees(found, census, parts) if census is not None and network else ()
    return [*_poor(found), *_same(found), *few, *trees]


def _poor(found: FirstPass) -> Iterator[Caution]:
    """Tell of branches that have no value, or only one, in all datasets or in some."""
    datasets = tuple(sample.name for sample in found.samples)
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name, states in _states(found).items():
        kinds = [kind for kind, _ in states]
        for kind in ("missing", "constant"):
            where = tuple(d for d, own in zip(datasets, kinds, strict=True) if own == kind)
            if where:
                alike.setdefault((kind, where, len(set(states)) > 1), []).append(name)
    for (kind, where, differ), names in alike.items():
        state = ("have" if len(names) > 1 else "has") + " no value"
        if kind == "constant":
            state = ("are" if len(names) > 1 else "is") + " constant"
        others = ", ".join(dataset for dataset in datasets if dataset not in where)
        if others:
            place = f"in {', '.join(where)}, but not in {others}"
        elif differ:
            place = f"in each of {', '.join(where)}, with different values"
        else:
            place = f"in {'any event' if kind == 'missing' else 'all events'} of {_all(found)}"
        what = "The model can tell these datasets apart by that alone: unless it should, name it"
        yield Caution(
            kind,
            tuple(names),
            where,
            f"{_listed(names)} {state} {place}",
            f"{what if differ else 'Nothing can be learnt from that: name it'} in inputs.exclude",
        )


def _same(found: FirstPass) -> Iterator[Caution]:
    """Tell of branches that are equal in every event."""
    states = _states(found)
    groups: dict[tuple[Any, ...], list[str]] = {}
    for feature in found.features.features:
        name = feature.name
        values = [digests.get(name) for digests in found.digests]
        informative = len(set(states.get(name, ()))) > 1 or "varies" in {s[0] for s in states.get(name, ())}
        if values and None not in values and informative:
            groups.setdefault((feature.kind, *values), []).append(name)
    datasets = tuple(sample.name for sample in found.samples)
    for names in groups.values():
        if len(names) > 1:
            yield Caution(
                "duplicate",
                tuple(names),
                datasets,
                f"{_listed(names)} are the same in all events of {_all(found)}",
                f"Keep one: inputs.exclude: [{_listed(names[1:])}]",
            )


def _few(census: Census, classes: Sequence[str], parts: Sequence[tuple[float, float]]) -> Iterator[Caution]:
    """Tell of classes with few events to learn from, or to judge by."""
    learn, judge = (stop - start for start, stop in parts)
    # all targets are counted under one label
    for label, (name, count) in enumerate(
        zip(classes or [""], census.classes(len(classes) or 1), strict=True)
    ):
        events = count.events
        datasets = tuple(one.name for one in census.datasets if float(label) in one.labels)
        if events * learn < FEW_TRAINING or events * judge < FEW_VALIDATION:
            yield Caution(
                "few",
                (name,) if name else (),
                datasets,
                f"{f'class {name} has' if name else 'there are'} {events:,} events after the cuts "
                f"(in {', '.join(datasets)}), of which about {events * learn:.0f} are learnt from and "
                f"{events * judge:.0f} judged by",
                "Add files, loosen select, or enlarge split.validation: scores of so few say little",
            )


def _trees(found: FirstPass, census: Census, parts: Sequence[tuple[float, float]]) -> Iterator[Caution]:
    """Tell when there are so few events for the columns that trees are likely to do better."""
    start, stop = parts[0]
    events, width = census.total.events * (stop - start), found.features.width
    if 0 < events < FEW_FOR_A_NETWORK * width:
        yield Caution(
            "trees",
            (),
            tuple(sample.name for sample in found.samples),
            f"there are about {events:,.0f} events to learn from for {width} columns, {events / width:.0f}"
            " each: with"
            f" fewer than {FEW_FOR_A_NETWORK}, boosted trees often do better than a network",
            "Try framework: xgboost too, or leave out inputs that tell nothing",
        )


# What a branch is in one dataset: ("missing", 0), ("constant", value), ("varies", 0) or ("unknown", 0).
State = tuple[str, float]


def _states(found: FirstPass) -> dict[str, list[State]]:
    """Return what each branch is in each dataset, if it was measured."""
    if not found.sketches:
        return {}
    return {
        feature.name: [_state(sketches, feature.name) for sketches in found.sketches]
        for feature in found.features.features
    }


def _state(sketches: Sketches, name: str) -> State:
    if name not in sketches.names:
        return ("unknown", 0.0)
    row = sketches.names.index(name)
    count, nan, infinite, missing, largest = (int(one) for one in sketches.counts[row])
    if count == 0:
        # of a branch whose multiplicity alone was looked at, nothing else is known
        return ("unknown" if largest and not nan + infinite else "missing", 0.0)
    low, high = (np.float32(one) for one in sketches.moments[row, :2])
    # a value that is there in some events only tells something nevertheless
    return ("constant", float(low)) if low == high and not nan + infinite + missing else ("varies", 0.0)


def _listed(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _all(found: FirstPass) -> str:
    names = ", ".join(sample.name for sample in found.samples)
    return names + (" that were sampled" if found.sampled < 1 else "")
