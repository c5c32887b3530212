"""Scan: what one open file has of what is wanted, from its metadata alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mlaas_ray.core.columns import Kind
from mlaas_ray.core.errors import BranchMissingError, DataError, nearest
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.inputs import Inputs
from mlaas_ray.core.prepare import Rules, check, needed_branches
from mlaas_ray.core.views import grid_branches
from mlaas_ray.streaming.branches import choose, refuse
from mlaas_ray.streaming.events import Branch, Events
from mlaas_ray.streaming.settings import ReadingSettings
from mlaas_ray.streaming.source import Source

# Branches that identify an event, as experiments call them; the first that all files have split the events.
KEYS = (
    ("run", "luminosityBlock", "event"),
    ("runNumber", "eventNumber"),
    ("EventInfoAuxDyn.runNumber", "EventInfoAuxDyn.eventNumber"),
)


@dataclass(frozen=True)
class Request:
    """What is asked of every file; pickles.

    Attributes:
        inputs: What the model is to see.
        reading: How files are read.
        key: Branches that identify an event; None for those of :data:`KEYS` that there are.
        features: A known FeatureSpec: then nothing is chosen or measured.
        everything: Whether also what no model needs is measured, to be shown.
        extra: By dataset, what labels and weights need, of the files or defined.
        constants: Names of the numbers that labels and weights may name beside that, for messages.
    """

    inputs: Inputs
    reading: ReadingSettings
    key: tuple[str, ...] | None = None
    features: FeatureSpec | None = None
    everything: bool = False
    extra: tuple[tuple[str, ...], ...] = ()
    constants: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return what decides the result for one file, as JSON."""
        reading = {name: getattr(self.reading, name) for name in ("missing", "fill", "nested", "sample")}
        return {
            "inputs": self.inputs.model_dump(mode="json"),
            "reading": reading,
            "key": self.key,
            "features": self.features and self.features.digest,
            "everything": self.everything,
            **({"extra": self.extra} if any(self.extra) else {}),
        }

    @property
    def rules(self) -> Rules:
        """What is defined and selected."""
        return self.features or self.inputs

    def named(self, dataset: int) -> set[str]:
        """Return the branches of the file that features or expressions name, and labels and weights."""
        if self.features is not None:
            return needed_branches(self.features) | self.truth_branches(dataset)
        collections = set(self.inputs.objects)
        names = needed_branches(self.inputs, [*self.inputs.define, *collections]) - collections
        return names | self.truth_branches(dataset)

    def truth_branches(self, dataset: int) -> set[str]:
        """Return the branches of the file that a dataset's labels and weights need."""
        names = self.extra[dataset] if dataset < len(self.extra) else ()
        return needed_branches(self.rules, names, select=False) if names else set()


