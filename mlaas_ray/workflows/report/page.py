"""The page of a report: HTML without scripts, in which the pictures lie themselves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import yaml

from mlaas_ray import __version__
from mlaas_ray.core import FeatureSpec
from mlaas_ray.core.task import Task
from mlaas_ray.streaming import Census
from mlaas_ray.workflows.job import Job
from mlaas_ray.workflows.report.answers import Answers
from mlaas_ray.workflows.report.numbers import best_cut, confusion, effective, purities, roc

_NAMES = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "loss": "loss",
    "r2": "R²",
    "mae": "mean absolute error",
    "rmse": "root mean square error",
}

_CSS = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p.sub { margin-top: .2rem; opacity: .75; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); }
th { text-align: left; font-weight: 600; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
dl.tiles { display: flex; flex-wrap: wrap; gap: .6rem; }
dl.tiles div { background: var(--soft); border-radius: .5rem; padding: .6rem 1rem; min-width: 7rem; }
dl.tiles dt { font-size: .8rem; opacity: .75; } dl.tiles dd { margin: 0; font-size: 1.3rem; }
figure { margin: 1rem 0; } figure img { max-width: 100%; background: white; border-radius: .3rem; }
figcaption { font-size: .9rem; opacity: .8; max-width: 40rem; }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; border-radius: .5rem; font-size: .85rem; }
"""


@dataclass(frozen=True)
class Picture:
    """One figure on the page.

    Attributes:
        title: Its heading.
        text: What it shows.
        content: The PNG in base64.
    """

    title: str
    text: str
    content: str


def page_of(
    job: Job,
    features: FeatureSpec,
    census: Census,
    task: Task,
    metrics: dict[str, Any],
    judged: Answers,
    pictures: Sequence[Picture],
) -> str:
    """Return the page."""
    kind = {"binary": "two classes", "multiclass": f"{task.classes} classes", "regression": "regression"}
    body = [
        f"<h1>{escape(job.name)}</h1>",
        f'<p class="sub">{escape(job.framework)}, {kind[task.kind]}: {escape(", ".join(task.names))}; '
        f"{time.strftime('%Y-%m-%d %H:%M')}, mlaas-ray {__version__}</p>",
        _tiles(metrics, features),
        _left_out(metrics["validation"], task),
        "<h2>Events</h2>",
        _events(census, task),
    ]
    if task.kind == "binary":
        body += ["<h2>Yields</h2>", _yields(census, task, judged)]
    if task.classes:
        body += ["<h2>Classes</h2>", _classes(task, judged)]
    for picture in pictures:
        body.append(
            f"<h2>{escape(picture.title)}</h2><figure>"
            f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{picture.content}">'
            f"<figcaption>{escape(picture.text)}</figcaption></figure>"
        )
    body += ["<h2>Exported files</h2>", _exports(metrics)]
    document = job.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    body += ["<h2>The job</h2>", f"<pre>{escape(text)}</pre>", f'<p class="sub">mlaas-ray {__version__}</p>']
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(job.name)}: training report</title><style>{_CSS}</style></head><body>"
    )
    return head + "\n".join(body) + "</body></html>\n"


def _tiles(metrics: dict[str, Any], features: FeatureSpec) -> str:
    judged = metrics["validation"]
    values = {_NAMES[key]: f"{judged[key]:.4f}" for key in _NAMES if judged.get(key) is not None}
    values |= {
        "epochs": str(len(metrics["history"])),
        "columns": f"{features.width:,}",
        "events seen": f"{metrics['events']:,}",
        "events/s": f"{metrics['events_per_s']:,.0f}",
    }
    if metrics.get("best_epoch"):
        values["best epoch"] = f"{metrics['best_epoch']:.0f}"
    tiles = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items())
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _left_out(judged: dict[str, Any], task: Task) -> str:
    """Say which weights count, and what the score leaves out."""
    text = "Scores are of all validation events, with the weights of training."
    if judged.get("without"):
        names = ", ".join(judged["without"])
        what = "no such validation events, or their weights are not more than 0"
        what = what if task.classes else "it does not vary in the validation events"
        text += f" The {_NAMES[task.score]} leaves out {names}: {what}."
    return f"<p>{escape(text)}</p>"


