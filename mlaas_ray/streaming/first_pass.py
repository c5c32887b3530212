"""The first pass: look into every file once, and learn the dimensions and ranges of what will be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mlaas_ray.core.errors import FileMissingError, FileUnreadableError
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.inputs import Inputs
from mlaas_ray.core.prepare import check_syntax
from mlaas_ray.core.statistics import Sketches, Summary
from mlaas_ray.streaming.doubles import named, opened, refuse_doubles
from mlaas_ray.streaming.layout import (
    all_branches,
    check_not_empty,
    common,
    key_of,
    shared,
    spec_of,
    unmeasured,
)
from mlaas_ray.streaming.measure import added, wishes
from mlaas_ray.streaming.memo import Memo, open_memo
from mlaas_ray.streaming.recall import recall, remember
from mlaas_ray.streaming.scan import Request, ScannedFile, SkippedFile
from mlaas_ray.streaming.settings import ReadingSettings
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.sources import Files, find_sources
from mlaas_ray.streaming.states import State, states, wait_until_settled
from mlaas_ray.streaming.survey import survey
from mlaas_ray.streaming.truth import Truth
from mlaas_ray.streaming.visit import Visit


@dataclass(frozen=True)
class Sample:
    """Files that make one dataset of a job, such as a simulated process.

    Attributes:
        files: Paths, globs, folders, lists, URLs or datasets of a catalogue.
        tree: Name of the tree; None for the only one of each file.
        label: Class of its events, or a target; or expressions for it, several for as many targets.
        name: What to call it.
        sources: The files, looked up; see :meth:`found`.
        weight: Expression for the weights of its events; None for 1.
        constants: Numbers that the expressions may name, such as ``xsec``.
        origin: Where the files can be got from, for the error when one is missing.
    """

    files: Files
    tree: str | None = None
    label: float | tuple[str, ...] = 0.0
    name: str = "dataset"
    sources: tuple[Source, ...] = field(default=(), repr=False)
    weight: str | None = None
    constants: Mapping[str, float] = field(default_factory=dict)
    origin: str | None = None

    @property
    def truth(self) -> Truth:
        """Labels and weights of its events."""
        return Truth(self.label, self.weight, self.constants)

    def summed(self, total: float) -> Sample:
        """Return the sample with the sum of its generator's weights, ``sum_weights`` in expressions."""
        return replace(self, constants={**self.constants, "sum_weights": total})

    def found(self, redirectors: Sequence[str] = ()) -> Sample:
        """Return the sample with its files looked up, one by one; raises what :func:`find_sources` does.

        A file may be named twice: see :func:`look_up`.
        """
        try:
            found = find_sources(self.files, redirectors=redirectors, allow_duplicates=True)
            return replace(self, sources=tuple(found))
        except FileMissingError as error:
            if self.origin is None:
                raise
            raise FileMissingError(error.message, f"Get it from: {self.origin}") from None


@dataclass(frozen=True)
class FirstPass:
    """What the first pass found: the input of training, and what ``mlaas inspect`` shows.

    Attributes:
        samples: The samples, in order.
        files: Their files, in order, without those that were skipped.
        features: The columns, with the statistics of all files.
        skipped: Files that cannot be read.
        missing: Branches that some files lack, by name, and those files' paths.
        sampled: Share of the clusters that was measured.
        key: Branches that identify an event, for the split; empty for file and entry.
        max_events: Events to read at most of each dataset.
        sketches: Of each dataset: what histograms are drawn from. Empty when nothing was measured.
        digests: Of each dataset, by branch: equal for branches that are equal in every event.
    """

    samples: tuple[Sample, ...]
    files: tuple[ScannedFile, ...]
    features: FeatureSpec
    skipped: tuple[SkippedFile, ...] = ()
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sampled: float = 1.0
    key: tuple[str, ...] = ()
    max_events: int | None = None
    sketches: tuple[Sketches, ...] = field(default=(), repr=False)
    digests: tuple[Mapping[str, int], ...] = field(default=(), repr=False)

    @property
    def entries(self) -> int:
        """Events to read of all files."""
        there = [
            sum(file.entries for file in self.files if file.dataset == index)
            for index in range(len(self.samples))
        ]
        return sum(there if self.max_events is None else [min(n, self.max_events) for n in there])

    @property
    def left_out(self) -> dict[str, str]:
        """Branches that cannot be columns, with their types."""
        layouts = {id(file.left_out): file.left_out for file in self.files}
        return {name: kind for layout in layouts.values() for name, kind in layout.items()}

    @property
    def choices(self) -> list[str]:
        """Which trees were chosen where files have several and nobody named one, a line each."""
        chosen: dict[tuple[str, tuple[str, ...]], list[ScannedFile]] = {}
        for file in self.files:
            if file.beside:
                chosen.setdefault((file.tree, file.beside), []).append(file)
        return [
            f"tree {tree!r} is taken of {files[0].path}"
            + (f" and {len(files) - 1:,} more files" if len(files) > 1 else "")
            + f", and not {', '.join(beside[:5])}"
            + (f", … ({len(beside)} in all)" if len(beside) > 5 else "")
            for (tree, beside), files in chosen.items()
        ]

    @property
    def complete(self) -> bool:
        """Whether the statistics are of every value that will be read."""
        measured = all(feature.statistics is not None for feature in self.features.features)
        return self.sampled >= 1 and bool(self.sketches) and measured


