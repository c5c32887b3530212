"""read_root: files to a Ray Dataset in one call; read_events: what a first pass found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray.data

from mlaas_ray.core.errors import JobError, nearest
from mlaas_ray.core.features import FeatureSpec, Normalisation
from mlaas_ray.core.inputs import Inputs, ObjectSettings
from mlaas_ray.core.prepare import needed_branches
from mlaas_ray.streaming.blocks import row_bytes
from mlaas_ray.streaming.events import Branch
from mlaas_ray.streaming.first_pass import FirstPass, Sample, ScannedFile, first_pass
from mlaas_ray.streaming.plan import Extent, Plan
from mlaas_ray.streaming.planned import PlannedEvents
from mlaas_ray.streaming.reading import Reader, ReadFile
from mlaas_ray.streaming.record import Record, RecordedFile
from mlaas_ray.streaming.root_datasource import ClusterEvents, dataset_of
from mlaas_ray.streaming.scatter import Bounds
from mlaas_ray.streaming.settings import ReadingSettings
from mlaas_ray.streaming.sources import Files
from mlaas_ray.streaming.split import WHOLE, Part
from mlaas_ray.streaming.tasks import ensure_ray


def read_root(
    files: Files,
    tree: str | None = None,
    *,
    features: FeatureSpec | None = None,
    branches: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    lengths: Mapping[str, int] | None = None,
    define: Mapping[str, str] | None = None,
    select: str | None = None,
    label: float | str = 0.0,
    weight: str | None = None,
    normalisation: Normalisation = "softclip",
    part: Part = WHOLE,
    key: Sequence[str] | None = None,
    seed: int = 0,
    shuffle: bool = False,
    reading: ReadingSettings | None = None,
    progress: bool | None = None,
) -> ray.data.Dataset:
    """Read events of ROOT (and Parquet, CSV, JSON lines) files as rows of fixed size.

    Args:
        files: Paths, globs, folders, text files of them, URLs, ``/store/…`` names; one or several.
        tree: Name of the tree; None for the only one of each file, or that of the events.
        features: The columns; None to find them in a first pass over the files.
        branches: Branch names or globs to read, when there are no features; None for every numeric branch.
        exclude: Branch names or globs to leave out.
        lengths: Objects to keep of each event by collection, ``{"Jet": 8}``; otherwise the largest
            multiplicity seen.
        define: New branches by name: expressions over those of the files.
        select: Expression: only events for which it is true are read.
        label: The column ``y``: a number for all events, or an expression.
        weight: Expression for the column ``weight``; None for 1.
        normalisation: Written into the features that the first pass makes.
        part: Part of the events, ``(0.0, 0.8)`` for one and ``(0.8, 1.0)`` for the rest of a split.
        key: Branches that identify an event for the split; None for run, luminosity block and event where
            all files have them, and else file and entry.
        seed: Seed of the split and of the order.
        shuffle: Whether events come in an order drawn from the seed, or in that of the files: by file and
            entry, in every run.
        reading: How files are read, and what may go wrong meanwhile.
        progress: Whether the first pass shows a bar; None for only on a terminal.

    Returns:
        Columns ``x`` float32 ``(features,)`` with NaN where there is no value, ``y``, ``weight``,
        ``dataset``, ``file``, ``entry``.

    Raises:
        DataError: Naming the file, tree and branch that cannot be used.

    Example:
        >>> events = read_root("ttbar/*.root", branches=["MET_pt", "Jet_*"], label=1)  # doctest: +SKIP
        >>> events.take_batch(2)["x"].shape  # doctest: +SKIP
        (2, 53)
    """
    if features is not None and (branches is not None or exclude or lengths or define or select):
        raise JobError(
            "features say which branches are read", "Give features, or branches/exclude/lengths/define/select"
        )
    inputs = Inputs(
        include=None if branches is None else tuple(branches),
        exclude=tuple(exclude),
        objects={name: ObjectSettings(length=length) for name, length in (lengths or {}).items()},
        define=dict(define or {}),
        select=select,
        normalise=normalisation,
    )
    found = first_pass(
        [Sample(files, tree, (label,) if isinstance(label, str) else label, weight=weight)],
        inputs,
        reading=reading,
        key=key,
        features=features,
        progress=progress,
    )
    return read_events(found, part=part, seed=seed, shuffle=shuffle, reading=reading)


def read_events(found: FirstPass, **options: Any) -> ray.data.Dataset:
    """Read the events of all samples of a first pass as a Ray Dataset.

    Args:
        found: What the first pass found.
        options: Those of :func:`planned_events`. Without ``shuffle`` the rows are in the plan's order in
            every run: by file and entry, where each block has several datasets' share within the block.

    Raises:
        JobError: For shares of datasets that there are not.
    """
    return dataset_of(planned_events(found, **options))


def cluster_events(found: FirstPass, *, record: Record | None = None, **options: Any) -> ClusterEvents:
    """Plan as :func:`planned_events`, for Ray Data to read on the cluster's CPUs and workers to train on."""
    record = record or new_record(found, options.get("reading"))
    return ClusterEvents(planned_events(found, record=record, **options), record)


