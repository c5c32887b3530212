"""The first pass: look into every file once, and learn the dimensions and ranges of what will be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import awkward as ak
import numpy as np

from mlaas_ray.core.columns import Kind
from mlaas_ray.core.errors import BranchMissingError, DataError, EmptyDataError, JobError, nearest
from mlaas_ray.core.features import Feature, FeatureSpec, Normalisation, Statistics
from mlaas_ray.core.inputs import Inputs
from mlaas_ray.streaming.files import Files, find_files
from mlaas_ray.streaming.settings import ReadingSettings
from mlaas_ray.streaming.shards import Shard, cut
from mlaas_ray.streaming.tasks import spread
from mlaas_ray.streaming.trees import branch_kinds, choose, naming, open_tree, read_arrays

# Uncompressed bytes of the chosen branches that one task of the first pass reads.
PASS_BYTES = 100_000_000


@dataclass(frozen=True)
class Sample:
    """Files that make one dataset of a job, such as a simulated process.

    Attributes:
        files: Paths, globs, folders, lists or URLs.
        tree: Name of the tree; None for the only one of each file.
        label: Class of its events.
        name: What to call it.
    """

    files: Files
    tree: str | None = None
    label: float = 0.0
    name: str = "dataset"

    def found(self) -> Sample:
        """Return the sample with its files looked up, one by one; raises what :func:`find_files` does."""
        return replace(self, files=find_files(self.files))


@dataclass(frozen=True)
class ScannedFile:
    """What was learnt of one file.

    Attributes:
        path: Path or URL.
        tree: Name of the tree.
        uuid: The file's own identifier.
        entries: Events in the tree.
        boundaries: First entry of each cluster of the chosen branches, and last ``entries``.
        bytes: Uncompressed bytes of the chosen branches.
        kinds: The chosen branches.
        left_out: Branches that cannot be columns, with their C++ types.
        dataset: Index of its sample.
    """

    path: str
    tree: str
    uuid: str
    entries: int
    boundaries: tuple[int, ...]
    bytes: int
    kinds: Mapping[str, Kind] = field(repr=False)
    left_out: Mapping[str, str] = field(repr=False)
    dataset: int = 0


@dataclass(frozen=True)
class FirstPass:
    """What the first pass found: the input of training, and what ``mlaas inspect`` shows.

    Attributes:
        samples: The samples, in order.
        files: Their files, in order.
        features: The columns, with the statistics of all files.
    """

    samples: tuple[Sample, ...]
    files: tuple[ScannedFile, ...]
    features: FeatureSpec

    @property
    def entries(self) -> int:
        """Events in all files."""
        return sum(file.entries for file in self.files)

    @property
    def left_out(self) -> dict[str, str]:
        """Branches that cannot be columns, with their C++ types."""
        return {name: kind for file in self.files for name, kind in file.left_out.items()}

    def shards(self, target: int) -> list[Shard]:
        """Cut all files into shards of about ``target`` entries, in file order."""
        return [
            Shard(
                path=file.path,
                tree=file.tree,
                uuid=file.uuid,
                start=start,
                stop=stop,
                dataset=file.dataset,
                file=index,
                label=self.samples[file.dataset].label,
            )
            for index, file in enumerate(self.files)
            for start, stop in cut(file.boundaries, target)
        ]


def first_pass(
    samples: Sequence[Sample],
    inputs: Inputs | None = None,
    *,
    reading: ReadingSettings | None = None,
    features: FeatureSpec | None = None,
    progress: bool | None = None,
) -> FirstPass:
    """Look into every file, spread over the cluster.

    Args:
        samples: What to read.
        inputs: What the model is to see; None for every numeric branch.
        reading: How files are read.
        features: A known FeatureSpec: then only entries and clusters are looked up, its branches are the
            ones read, and nothing is measured.
        progress: Whether to show a progress bar; None for only on a terminal.

    Raises:
        DataError: Naming the file, tree and branch that cannot be used.
        JobError: When ``inputs.objects`` names nothing there is.
    """
    inputs = inputs or Inputs()
    lengths = {name: rule.length for name, rule in inputs.objects.items() if rule.length is not None}
    jobs = [
        (path, sample.tree, inputs.include, inputs.exclude, features, index)
        for index, sample in enumerate(samples)
        for path in find_files(sample.files)
    ]
    files = spread(scan_file, jobs, description="files", progress=progress)
    for index, sample in enumerate(samples):
        own = [file for file in files if file.dataset == index]
        if not any(file.entries for file in own):
            others = f" and {len(own) - 1} more files are" if len(own) > 1 else " is"
            raise EmptyDataError(
                f"dataset {sample.name!r} has no events: {own[0].path}, tree {own[0].tree!r}{others} empty",
                "Leave it out, or give files with events",
            )
    found = FirstPass(tuple(samples), tuple(files), features) if features else None
    if found:
        return found
    kinds = _common_kinds(files)
    return FirstPass(
        tuple(samples), tuple(files), _measure(files, kinds, lengths, inputs.normalise, progress)
    )


def scan_file(
    path: str,
    tree: str | None,
    include: Sequence[str] | None,
    exclude: Sequence[str],
    features: FeatureSpec | None = None,
    dataset: int = 0,
) -> ScannedFile:
    """Learn one file's entries, clusters and branches, without reading an event."""
    opened = open_tree(path, tree)
    name = opened.object_path.strip("/").partition(";")[0]
    with naming(path, name):
        kinds, others = branch_kinds(opened)
        where = f"{path}, tree {name!r}"
        if features is not None:
            # Exact names: a branch of the spec may hold characters a glob would take for its own.
            chosen = _exactly(features, kinds, where)
        else:
            chosen = choose(kinds, others, where, include, exclude)
        branches = [opened[branch] for branch in chosen]
        common = set.intersection(*(set(branch.entry_offsets) for branch in branches))
        entries = int(opened.num_entries)
        return ScannedFile(
            path=path,
            tree=name,
            uuid=str(opened.file.uuid),
            entries=entries,
            boundaries=tuple(sorted({0, entries} | {int(edge) for edge in common if edge < entries})),
            bytes=sum(int(branch.uncompressed_bytes) for branch in branches),
            kinds=chosen,
            left_out=others,
            dataset=dataset,
        )