def _classes(task: Task, judged: Answers) -> str:
    """Return what became of each class's events when each is taken for the most probable class."""
    truth, choice = judged.y, judged.choice(task)
    efficiency = np.diag(confusion(truth, choice, judged.weight, task.classes))
    purity = purities(truth, choice, judged.weight, task.classes)
    rows = []
    for number, name in enumerate(task.names):
        own = judged.y == number
        there = float(judged.weight[own].sum()) > 0
        numbers = [efficiency[number] if there else np.nan, purity[number]]
        told = ["" if np.isnan(one) else f"{one:.4f}" for one in numbers]
        rows.append([name, f"{int(own.sum()):,}", *told])
    table = _table(["class", "validation events", "efficiency (recall)", "purity (precision)"], rows)
    return table + "<p>Each event is taken for its most probable class; weights of training.</p>"


def _events(census: Census, task: Task) -> str:
    head = ["dataset", "in the files", *(f"after {cut}" for cut in census.cuts), "weighted", "negative"]
    rows = []
    for dataset in census.datasets:
        total = dataset.total
        weighted = f"{_number(total.weight)} ± {_number(np.sqrt(total.squares), 2)}"
        negative = f"{total.negative / total.events:.1%}" if total.negative else ""
        rows.append(
            [dataset.name, f"{dataset.entries:,}", *(f"{n:,}" for n in dataset.passed), weighted, negative]
        )
    text = _table(head, rows)
    if task.classes:
        counts = census.classes(task.classes)
        text += _table(
            ["class", "events", "weighted"],
            [
                [name, f"{count.events:,}", _number(count.weight)]
                for name, count in zip(task.names, counts, strict=True)
            ],
        )
    return text


def _yields(census: Census, task: Task, judged: Answers) -> str:
    """Return what is expected of all events, before and after the best cut on the score."""
    weight = judged.expected
    curve = roc(judged.prediction[:, 0], judged.y > 0.5, weight)
    counts = census.classes(2)
    if curve is None:
        return "<p>There are no events of both classes.</p>"
    cut, significance = best_cut(curve, counts[1].weight, counts[0].weight)
    rows = []
    for number, dataset in enumerate(census.datasets):
        own = judged.dataset == number
        before = float(weight[own].sum())
        passed = own & (judged.prediction[:, 0] >= cut)
        share = float(weight[passed].sum()) / before if before else 0.0
        total = dataset.total
        # of the share, which the validation events tell, and of the sum of all
        counted = effective(weight[own]) or 1.0
        clipped = min(1.0, max(0.0, share))  # weights may be negative
        error = np.sqrt(total.weight**2 * clipped * (1 - clipped) / counted + clipped**2 * total.squares)
        rows.append(
            [
                dataset.name,
                _number(total.weight),
                f"{_number(share * total.weight)} ± {_number(error, 2)}",
                f"{share:.2%}",
            ]
        )
    table = _table(["dataset", "before", f"score ≥ {cut:.3f}", "share"], rows)
    return (
        table + f"<p>At this cut S/√(S+B) is largest: {significance:.3g}. Shares are those of the "
        "validation events, the sums those of all events, with the weights as the job defines them.</p>"
    )


def _exports(metrics: dict[str, Any]) -> str:
    rows = [[file, f"{difference:.2g}"] for file, difference in metrics["export_difference"].items()]
    return _table(["file", "largest difference from the model in memory"], rows)


def _number(value: float, digits: int = 4) -> str:
    """Write a number to some digits, large ones in full."""
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="n">{escape(cell)}</td>' if place else f"<td>{escape(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
