"""Writing a report: the figures as PNG, and all of it as one HTML page."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlaas_ray.core import FeatureSpec
from mlaas_ray.core.task import Task
from mlaas_ray.streaming import Census
from mlaas_ray.workflows.job import Job
from mlaas_ray.workflows.report import figures
from mlaas_ray.workflows.report.answers import Answers
from mlaas_ray.workflows.report.page import Picture, page_of

PAGE = "report.html"


def write_report(
    folder: Path,
    package: Path,
    job: Job,
    features: FeatureSpec,
    census: Census,
    task: Task,
    metrics: dict[str, Any],
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

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    with figures.style():
        for name, title, text, draw in _figures(package, task, metrics):
            content = _drawn(draw)
            (folder / f"{name}.png").write_bytes(content)
            pictures.append(Picture(title, text, base64.b64encode(content).decode()))
    judged = Answers.read(package, "validation")
    page = page_of(job, features, census, task, metrics, judged, pictures)
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


def _figures(
    package: Path, task: Task, metrics: dict[str, Any]
) -> Iterator[tuple[str, str, str, figures.Draw]]:
    """Give file name, title, explanation and drawing of each figure."""
    judged, trained = Answers.read(package, "validation"), Answers.read(package, "training")
    yield (
        "history",
        "History",
        "The training loss is that of events as they were seen, before the network learnt from them.",
        figures.history(metrics["history"], task),
    )
    if task.kind == "regression":
        for number, name in enumerate(task.names):
            yield (
                f"target_{number}",
                f"Target {name}",
                "Validation events: what was predicted, and how far that was from the truth.",
                figures.targets(judged, task, number),
            )
    else:
        yield (
            "roc",
            "ROC curve",
            "Validation events; the band is one standard deviation.",
            figures.rocs(judged, task),
        )
        yield (
            "scores",
            "Scores by class",
            "If training and validation disagree (p is small), the model has learnt events by heart.",
            figures.scores(judged, trained, task),
        )
        yield (
            "calibration",
            "Calibration",
            "Of the events that are given a probability, as many should be of the class.",
            figures.calibrations(judged, task),
        )
        yield (
            "confusion",
            "Confusion",
            "Validation events of each class, and what they are taken for: the most probable class.",
            figures.confusions(judged, task),
        )
    if metrics.get("importance"):
        yield (
            "importance",
            "Inputs that count",
            "What is lost when a branch is that of another event. Branches that tell the same share it.",
            figures.importances(metrics["importance"], task),
        )
    yield ("time", "Where the time went", "Of the slowest worker.", figures.times(metrics["time"]))


def _drawn(draw: figures.Draw) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure()
    draw(figure)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a legend or a label that had to make room
        figure.savefig(content, format="png")
    return content.getvalue()