def measure_shard(shard: Shard, kinds: Mapping[str, Kind]) -> dict[str, tuple[Statistics, int]]:
    """Measure the branches of one shard: statistics of the values, and the largest multiplicity."""
    arrays = read_arrays(shard.path, shard.tree, list(kinds), shard.start, shard.stop)
    measured = {}
    with naming(shard.path, shard.tree):
        for name, kind in kinds.items():
            if kind == "flat":
                measured[name] = (Statistics.of(ak.to_numpy(arrays[name])), 1)
                continue
            counts = ak.to_numpy(ak.num(arrays[name], axis=1))
            values = ak.to_numpy(ak.flatten(arrays[name], axis=1))
            measured[name] = (Statistics.of(values), int(counts.max()) if len(counts) else 0)
    return measured


def _exactly(features: FeatureSpec, kinds: Mapping[str, Kind], where: str) -> dict[str, Kind]:
    for feature in features.features:
        if feature.name not in kinds:
            raise BranchMissingError(f"no branch {feature.name!r} in {where}", nearest(feature.name, kinds))
        if kinds[feature.name] != feature.kind:
            raise DataError(
                f"{feature.name!r} is {feature.kind} in the features, but {kinds[feature.name]} in {where}",
                "Read files of the layout the features were made from",
            )
    return {feature.name: feature.kind for feature in features.features}


def _common_kinds(files: Sequence[ScannedFile]) -> Mapping[str, Kind]:
    """Return the branches of all files, which must be the same: a column has one meaning."""
    first = files[0]
    for file in files[1:]:
        if file.kinds == first.kinds:
            continue
        for has, lacks in ((first, file), (file, first)):
            absent = sorted(set(has.kinds) - set(lacks.kinds))
            if absent:
                raise BranchMissingError(
                    f"branch {absent[0]!r} is in {has.path}, but not in {lacks.path}, tree {lacks.tree!r}"
                    + (f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""),
                    "Choose branches that all files have, with include and exclude",
                )
        name = next(name for name in first.kinds if first.kinds[name] != file.kinds[name])
        raise DataError(
            f"branch {name!r} is {first.kinds[name]} in {first.path}, but {file.kinds[name]} in {file.path}",
            f"Exclude {name!r}",
        )
    return first.kinds


def _measure(
    files: Sequence[ScannedFile],
    kinds: Mapping[str, Kind],
    lengths: Mapping[str, int],
    normalisation: Normalisation,
    progress: bool | None,
) -> FeatureSpec:
    shards = []
    for file in files:
        target = max(1, PASS_BYTES * file.entries // max(1, file.bytes))
        whole = Shard(path=file.path, tree=file.tree, uuid=file.uuid, start=0, stop=file.entries)
        shards += [replace(whole, start=start, stop=stop) for start, stop in cut(file.boundaries, target)]
    total = {name: (Statistics(), 0) for name in kinds}
    # Merged in the order of the files, so that the result does not depend on who finished first.
    for measured in spread(
        measure_shard, [(shard, dict(kinds)) for shard in shards], description="first pass", progress=progress
    ):
        for name, (statistics, multiplicity) in measured.items():
            seen, largest = total[name]
            total[name] = (seen.merge(statistics), max(largest, multiplicity))
    chosen = _lengths(kinds, lengths)
    features = [
        Feature(
            name=name,
            kind=kind,
            length=1 if kind == "flat" else chosen.get(name, total[name][1]),
            multiplicity=None if kind == "flat" else total[name][1],
            statistics=total[name][0],
        )
        for name, kind in kinds.items()
    ]
    return FeatureSpec.of(
        features, normalisation=normalisation, entries=int(np.sum([file.entries for file in files]))
    )


def _lengths(kinds: Mapping[str, Kind], lengths: Mapping[str, int]) -> dict[str, int]:
    """Give each jagged branch the length its collection or itself was given."""
    jagged = [name for name, kind in kinds.items() if kind == "jagged"]
    chosen: dict[str, int] = {}
    # A branch's own length is said last, so that it overrules its collection's.
    for key, length in sorted(lengths.items(), key=lambda item: item[0] in jagged):
        names = [name for name in jagged if name == key or fnmatchcase(name, f"{key}_*")]
        if not names:
            known = [*jagged, *{name.partition("_")[0] for name in jagged}]
            raise JobError(f"no jagged branch of a collection {key!r}", nearest(key, known))
        chosen |= dict.fromkeys(names, length)
    return chosen
