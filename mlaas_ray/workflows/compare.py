"""compare: two models on the same held-out events, with uncertainties."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import ray

from mlaas_ray.core.errors import EmptyDataError, JobError, PackageError
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.core.task import Task
from mlaas_ray.inference.runtimes import load_runtime
from mlaas_ray.streaming import FirstPass, PlannedEvents, first_pass, look_up, planned_events, take_census
from mlaas_ray.training.batches import block_arrays
from mlaas_ray.training.metrics import area_under, explained, losses, mean_of_known, scores_of
from mlaas_ray.workflows.cluster import connected
from mlaas_ray.workflows.job import Job
from mlaas_ray.workflows.learning import weighting_of
from mlaas_ray.workflows.sums import summed

Array = npt.NDArray[Any]
Verdict = Literal["better", "worse", "not significantly different"]

# Two samples of the same distribution are further apart than this once in twenty times.
SIGNIFICANT = 1.96
REPLICAS = 400
_IDS = ("dataset", "file", "entry")


@dataclass(frozen=True)
class Measure:
    """One number of two models, and its difference.

    Attributes:
        first: Of the first model.
        first_error: Its standard error.
        second: Of the second.
        second_error: Its standard error.
        difference: Second minus first.
        error: Standard error of the difference: of paired events, so smaller than the others suggest.
    """

    first: float
    first_error: float
    second: float
    second_error: float
    difference: float
    error: float

    @property
    def deviations(self) -> float:
        """The difference in standard errors."""
        if self.error > 0:
            return self.difference / self.error
        return 0.0 if self.difference == 0 else math.copysign(math.inf, self.difference)

    @property
    def p_value(self) -> float:
        """Probability of such a difference, or a larger one, between equally good models."""
        return math.erfc(abs(self.deviations) / math.sqrt(2))


@dataclass(frozen=True)
class Comparison:
    """Two models on the same events.

    Attributes:
        score: ``auc`` (over several classes the mean) or ``r2``: the larger the better.
        loss: The smaller the better; of targets with the scale of the first model, for both.
        events: How many were compared.
        part: Of the split: ``test`` or ``validation``.
        name: Of the score.
        without: Classes (or targets) that the score leaves out, since there are no such events.
    """

    score: Measure
    loss: Measure
    events: int
    part: str
    name: str
    without: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Whether the second is better."""
        if abs(self.score.deviations) < SIGNIFICANT:
            return "not significantly different"
        return "better" if self.score.difference > 0 else "worse"

    def sentence(self, first: str, second: str) -> str:
        """Return the verdict in words."""
        score = self.score
        label = {"auc": "AUC", "r2": "R²"}[self.name]
        return (
            f"{second} is {self.verdict} {'from' if 'not' in self.verdict else 'than'} {first} on "
            f"{self.events:,} {self.part} events: {label} {score.second:.4f} against {score.first:.4f}, "
            f"difference {score.difference:+.4f} ± {score.error:.4f} (p = {score.p_value:.2g})"
            + (f"; without {', '.join(self.without)}, which these events do not tell" if self.without else "")
        )

    def document(self) -> dict[str, Any]:
        """Return it as JSON, which knows no infinity: a difference without error has no ``deviations``."""
        measures = {
            name: {
                **asdict(measure),
                "deviations": measure.deviations if math.isfinite(measure.deviations) else None,
                "p_value": measure.p_value,
            }
            for name, measure in ((self.name, self.score), ("loss", self.loss))
        }
        without = {"without": list(self.without)} if self.without else {}
        return {"verdict": self.verdict, "events": self.events, "part": self.part, **measures, **without}


def compare(
    first: ModelPackage,
    second: ModelPackage,
    job: Job,
    *,
    address: str | None = None,
    progress: bool | None = None,
    on_stage: Callable[[str], None] = lambda what: None,
) -> Comparison:
    """Ask two models about the same held-out events, each on columns of its own.

    Args:
        first: One package.
        second: The other.
        job: Says which files, how they are split, labels and weights, which count as in a training of this
            job. The events are those of the test part, or, where there is none, of the validation part.
        address: Ray cluster.
        progress: Whether to show a bar.
        on_stage: Called with what begins and takes seconds, and with nothing when that ended.

    Raises:
        PackageError: When a package does not say what it answers, or they answer different questions.
        DataError: Naming the file, tree and branch that cannot be used; or when the events define no score.
    """
    task = _common_task(first, second)
    on_stage("looking for the files")
    samples = look_up(job.samples({}), job.reading)
    on_stage("starting Ray")
    with connected(address):
        on_stage("")
        samples = summed(job, samples)
        options: dict[str, Any] = {"reading": job.reading, "progress": progress}
        found = [
            first_pass(samples, key=job.split.key, features=package.features, **options)
            for package in (first, second)
        ]
        census = take_census(found[0], classes=task.classes, **options)
        answers = [
            _answers(package, task, one, job, on_stage)
            for package, one in zip((first, second), found, strict=True)
        ]
    on_stage("resampling the events")
    one, other = (_ordered(answer) for answer in answers)
    if len(one["entry"]) != len(other["entry"]) or any((one[n] != other[n]).any() for n in _IDS):
        raise JobError(
            "the two models do not select the same events", "Compare models with the same select and split"
        )
    if not len(one["entry"]):
        raise JobError("there are no held-out events", "Enlarge split.test or split.validation")
    part = "test" if job.split.test else "validation"
    weight = weighting_of(job, census).of(one["y"], one["weight"])
    return compared(one["prediction"], other["prediction"], one["y"], weight, task, part)