def planned_events(
    found: FirstPass,
    *,
    part: Part = WHOLE,
    seed: int = 0,
    shuffle: bool = False,
    shares: Mapping[str, float] | None = None,
    reading: ReadingSettings | None = None,
    name: str = "events",
    record: Record | None = None,
    classes: int = 0,
) -> PlannedEvents:
    """Plan how the events of all samples of a first pass are read.

    Args:
        found: What the first pass found.
        part: Part of the events, as in :func:`read_root`.
        seed: Seed of the split and of the order.
        shuffle: Whether each epoch has an order of its own, drawn from seed and number.
        shares: By dataset: its part of every block; None for what there is of each.
        reading: How files are read.
        name: Of this reading in the record.
        record: Where to write down what became of every entry.
        classes: How many classes labels tell apart, so that others are refused; 0 for targets.

    Raises:
        JobError: For shares of datasets that there are not.
    """
    if record is None and (reading or ReadingSettings()).bad_files.policy == "skip":
        record = new_record(found, reading)
    plan = Plan(
        extents=extents_of(found),
        row_bytes=row_bytes(found.features.width),
        shares=_by_index(shares, found),
        seed=seed,
        shuffle=shuffle,
        max_events=found.max_events,
    )
    reader = event_reader(found, reading=reading, seed=seed, record=record, classes=classes)
    return PlannedEvents(plan, reader, name, part)


def extents_of(found: FirstPass) -> tuple[Extent, ...]:
    """Return the entries and clusters of all files."""
    return tuple(Extent(file.dataset, file.boundaries) for file in found.files)


def new_record(found: FirstPass, reading: ReadingSettings | None = None) -> Record:
    """Begin the record of reading what a first pass found."""
    names = [sample.name for sample in found.samples]
    files = [
        RecordedFile(file.path, names[file.dataset], file.entries, filled=tuple(_lacking(found, file)))
        for file in found.files
    ]
    files += [RecordedFile(bad.source.path, names[bad.dataset], 0, bad.reason) for bad in found.skipped]
    policy = (reading or ReadingSettings()).bad_files
    most = int(policy.max_fraction * len(files)) if policy.policy == "skip" else 0
    ensure_ray()
    return Record(files, most)


def event_reader(
    found: FirstPass,
    *,
    seed: int = 0,
    reading: ReadingSettings | None = None,
    record: Record | None = None,
    classes: int = 0,
    bare: bool = False,
) -> Reader:
    """Return what reads blocks of a first pass's files; arguments as of :func:`planned_events`."""
    spec = found.features
    # Statistics are not needed to read, and every reader has a copy.
    plain = tuple(feature.model_copy(update={"statistics": None}) for feature in spec.features)
    return Reader(
        files=tuple(_read_file(found, file) for file in found.files),
        features=spec.model_copy(update={"features": plain}),
        truths=tuple(sample.truth for sample in found.samples),
        classes=classes,
        settings=reading or ReadingSettings(),
        key=found.key,
        seed=seed,
        bounds=_bounds(found),
        record=record,
        bare=bare,
    )


def _read_file(found: FirstPass, file: ScannedFile) -> ReadFile:
    return ReadFile(
        source=file.source,
        tree=file.tree,
        uuid=file.uuid,
        dataset=file.dataset,
        row_bytes=file.bytes / max(1, file.entries),
        missing=tuple(_elsewhere(found, name) for name in _lacking(found, file)),
    )


def _lacking(found: FirstPass, file: ScannedFile) -> list[str]:
    """Return the branches to read that a file lacks."""
    names = (*(feature.name for feature in found.features.features), *found.samples[file.dataset].truth.names)
    needed = needed_branches(found.features, names) | set(found.key)
    return sorted(name for name in needed if name not in file.branches)


def _elsewhere(found: FirstPass, name: str) -> Branch:
    """Return a branch that one file lacks as another has it."""
    return next(file.branches[name] for file in found.files if name in file.branches)


def _bounds(found: FirstPass) -> Bounds | None:
    """Return the range of each feature's values; None when the first pass did not see all that is read."""
    # it measures selected events only, while the others' values are compared too
    if not found.complete or found.features.select is not None:
        return None
    return Bounds.of(found.features)


def _by_index(shares: Mapping[str, float] | None, found: FirstPass) -> dict[int, float] | None:
    if shares is None:
        return None
    names = [sample.name for sample in found.samples]
    for name, share in shares.items():
        if name not in names:
            raise JobError(f"a share of {name!r}, which is no dataset", nearest(name, names))
        if not share >= 0:
            raise JobError(f"the share of {name!r} is {share}", "Give a number of at least 0")
    if not any(shares.values()):
        raise JobError("all shares are 0", "Give at least one dataset a share")
    return {index: shares.get(name, 0.0) for index, name in enumerate(names)}
