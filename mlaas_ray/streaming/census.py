"""Census: how many events of each class pass the cuts, and what they weigh; counted before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import EmptyDataError
from mlaas_ray.core.prepare import computed
from mlaas_ray.core.syntax import conjuncts
from mlaas_ray.streaming.first_pass import FirstPass
from mlaas_ray.streaming.memo import open_memo
from mlaas_ray.streaming.pieces import ReadPiece
from mlaas_ray.streaming.plan import Plan
from mlaas_ray.streaming.read import event_reader, extents_of
from mlaas_ray.streaming.reading import Block, Reader
from mlaas_ray.streaming.settings import ReadingSettings
from mlaas_ray.streaming.tasks import spread

# What a plan takes an event to be, so that its blocks hold a million.
_ROW_BYTES = 110
# Blocks that one task counts.
_TASK_BLOCKS = 4


@dataclass(frozen=True)
class Count:
    """Some events.

    Attributes:
        events: How many.
        weight: Sum of their weights.
        squares: Sum of the weights' squares.
        negative: Events of negative weight.
        negative_weight: Sum of those weights.
    """

    events: int = 0
    weight: float = 0.0
    squares: float = 0.0
    negative: int = 0
    negative_weight: float = 0.0

    @classmethod
    def of(cls, weights: npt.NDArray[np.float32]) -> Self:
        """Count events of these weights."""
        w = weights.astype(np.float64)
        below = w[w < 0]
        return cls(len(w), float(w.sum()), float((w**2).sum()), len(below), float(below.sum()))

    def __add__(self, other: Count) -> Count:
        ours, theirs = asdict(self), asdict(other)
        return Count(**{name: ours[name] + theirs[name] for name in ours})


@dataclass
class DatasetCensus:
    """One dataset.

    Attributes:
        name: Its name.
        entries: Events before the cuts.
        passed: Events after each cut and those before it.
        labels: Events after all cuts by label; all under 0 when targets are learnt.
        targets: Of each target, number, sum and sum of squares of its values.
    """

    name: str
    entries: int = 0
    passed: list[int] = field(default_factory=list)
    labels: dict[float, Count] = field(default_factory=dict)
    targets: list[list[float]] = field(default_factory=list)

    @property
    def total(self) -> Count:
        """All events after all cuts."""
        return sum(self.labels.values(), Count())

    def add(self, other: DatasetCensus) -> None:
        """Count another part of the same dataset."""
        self.entries += other.entries
        self.passed = _summed(self.passed, other.passed)
        self.targets = [
            _summed(own, theirs)
            for own, theirs in zip(self.targets or [[]] * len(other.targets), other.targets, strict=True)
        ]
        for label, count in other.labels.items():
            self.labels[label] = self.labels.get(label, Count()) + count


@dataclass
class Census:
    """All datasets of a job.

    Attributes:
        cuts: The selection, taken apart where ``&`` joins it.
        datasets: In the job's order.
    """

    cuts: tuple[str, ...]
    datasets: tuple[DatasetCensus, ...]

    def classes(self, number: int) -> list[Count]:
        """Return the events of each of some classes, over all datasets."""
        return [
            sum((dataset.labels.get(float(label), Count()) for dataset in self.datasets), Count())
            for label in range(number)
        ]

    @property
    def total(self) -> Count:
        """All events after all cuts."""
        return sum((dataset.total for dataset in self.datasets), Count())

    def spread(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each target; 1 for one that is the same everywhere."""
        sums: list[list[float]] = []
        for targets in (dataset.targets for dataset in self.datasets if dataset.targets):
            sums = [
                _summed(own, theirs) for own, theirs in zip(sums or [[]] * len(targets), targets, strict=True)
            ]
        means = [total / max(1.0, count) for count, total, _ in sums]
        variances = [
            squares / max(1.0, count) - mean**2 for (count, _, squares), mean in zip(sums, means, strict=True)
        ]
        return means, [
            float(np.sqrt(variance)) if variance > 1e-12 * mean**2 else 1.0
            for variance, mean in zip(variances, means, strict=True)
        ]

    def flow(self) -> str:
        """Return the cut flow as lines of text, one a dataset."""
        lines = []
        for dataset in self.datasets:
            steps = [f"{dataset.entries:,} events"]
            steps += [f"{count:,} after {cut}" for cut, count in zip(self.cuts, dataset.passed, strict=True)]
            lines.append(f"{dataset.name}: " + ", ".join(steps))
        return "\n    ".join(lines)

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "cuts": list(self.cuts),
            "datasets": [
                {
                    **asdict(dataset),
                    "labels": [[label, asdict(count)] for label, count in sorted(dataset.labels.items())],
                }
                for dataset in self.datasets
            ],
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Census:
        """Read what :meth:`document` gave."""
        datasets = (
            DatasetCensus(**{**one, "labels": {label: Count(**count) for label, count in one["labels"]}})
            for one in document["datasets"]
        )
        return cls(tuple(document["cuts"]), tuple(datasets))


def remembered_census(found: FirstPass, classes: int = 0) -> Census | None:
    """Return what :func:`take_census` counted before; None when it would have to read."""
    memo = open_memo()
    known = memo.get("census", _key(found, classes)) if memo is not None else None
    return None if known is None else Census.of(known)