@dataclass(frozen=True)
class ScannedFile:
    """What was learnt of one file.

    Attributes:
        source: Where it lies.
        tree: Name of the tree; empty for formats without.
        format: ``TTree``, ``RNTuple``, ``Parquet``, ``CSV`` or ``JSON lines``.
        uuid: The file's own identifier.
        size: Bytes of the file.
        entries: Events in the tree.
        boundaries: First entry of each cluster of the branches, and last ``entries``.
        bytes: Uncompressed bytes of the branches.
        branches: Those that must be read, as far as the file has them; without their own bytes, so that the
            files of a dataset are alike.
        chosen: What the model is to see of this file: kind and length (1 unless fixed), definitions included.
        left_out: Branches that cannot be columns, with their types.
        dataset: Index of its sample.
        beside: The file's other trees, where nobody said which is wanted.
    """

    source: Source
    tree: str
    format: str
    uuid: str
    size: int
    entries: int
    boundaries: tuple[int, ...]
    bytes: int
    branches: Mapping[str, Branch] = field(repr=False)
    chosen: Mapping[str, tuple[Kind, int]] = field(repr=False)
    left_out: Mapping[str, str] = field(repr=False)
    dataset: int = 0
    beside: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Path or URL."""
        return self.source.path


@dataclass(frozen=True)
class SkippedFile:
    """A file that cannot be read, and is left out.

    Attributes:
        source: Where it lies.
        dataset: Index of its sample.
        reason: What is wrong with it.
    """

    source: Source
    dataset: int
    reason: str


def scan(
    events: Events, source: Source, dataset: int, request: Request, absent: Sequence[Branch] = ()
) -> ScannedFile:
    """Learn one file's entries, clusters and branches, without reading an event.

    One without entries has no branches that count: who wrote it may not have known them, or their types.

    Args:
        events: The open file.
        source: Where it lies.
        dataset: Index of its sample.
        request: What is wanted.
        absent: Branches of other files that this one lacks, and that will be filled.

    Raises:
        BranchMissingError: When it lacks a branch, and that is not allowed.
        DataError: When a branch was named that is not numeric, or has not the kind it must have.
        JobError: When an expression is wrong.
    """
    if not events.entries:
        return _scanned(events, source, dataset)
    there = events.branches
    where = f"{source.path}, tree {events.tree!r}" if events.tree else source.path
    for name in sorted(request.named(dataset) - set(there)) if request.reading.missing != "fill" else ():
        refuse(name, events.left_out, where)
    if request.features is not None:
        chosen, needed = _known(request.features, there, where, request.reading.missing == "fail")
    else:
        chosen = _chosen(events, where, request, absent)
        needed = needed_branches(request.inputs, chosen)
        if request.reading.missing == "fill":
            # a definition that this file alone does not allow is wanted nevertheless: what of it is there?
            needed |= needed_branches(request.inputs, request.inputs.define)
    needed |= request.truth_branches(dataset)
    lacking = sorted(needed - set(there))
    if lacking and request.reading.missing != "fill":
        known = (*there, *request.rules.define, *request.constants)
        raise BranchMissingError(f"no branch {lacking[0]!r} in {where}", nearest(lacking[0], known))
    keys = (
        [name for names in KEYS for name in names] if request.key is None else _key(request.key, there, where)
    )
    own = sorted((needed | {name for name in keys if is_integer(there.get(name))}) & set(there))
    return replace(
        _scanned(events, source, dataset),
        boundaries=tuple(int(edge) for edge in events.boundaries(own)) if own else (0, events.entries),
        bytes=sum(there[name].bytes for name in own),
        branches={name: replace(there[name], bytes=0) for name in own},
        chosen=chosen,
        left_out=dict(events.left_out),
    )


def _scanned(events: Events, source: Source, dataset: int) -> ScannedFile:
    """Return what is known of a file before its branches are looked at."""
    return ScannedFile(
        source=source,
        tree=events.tree,
        format=events.format,
        uuid=events.uuid,
        size=events.size,
        entries=events.entries,
        boundaries=(0,),
        bytes=0,
        branches={},
        chosen={},
        left_out={},
        dataset=dataset,
        beside=events.beside,
    )


def is_integer(branch: Branch | None) -> bool:
    """Tell whether a branch is one whole number an event, as identifiers are."""
    if branch is None or branch.kind != "flat":
        return False
    return np.dtype(branch.dtype).kind in "iu"


def _key(key: Sequence[str], there: Mapping[str, Branch], where: str) -> Sequence[str]:
    for name in key:
        if name not in there:
            raise BranchMissingError(
                f"no branch {name!r}, which is to identify events, in {where}", nearest(name, there)
            )
        if not is_integer(there[name]):
            raise DataError(
                f"{name!r} in {where} identifies no event: it is {there[name].kind} ({there[name].type})",
                "Name branches with one whole number an event",
            )
    return key


def _known(
    features: FeatureSpec, there: Mapping[str, Branch], where: str, strict: bool
) -> tuple[dict[str, tuple[Kind, int]], set[str]]:
    """Return what a known spec reads; its branches must be of its kinds."""
    needed = needed_branches(features)
    for name in sorted(needed - set(there)) if strict else ():
        raise BranchMissingError(f"no branch {name!r} in {where}", nearest(name, there))
    chosen: dict[str, tuple[Kind, int]] = {}
    for feature in features.features:
        length = feature.length if feature.kind == "fixed" else 1
        chosen[feature.name] = (feature.kind, length)
        branch = there.get(feature.name)
        if branch is not None and feature.name not in features.define and branch.kind != feature.kind:
            raise DataError(
                f"{feature.name!r} is {feature.kind} in the features, but {branch.kind} in {where}",
                "Read files of the layout the features were made from",
            )
    return chosen, needed


def _chosen(
    events: Events, where: str, request: Request, absent: Sequence[Branch]
) -> dict[str, tuple[Kind, int]]:
    """Return kind and length of what the model is to see of a file."""
    inputs = request.inputs
    there = {**events.branches, **{branch.name: branch for branch in absent}}
    lenient = request.reading.missing != "fail"
    kinds: dict[str, Kind] = {name: branch.kind for name, branch in there.items()}
    if inputs.define or inputs.select is not None or inputs.objects:
        kinds = _checked(inputs, kinds, where, lenient)
    names = list(choose(kinds, events.left_out, where, inputs.include, inputs.exclude, lenient=lenient))
    if inputs.representation == "grid":
        names = grid_branches(inputs, {name: kinds[name] for name in names})
    return {name: (kinds[name], there[name].length if name in there else 1) for name in names}


def _checked(inputs: Inputs, kinds: Mapping[str, Kind], where: str, lenient: bool) -> dict[str, Kind]:
    """Check the expressions against a file; add the kinds of what is defined."""
    try:
        return check(inputs, kinds)
    except BranchMissingError as error:
        if lenient:  # other files tell
            return dict(kinds)
        raise BranchMissingError(f"{error.message}, in {where}", error.remedy) from None
