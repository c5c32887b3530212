"""Survey: visits to all files of a first pass, spread over the cluster in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlaas_ray.streaming.layout import all_branches
from mlaas_ray.streaming.memo import Memo
from mlaas_ray.streaming.missing import valued
from mlaas_ray.streaming.scan import Request
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.states import State
from mlaas_ray.streaming.visit import Job, Outcome, Visit, visit

if TYPE_CHECKING:
    from mlaas_ray.streaming.first_pass import Sample

# A batch, one Ray task: large enough that a task's cost vanishes, small enough to share the work.
BATCH_FILES = 32
BATCH_BYTES = 400_000_000
# Batches there should be at least, so that several workers have something to do.
BATCHES = 16


def survey(
    samples: Sequence[Sample],
    request: Request,
    memo: Memo | None,
    states: Sequence[State | None],
    progress: bool | None,
) -> list[Outcome]:
    """Visit all files.

    Returns:
        What was learnt of each, in their order; with ``reading.max_events``, of the first ones that have so
        many events.

    Raises:
        DataError: For the first file that cannot be used.
    """
    jobs = [
        Job(source, source.tree or sample.tree, dataset)
        for dataset, sample in enumerate(samples)
        for source in sample.sources
    ]
    tour = _Tour(
        request, memo, progress, {job.source: state for job, state in zip(jobs, states, strict=True)}
    )
    if request.features is not None:
        jobs = [replace(job, measure=False) for job in jobs]
    if request.reading.max_events is None:
        outcomes = tour.go(jobs, "files")
    else:
        outcomes = _limited(tour, jobs, request.reading.max_events)
    return tour.finish(outcomes)


def _limited(tour: _Tour, jobs: Sequence[Job], most: int) -> list[Outcome]:
    """Visit as many files of each dataset as are needed for so many events, and measure only those."""
    outcomes: list[Outcome] = []
    for dataset in sorted({job.dataset for job in jobs}):
        waiting = [job for job in jobs if job.dataset == dataset]
        left, step = most, 1
        while waiting and left > 0:
            batch, waiting = waiting[:step], waiting[step:]
            step *= 2
            again: list[tuple[Job, Outcome]] = []
            for job, outcome in zip(
                batch, tour.go([replace(j, measure=False) for j in batch], "files"), strict=True
            ):
                if isinstance(outcome, Visit):
                    if left <= 0:
                        continue
                    stop = left if left < outcome.file.entries else None
                    left -= min(left, outcome.file.entries)
                    job = replace(job, stop=stop)
                again.append((job, outcome))
            if tour.measures:
                good = [job for job, outcome in again if isinstance(outcome, Visit)]
                seen = iter(tour.go(good, "first pass"))
                again = [
                    (job, next(seen) if isinstance(outcome, Visit) else outcome) for job, outcome in again
                ]
            outcomes += [outcome for _, outcome in again]
    return outcomes


class _Tour:
    """Visits files; remembers what was learnt of them.

    Args:
        request: What is asked of every file.
        memo: What is known already; None for nothing.
        progress: Whether to show a bar.
        states: Of the files.
    """

    def __init__(
        self,
        request: Request,
        memo: Memo | None,
        progress: bool | None,
        states: Mapping[Source, State | None],
    ) -> None:
        self._request = request
        self._memo = memo
        self._progress = progress
        self._states = states
        self._jobs: dict[tuple[int, Source], Job] = {}

    @property
    def measures(self) -> bool:
        """Whether anything is to be measured."""
        return self._request.features is None

    def go(self, jobs: Sequence[Job], description: str) -> list[Outcome]:
        """Visit files, except those that are known and unchanged."""
        outcomes: list[Outcome | None] = []
        todo: list[Job] = []
        for job in jobs:
            known, job = self._known(job)
            self._jobs[job.dataset, job.source] = job
            outcomes.append(known)
            if known is None:
                todo.append(job)
        fresh = self._visited(todo, description)
        for outcome in fresh:
            if isinstance(outcome, Visit) and not (outcome.rest or outcome.waits):
                self._remember(outcome)
        done = iter(fresh)
        return [next(done) if outcome is None else outcome for outcome in outcomes]

    def finish(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Measure what visits left over: the rest of large files, and files whose branches must be filled."""
        again = dict(self._again(outcomes))
        fresh = dict(zip(again, self.go(list(again.values()), "first pass"), strict=True))
        result = [fresh.get(index, outcome) for index, outcome in enumerate(outcomes)]
        jobs: list[Job] = []
        owner: list[int] = []
        for index, outcome in enumerate(result):
            if isinstance(outcome, Visit) and outcome.rest:
                job = self._jobs[outcome.file.dataset, outcome.file.source]
                jobs += [replace(job, ranges=(one,)) for one in outcome.rest]
                owner += [index] * len(outcome.rest)
        for index, more in zip(owner, self._visited(jobs, "first pass"), strict=True):
            before = result[index]
            if isinstance(before, Visit):
                result[index] = before.extended(more) if isinstance(more, Visit) else more
        for index in dict.fromkeys(owner):
            self._remember(result[index])
        return result

    def _again(self, outcomes: Sequence[Outcome]) -> Iterator[tuple[int, Job]]:
        """Give the files to be visited again, now that it is known which branches of others they lack."""
        reading = self._request.reading
        seen = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, Visit)]
        branches = all_branches([one.file for _, one in seen])
        chosen = {name for _, one in seen for name in one.file.chosen} if self.measures else set()
        for index, one in seen if reading.missing == "fill" else ():
            absent = tuple(b for n, b in sorted(branches.items()) if n not in one.file.branches)
            if one.waits or valued(absent, reading.fill) & chosen:
                yield index, replace(self._jobs[one.file.dataset, one.file.source], absent=absent)

    def _known(self, job: Job) -> tuple[Visit | None, Job]:
        """Return what is known of a file, and the job to learn it otherwise."""
        state = self._states.get(job.source)
        if self._memo is None or state is None:
            return None, job
        seen = self._memo.get("file", job.source.path)
        if seen is None:
            return None, job
        if seen["state"] != state.key():
            # what lies there now may be a better copy of the same file
            return None, replace(job, trusted=False)
        return self._memo.visit(seen["uuid"], seen["size"], job, self._request), job

    def _remember(self, outcome: Outcome) -> None:
        if self._memo is None or not isinstance(outcome, Visit):
            return
        job = self._jobs[outcome.file.dataset, outcome.file.source]
        state = self._states.get(job.source)
        if state is not None:
            about = {"state": state.key(), "uuid": outcome.file.uuid, "size": outcome.file.size}
            self._memo.put("file", job.source.path, about)
        self._memo.put_visit(outcome, job, self._request)

    def _visited(self, jobs: Sequence[Job], description: str) -> list[Outcome]:
        if not jobs:
            return []
        from mlaas_ray.streaming.tasks import spread  # which brings Ray

        batches = self._batches(jobs)
        answers = spread(
            visit,
            [(batch, self._request, self._memo) for batch in batches],
            description=description,
            progress=self._progress,
            sizes=[len(batch) for batch in batches],
        )
        return [outcome for answer in answers for outcome in answer]

    def _batches(self, jobs: Sequence[Job]) -> list[list[Job]]:
        most = max(1, min(BATCH_FILES, len(jobs) // BATCHES))
        batches: list[list[Job]] = []
        total = 0
        for job in jobs:
            state = self._states.get(job.source)
            size = state.size if state is not None else job.source.size or 0
            if not batches or len(batches[-1]) >= most or total + size > BATCH_BYTES:
                batches.append([])
                total = 0
            batches[-1].append(job)
            total += size
        return batches