def take_census(
    found: FirstPass,
    *,
    reading: ReadingSettings | None = None,
    classes: int = 0,
    progress: bool | None = None,
) -> Census:
    """Count the events of a first pass; only what labels, weights and the selection need is read.

    Args:
        found: What the first pass found.
        reading: How files are read.
        classes: How many classes labels tell apart; 0 for targets.
        progress: Whether to show a bar; None for only on a terminal.

    Raises:
        LabelError: For a label that is no class, or a label or weight that is no number; names the event.
        DataError: Naming the file, tree and branch that cannot be read.
    """
    known = remembered_census(found, classes)
    if known is not None:
        return known
    memo = open_memo()
    key = _key(found, classes)
    census = _nothing(found)
    cuts = census.cuts
    plan = Plan(extents_of(found), _ROW_BYTES, max_events=found.max_events)
    if cuts or any(sample.truth.texts for sample in found.samples):
        reader = event_reader(found, reading=reading, classes=classes, bare=True)
        blocks = [Block("census", 0, index, pieces) for index, pieces in enumerate(plan.epoch(0))]
        calls = [
            (reader, blocks[start : start + _TASK_BLOCKS], cuts, classes)
            for start in range(0, len(blocks), _TASK_BLOCKS)
        ]
        for part in spread(_counted, calls, description="census", progress=progress):
            for dataset, counted in part.items():
                census.datasets[dataset].add(counted)
    else:
        for dataset, events in plan.planned.items():
            label = found.samples[dataset].truth.label
            assert isinstance(label, float | int)
            weights = Count(events, float(events), float(events))
            sums = [[float(events), events * float(label), events * float(label) ** 2]]
            census.datasets[dataset].add(
                DatasetCensus(
                    "", events, [], {float(label) if classes else 0.0: weights}, [] if classes else sums
                )
            )
    # what was lost of a file today may be read tomorrow
    whole = not found.skipped and sum(dataset.entries for dataset in census.datasets) == found.entries
    if memo is not None and whole:
        memo.put("census", key, census.document())
    return census


def check_passing(found: FirstPass, reading: ReadingSettings, progress: bool | None = None) -> None:
    """Refuse a selection that no event passes.

    Ever more events are looked at until one passes: mostly one of the first. Labels and weights are not.

    Raises:
        EmptyDataError: With the cut flow.
        DataError: Naming the file, tree and branch that cannot be read.
    """
    if found.features.select is None:
        return
    samples = tuple(replace(sample, label=0.0, weight=None) for sample in found.samples)
    reader = event_reader(replace(found, samples=samples), reading=reading, bare=True)
    plan = Plan(extents_of(found), 10 * _ROW_BYTES, max_events=found.max_events)
    blocks = (Block("census", 0, index, pieces) for index, pieces in enumerate(plan.epoch(0)))
    census, step = _nothing(found), 1
    while batch := list(islice(blocks, step)):
        calls = [(reader, [block], census.cuts, 0) for block in batch]
        for part in spread(_counted, calls, description="selection", progress=progress):
            for dataset, counted in part.items():
                census.datasets[dataset].add(counted)
        if census.total.events:
            return
        step *= 4
    if any(dataset.entries for dataset in census.datasets):  # and not only files that are skipped
        raise EmptyDataError("no event passes the selection", f"The cut flow:\n    {census.flow()}")


def _nothing(found: FirstPass) -> Census:
    """Return the census of no events."""
    cuts = tuple(conjuncts(found.features.select)) if found.features.select else ()
    return Census(cuts, tuple(DatasetCensus(sample.name, passed=[0] * len(cuts)) for sample in found.samples))


def _counted(
    reader: Reader, blocks: Sequence[Block], cuts: Sequence[str], classes: int
) -> dict[int, DatasetCensus]:
    """Count some blocks, by dataset."""
    result: dict[int, DatasetCensus] = {}
    for _, parts in reader.parts(blocks):
        for part in parts:
            dataset = reader.files[part.piece.file].dataset
            if part.error is None:
                own = result.setdefault(dataset, DatasetCensus("", passed=[0] * len(cuts)))
                own.add(_of_piece(part, reader, cuts, classes))
    return result


def _of_piece(part: ReadPiece, reader: Reader, cuts: Sequence[str], classes: int) -> DatasetCensus:
    events = part.piece.entries
    passed = list(_flow(part, reader, cuts))
    kept = slice(None) if part.mask is None else part.mask
    y, weight = part.y[kept], part.weight[kept]
    if not classes:
        flat = (y if y.ndim == 2 else y[:, None]).astype(np.float64)
        targets = [[float(len(one)), float(one.sum()), float((one**2).sum())] for one in flat.T]
        return DatasetCensus("", events, passed, {0.0: Count.of(weight)}, targets)
    labels = {float(label): Count.of(weight[y == label]) for label in np.unique(y)}
    return DatasetCensus("", events, passed, labels)


def _flow(part: ReadPiece, reader: Reader, cuts: Sequence[str]) -> Iterator[int]:
    """Give the events that are left after each cut."""
    left = np.ones(part.piece.entries, np.bool_)
    absent = reader.files[part.piece.file].absent
    for cut in cuts:
        value = computed(part.columns, reader.features, {"select": cut}, {}, absent)["select"]
        left &= (value != 0) & (value == value)
        yield int(left.sum())


def _summed(one: Sequence[Any], other: Sequence[Any]) -> list[Any]:
    if not one or not other:
        return list(one or other)
    return [a + b for a, b in zip(one, other, strict=True)]


def _key(found: FirstPass, classes: int) -> list[Any]:
    """Return what decides the result."""
    truths = [[s.name, s.truth.label, s.truth.weight, dict(s.truth.constants)] for s in found.samples]
    files = [[f.uuid, f.size, f.tree, f.entries, f.dataset] for f in found.files]
    return [files, truths, found.features.define, found.features.select, found.max_events, classes]