def first_pass(
    samples: Sequence[Sample],
    inputs: Inputs | None = None,
    *,
    reading: ReadingSettings | None = None,
    key: Sequence[str] | None = None,
    features: FeatureSpec | None = None,
    progress: bool | None = None,
    everything: bool = False,
) -> FirstPass:
    """Look into every file, spread over the cluster; what an earlier first pass learnt is remembered.

    What it reads follows from what must be known. Entries and clusters come from metadata; a multiplicity
    from the branch that counts the values; values are read only for the scaling, or when ``everything`` is
    wanted.

    Args:
        samples: What to read.
        inputs: What the model is to see; None for every numeric branch.
        reading: How files are read.
        key: Branches that identify an event for the split, whole numbers in every file; None for run,
            luminosity block and event (or their names elsewhere) where all files have them.
        features: A known FeatureSpec: then only entries and clusters are looked up, its branches are the
            ones read, and nothing is measured.
        progress: Whether to show a progress bar; None for only on a terminal.
        everything: Whether to measure also what this model does not need.

    Raises:
        DataError: Naming the file, tree and branch that cannot be used.
        JobError: When an expression is wrong, ``inputs.objects`` names nothing there is, or a file is read
            twice.
    """
    call = prepare_call(samples, inputs, reading=reading, key=key, features=features, everything=everything)
    return call.remembered() or call.run(progress)


def look_up(samples: Sequence[Sample], reading: ReadingSettings) -> list[Sample]:
    """Return the samples with their files looked up.

    Raises:
        JobError: When a file is named twice, in one or in two of them, unless the settings allow it.
        DataError: When a name matches nothing, or cannot be looked up.
    """
    found = [sample if sample.sources else sample.found(reading.redirectors) for sample in samples]
    if not reading.allow_duplicates:
        refuse_doubles(
            named(source, sample.tree, sample.name) for sample in found for source in sample.sources
        )
    return found


def prepare_call(
    samples: Sequence[Sample],
    inputs: Inputs | None = None,
    *,
    reading: ReadingSettings | None = None,
    key: Sequence[str] | None = None,
    features: FeatureSpec | None = None,
    everything: bool = False,
) -> Call:
    """Look up the files and their states; arguments as for :func:`first_pass`.

    For who wants to know what is remembered before a cluster is started.
    """
    inputs, reading = inputs or Inputs(), reading or ReadingSettings()
    check_syntax(inputs.define, inputs.select, inputs.objects)
    found = tuple(look_up(samples, reading))
    request = Request(
        inputs,
        reading,
        None if key is None else tuple(key),
        features,
        everything,
        tuple(sample.truth.names for sample in samples),
        tuple(sorted({name for sample in samples for name in sample.constants})),
    )
    memo = open_memo()
    sources = [source for sample in found for source in sample.sources]
    return Call(found, request, memo, states(sources) if memo is not None else [None] * len(sources))