def compared(one: Array, other: Array, y: Array, weight: Array, task: Task, part: str) -> Comparison:
    """Compare answers ``(events, outputs)`` to the same events, with the weights that count in training.

    Errors are those of a Poisson bootstrap: each replica counts every event 0, 1, 2, … times.

    Raises:
        EmptyDataError: When these events define no score.
    """
    random = np.random.default_rng(0)
    w = weight.astype(np.float64)
    measures = [_Score(answers, y, task) for answers in (one, other)]
    each = [losses(task, answers, y) for answers in (one, other)]
    summaries = []
    for answers in (one, other):
        counted = scores_of(task)
        counted.add(answers, y, weight)
        summaries.append(counted.summary())
    nominal = [summary[task.score] for summary in summaries]
    means = [summary["loss"] for summary in summaries]
    without = tuple(summaries[0].get("without", ()))
    if None in nominal + means:
        raise EmptyDataError(
            f"{len(w):,} {part} events define no {task.score}"
            + (f": there is nothing to judge {', '.join(without)} by" if without else ""),
            f"Enlarge split.{part}, or look at weights",
        )
    scores, averages = np.empty((REPLICAS, 2)), np.empty((REPLICAS, 2))
    for number in range(REPLICAS):
        replica = w * random.poisson(1.0, len(w))
        total = replica.sum() if replica.sum() > 0 else np.nan
        scores[number] = [measure.of(replica) for measure in measures]
        averages[number] = [float(replica @ loss) / total for loss in each]
    return Comparison(_measure(nominal, scores), _measure(means, averages), len(w), part, task.score, without)


class _Score:
    """The task's score of some answers, for any weights: what can be sorted is sorted once."""

    def __init__(self, answers: Array, y: Array, task: Task) -> None:
        self._task = task
        self._truth = y.reshape(len(y), -1).astype(np.float64)
        self._answers = answers.astype(np.float64)
        self._sorted = []
        if task.classes:
            numbers = [1] if task.kind == "binary" else range(task.classes)
            for column, label in enumerate(numbers):
                order = np.argsort(answers[:, column], kind="stable")
                score = answers[order, column]
                starts = np.flatnonzero(np.append(True, score[1:] != score[:-1]))
                self._sorted.append((order, starts, y[order] == label))

    def of(self, weight: Array) -> float:
        known = mean_of_known(self._areas(weight) if self._task.classes else self._explained(weight))
        return np.nan if known is None else known

    def _areas(self, weight: Array) -> list[float | None]:
        areas = []
        for order, starts, signal in self._sorted:
            w = weight[order]
            background = np.add.reduceat(np.where(signal, 0.0, w), starts)
            areas.append(area_under(background, np.add.reduceat(np.where(signal, w, 0.0), starts)))
        return areas

    def _explained(self, weight: Array) -> Array:
        total = weight.sum() if weight.sum() > 0 else np.nan
        mean = weight @ self._truth / total
        variance = weight @ (self._truth - mean) ** 2 / total
        unexplained = weight @ (self._answers - self._truth) ** 2 / total
        return explained(unexplained, variance, variance)


def _measure(nominal: list[float], replicas: Array) -> Measure:
    replicas = replicas[np.isfinite(replicas).all(axis=1)]  # those that define both
    if len(replicas) < 2:
        first, second = nominal
        return Measure(first, np.inf, second, np.inf, second - first, np.inf)
    errors = replicas.std(axis=0, ddof=1)
    difference = (replicas[:, 1] - replicas[:, 0]).std(ddof=1)
    first, second = nominal
    return Measure(first, float(errors[0]), second, float(errors[1]), second - first, float(difference))


def _common_task(first: ModelPackage, second: ModelPackage) -> Task:
    tasks = []
    for package in (first, second):
        if package.task is None or package.features is None:
            raise PackageError(
                f"{package.path} does not say what it answers to which columns", "Compare trained packages"
            )
        tasks.append(package.task)
    one, other = tasks
    if one.kind != other.kind or one.outputs != other.outputs:
        raise PackageError(
            f"one model is {one.kind}, {one.outputs} outputs, the other {other.kind}, {other.outputs}",
            "Compare models of one task",
        )
    return one


def _answers(
    package: ModelPackage, task: Task, found: FirstPass, job: Job, on_stage: Callable[[str], None]
) -> dict[str, Array]:
    """Ask one model, in tasks that read and answer."""
    events = planned_events(
        found, part=job.split.held_out, seed=job.seed, reading=job.reading, classes=task.classes
    )
    package.check()
    blocks = range(events.blocks(0))
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
    tasks = min(cpus, len(blocks))
    # TensorFlow may come into such a process: it ends with the task
    ask = ray.remote(max_calls=1)(_ask)
    shared = ray.put(events)
    waiting = [ask.remote(shared, list(blocks[number::tasks]), str(package.path)) for number in range(tasks)]
    on_stage(f"asking the model in {package.path}")
    parts = [part for part in ray.get(waiting) if part]
    on_stage("")
    names = ("prediction", "y", "weight", *_IDS)
    if not parts:
        return {name: np.empty(0) for name in names}
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _ask(events: PlannedEvents, blocks: list[int], package: str) -> dict[str, Array]:
    events.prepare()
    runtime = load_runtime(ModelPackage(package), threads=1)
    parts: dict[str, list[Array]] = {}
    for table in events.tables(0, blocks):
        for rows in block_arrays(table, ("x", "y", "weight", *_IDS)):
            x = rows.pop("x")
            rows["prediction"] = np.concatenate(
                [runtime.run(x[start : start + 8192]) for start in range(0, len(x), 8192)]
            )
            for name, values in rows.items():
                parts.setdefault(name, []).append(np.array(values))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _ordered(answers: dict[str, Array]) -> dict[str, Array]:
    order = np.lexsort(tuple(answers[name] for name in reversed(_IDS)))
    return {name: values[order] for name, values in answers.items()}
