"""Writing a report: the figures as PNG, and all of it as one HTML page."""

from __future__ import annotations

import base64
import contextlib
import io
import time
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray import __version__
from mlaas_ray.core import FeatureSpec
from mlaas_ray.core.task import Task
from mlaas_ray.streaming import Census, FirstPass
from mlaas_ray.workflows.job import Job
from mlaas_ray.workflows.report import figures, inputs
from mlaas_ray.workflows.report.answers import Answers
from mlaas_ray.workflows.report.drawing import FEW, Draw, style
from mlaas_ray.workflows.report.page import Picture, page_of
from mlaas_ray.workflows.spectators import values_of

PAGE = "report.html"


def write_report(
    folder: Path,
    package: Path,
    job: Job,
    features: FeatureSpec,
    census: Census,
    task: Task,
    metrics: dict[str, Any],
    beside: FirstPass | None = None,
) -> Path:
    """Write the report of a training.

    Args:
        folder: Where: ``report.html``, and a PNG for each figure.
        package: Holds ``evaluation.npz``.
        job: The job.
        features: The columns.
        census: How many events there were.
        task: What was learnt.
        metrics: What was measured in training.
        beside: What :func:`spectators` found.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    judged, trained = Answers.read(package, "validation"), Answers.read(package, "training")
    against = values_of(job, beside, judged, task.classes) if beside is not None else {}
    told = f"{job.name}, {time.strftime('%Y-%m-%d')}, {versions(job)}"
    pictures = []
    with style():
        for name, title, text, draw in _figures(judged, trained, job, census, task, metrics, against):
            content = _drawn(draw, told)
            (folder / f"{name}.png").write_bytes(content)
            pictures.append(Picture(title, text, base64.b64encode(content).decode()))
    page = page_of(job, features, census, task, metrics, judged, pictures)
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


def _figures(
    judged: Answers,
    trained: Answers,
    job: Job,
    census: Census,
    task: Task,
    metrics: dict[str, Any],
    against: Mapping[str, npt.NDArray[np.float32]],
) -> Iterator[tuple[str, str, str, Draw]]:
    """Give file name, title, explanation and drawing of each figure."""
    basis = f"{counted(judged, 'validation')}, {weights_said(job)}."
    yield (
        "history",
        "History",
        "The training loss is that of events as they were seen, before the network learnt from them; "
        f"validation: all events, after each epoch; {weights_said(job)}.",
        figures.history(metrics["history"], task, metrics.get("best_epoch")),
    )
    if task.kind == "regression":
        for number, name in enumerate(task.names):
            yield (
                f"target_{number}",
                f"Target {name}",
                f"Predictions against the truth, their residuals, and these against the truth. {basis}",
                figures.targets(judged, task, number),
            )
    else:
        yield from _of_classes(judged, trained, job, census, task, metrics, basis)
    few = judged.taken(len(next(iter((judged.inputs or against).values()), ())))
    if judged.inputs:
        yield from _of_inputs(few, job, task)
    if judged.inputs or against:
        yield _against(few, job, task, against)
    if metrics.get("importance"):
        yield (
            "importance",
            "Inputs that count",
            "What is lost when a branch has the value of another event; correlated branches share it. "
            f"Up to 1,000 validation events, {weights_said(job)}.",
            figures.importances(metrics["importance"], task),
        )
    yield ("time", "Where the time went", "Of the slowest worker.", figures.times(metrics["time"]))


def _of_classes(
    judged: Answers,
    trained: Answers,
    job: Job,
    census: Census,
    task: Task,
    metrics: dict[str, Any],
    basis: str,
) -> Iterator[tuple[str, str, str, Draw]]:
    numbers = metrics["validation"]
    areas = numbers.get("auc_by_class", {task.names[1]: numbers.get("auc")} if task.kind == "binary" else {})
    every = "" if judged.complete else " Areas: of all validation events."
    band = "; the band is one standard deviation" if task.outputs <= FEW else ""
    yield (
        "roc",
        "ROC curve",
        f"Each class against the others{band}. {basis}{every}",
        figures.rocs(judged, task, {} if judged.complete else areas),
    )
    yield (
        "scores",
        "Scores by class",
        "p: probability of a Kolmogorov-Smirnov distance of at least that between training and validation; "
        f"small: possible overtraining. {basis} {counted(trained, 'training')}.",
        figures.scores(judged, trained, task),
    )
    if task.kind == "binary":
        expected = [count.weight for count in census.classes(2)]
        yield (
            "cut",
            "Cut on the score",
            f"{counted(judged, 'validation')}, weights as the job defines them; S and B: sums of all events.",
            figures.cuts(judged, expected[1], expected[0]),
        )
    yield (
        "calibration",
        "Calibration",
        "Of the events that are given a probability, the share that is of the class, in 15 bins of equally "
        f"many events. {basis}",
        figures.calibrations(judged, task),
    )
    yield (
        "confusion",
        "Confusion",
        f"Events of each class, and the most probable class of each. {basis}",
        figures.confusions(judged, task),
    )


def _of_inputs(few: Answers, job: Job, task: Task) -> Iterator[tuple[str, str, str, Draw]]:
    basis = f"{counted(few, 'validation')}, {weights_said(job)}."
    spread = "; points: median, bars: 68 % and 95 % of the events" if task.classes > inputs.SHAPES else ""
    yield (
        "inputs",
        "Inputs",
        f"The most important inputs{spread}. {basis}",
        inputs.distributions(few, task),
    )
    if len(few.inputs) > 1:
        yield (
            "correlations",
            "Correlations",
            f"Linear correlations of the most important inputs. {basis}",
            inputs.correlation(few, task),
        )


def _against(
    few: Answers, job: Job, task: Task, chosen: Mapping[str, npt.NDArray[np.float32]]
) -> tuple[str, str, str, Draw]:
    basis = f"{counted(few, 'validation')}, {weights_said(job)}."
    what = (
        "Residuals, in deviations of the target,"
        if task.kind == "regression"
        else "Mean of the score, and the background after cuts on it,"
    )
    cut = f"; cuts keep {inputs.KEPT[1]:.0%} of the class" if task.kind == "multiclass" else ""
    return (
        "against",
        f"{'Score' if task.classes else 'Residuals'} against {'variables' if chosen else 'inputs'}",
        f"{what} against {'chosen variables' if chosen else 'the most important inputs'}{cut}. {basis}",
        inputs.against(few, task, chosen or dict(list(few.inputs.items())[:2])),
    )


def counted(answers: Answers, part: str) -> str:
    """Say which events a figure is of."""
    shown = len(answers.y)
    if answers.complete:
        return f"All {shown:,} {part} events"
    return f"{shown:,} of {answers.events:,} {part} events, chosen by a hash"


def weights_said(job: Job) -> str:
    """Say which weights count in all figures: those of training."""
    wish = job.weights
    if wish.expression is None and wish.balance == "none":
        return "each counts 1"
    parts = [wish.expression or "1"]
    if wish.balance == "classes":
        parts.append("classes balanced")
    if wish.negative is not None:
        parts.append(f"negative ones: {wish.negative}")
    return f"weights as in training ({', '.join(parts)})"


def versions(job: Job) -> str:
    """Return the versions of this package and of the framework."""
    told = f"mlaas-ray {__version__}"
    for name in (job.framework, f"{job.framework}-cpu"):
        with contextlib.suppress(PackageNotFoundError, ValueError):
            return f"{told}, {job.framework} {version(name)}"
    return told


def _drawn(draw: Draw, told: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    canvas: Any = FigureCanvasAgg(figure)
    draw(figure)
    figure.suptitle(told, fontsize=7.5, color="0.4", x=0.99, ha="right")
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a legend or a label that had to make room
        canvas.print_png(content)  # savefig would lay it out twice
    return content.getvalue()