@dataclass(frozen=True)
class Call:
    """A first pass to be made.

    Attributes:
        samples: With their files looked up.
        request: What is asked of every file.
        memo: What earlier ones learnt; None for off.
        states: Of the files, as they are.
    """

    samples: tuple[Sample, ...]
    request: Request
    memo: Memo | None
    states: Sequence[State | None]

    def remembered(self) -> FirstPass | None:
        """Return the result, if nothing has to be looked at; no file is opened, and Ray is not started."""
        if self.memo is None or None in self.states:
            return None
        content = recall(self.memo, self._key())
        if content is None:
            return None
        sources = [(source, index) for index, sample in enumerate(self.samples) for source in sample.sources]
        return self._checked(content.result(self.samples, sources, self.request))

    def run(self, progress: bool | None = None) -> FirstPass:
        """Look into the files, in Ray tasks."""
        if self.memo is not None:
            wait_until_settled(self.states)
        outcomes = survey(self.samples, self.request, self.memo, self.states, progress)
        found = self._checked(combined(self.samples, outcomes, self.request, progress))
        if self.memo is not None and None not in self.states and not found.skipped:
            remember(self.memo, self._key(), found)
            self.memo.trim()
        return found

    def _checked(self, found: FirstPass) -> FirstPass:
        """Refuse copies of a file, which tell that they are only when all files were opened."""
        if not self.request.reading.allow_duplicates:
            refuse_doubles(opened(file, self.samples[file.dataset].name) for file in found.files)
        return found

    def _key(self) -> list[object]:
        known = [
            [sample.tree, [[s.path, *s.alternatives, s.tree] for s in sample.sources]]
            for sample in self.samples
        ]
        limits = [self.request.reading.max_events, self.request.reading.bad_files.model_dump()]
        return [known, [state.key() for state in self.states if state], self.request.document(), limits]


def combined(
    samples: tuple[Sample, ...],
    outcomes: Sequence[Visit | SkippedFile],
    request: Request,
    progress: bool | None = None,
) -> FirstPass:
    """Put together what was learnt of all files; in their order, so that it does not matter who was first.

    Raises:
        EmptyDataError: When a dataset has no events, or no event passes the selection.
    """
    from mlaas_ray.streaming.census import check_passing  # which takes a first pass

    visits = [outcome for outcome in outcomes if isinstance(outcome, Visit)]
    skipped = tuple(outcome for outcome in outcomes if isinstance(outcome, SkippedFile))
    check_skipped(skipped, len(outcomes), request)
    files = tuple(shared([visit.file for visit in visits]))
    check_not_empty(files, [sample.name for sample in samples])
    filled = [file for file in files if file.entries]
    chosen, missing = common(filled, request)
    result = FirstPass(
        samples,
        files,
        request.features or unmeasured(chosen, request.inputs),
        skipped=skipped,
        missing=missing,
        sampled=request.reading.sample if request.features is None else 1.0,
        key=key_of(filled, request),
        max_events=request.reading.max_events,
    )
    check_passing(result, request.reading, progress)
    if request.features is not None:
        return result
    paths = {name: set(lacking) for name, lacking in missing.items() if name in chosen}
    sketches = tuple(
        Sketches.merged(
            [
                part
                for visit in visits
                if visit.file.dataset == index
                for part in _parts(visit, paths, request)
            ],
            list(chosen),
        )
        for index in range(len(samples))
    )
    full = {
        name
        for file in {id(file.chosen): file for file in files}.values()
        for name in wishes(file, request)[0]
    }
    features = spec_of(
        chosen,
        Sketches.merged(sketches),
        full,
        request.inputs,
        all_branches(files),
        sum(visit.events for visit in visits),
    )
    digests: list[Mapping[str, int]] = [{} for _ in samples]
    for visit in visits:
        digests[visit.file.dataset] = added(digests[visit.file.dataset], visit.digests)
    return replace(
        result, features=features, sketches=sketches if full else (), digests=tuple(digests) if full else ()
    )


def _parts(visit: Visit, paths: Mapping[str, set[str]], request: Request) -> list[Sketches]:
    """Return what was measured of a file, and the events for which it lacks a branch."""
    lacks = {name: Summary(missing=visit.events) for name, own in paths.items() if visit.file.path in own}
    return [
        *([visit.sketches] if visit.sketches is not None else []),
        *([Sketches.of(lacks)] if lacks else []),
    ]


def check_skipped(skipped: Sequence[SkippedFile], files: int, request: Request) -> None:
    """Refuse too many bad files.

    Raises:
        FileUnreadableError: Naming the first.
    """
    most = request.reading.bad_files.max_fraction
    if len(skipped) > most * files:
        raise FileUnreadableError(
            f"{len(skipped)} of {files} files cannot be read, and bad_files.max_fraction is {most:g}; "
            f"the first: {skipped[0].reason}",
            "Mend or leave out these files, or allow more",
        )


__all__ = [
    "FirstPass",
    "Sample",
    "ScannedFile",
    "SkippedFile",
    "all_branches",
    "first_pass",
    "look_up",
]
