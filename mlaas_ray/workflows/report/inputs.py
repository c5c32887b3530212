"""Figures of the inputs: their distributions and correlations by class, and the score against them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.task import Task
from mlaas_ray.workflows.report.answers import Answers
from mlaas_ray.workflows.report.drawing import (
    COLOURS,
    Draw,
    binned,
    by_class,
    colour,
    histogram,
    one_against_others,
    panels,
    quantiles,
)
from mlaas_ray.workflows.report.numbers import correlations, profile

# Variables drawn, and classes whose shapes can be told apart in one panel.
VARIABLES = 9
SHAPES = 6
# Shares of the signal that the cuts keep after which the shape of the background is drawn.
KEPT = (0.8, 0.5, 0.2)


def distributions(answers: Answers, task: Task) -> Draw:
    """Draw the most important inputs by class, with their ratios; of many classes the spread of each."""

    def draw(figure: Any) -> None:
        names = list(answers.inputs)[:VARIABLES]
        columns = min(3, len(names))
        rows = -(-len(names) // columns)
        few = task.classes <= SHAPES
        figure.set_size_inches(4.2 * columns, (3.6 if few else 1.6 + 0.16 * task.classes) * rows + 0.6)
        parts = figure.subfigures(rows, columns, squeeze=False).ravel()
        for number, (part, name) in enumerate(zip(parts, names, strict=False)):
            values = answers.inputs[name]
            if few:
                _shapes(part, name, values, answers, task, legend=number == 0)
            else:
                _spreads(part, name, values, answers, task)

    return draw


def _shapes(
    part: Any, name: str, values: npt.NDArray[Any], answers: Answers, task: Task, *, legend: bool
) -> None:
    """Draw a variable's shape in each class, and its ratio to that of the first class, or of all."""
    top, bottom = part.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = binned(values)
    there = np.isfinite(values)
    of_all, all_error = histogram(values[there], answers.weight[there], edges)
    labels = by_class(answers, task)
    shapes = [histogram(values[own & there], answers.weight[own & there], edges) for _, own in labels]
    base, base_error = shapes[0] if len(shapes) == 2 else (of_all, all_error)
    middle = 0.5 * (edges[1:] + edges[:-1])
    for number, ((one, _), (shares, error)) in enumerate(zip(labels, shapes, strict=True)):
        top.stairs(shares, edges, color=COLOURS[number], label=one, lw=1.3)
        if not task.classes or (len(shapes) == 2 and number == 0):
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = shares / base
            both = np.abs(ratio) * np.sqrt((error / shares) ** 2 + (base_error / base) ** 2)
        known = np.isfinite(ratio) & np.isfinite(both)
        look = {"fmt": ".", "ms": 3, "elinewidth": 0.7, "color": COLOURS[number]}
        bottom.errorbar(middle[known], ratio[known], both[known], **look)
    if task.classes:
        bottom.axhline(1, color="grey", lw=0.8, ls=":")
        bottom.set_ylim(0, 2.5)
        bottom.set_ylabel(f"ratio to\n{task.names[0]}" if len(shapes) == 2 else "ratio\nto all", fontsize=8)
    else:
        truth = (answers.y.reshape(len(values), -1) - task.offset) / task.scale
        for number, one in enumerate(task.names):
            look = {"color": colour(number, len(task.names)), "label": one}
            _line(bottom, edges, (values, truth[:, number]), answers, there, **look)
        bottom.set_ylabel("mean target\n[deviations]", fontsize=8)
        if legend:
            bottom.legend(fontsize=7)
    without = 1 - float(there.mean()) if len(there) else 0.0
    if without > 0:
        top.set_title(f"{without:.1%} of the events have no value", fontsize=8, loc="right")
    bottom.set_xlabel(name, fontsize=10)
    top.set_ylabel("share of the class" if task.classes else "share", fontsize=9)
    top.set_ylim(0, 1.3 * max(float(np.nanmax(shares, initial=1e-6)) for shares, _ in shapes))
    for axes in (top, bottom):
        axes.tick_params(labelsize=8)
        axes.minorticks_off()  # they took half of the time of this picture
    if legend:
        top.legend(fontsize=8, ncols=1 + (len(labels) > 3))


def _spreads(part: Any, name: str, values: npt.NDArray[Any], answers: Answers, task: Task) -> None:
    """Draw median, 68 % and 95 % of a variable in each class."""
    axes = part.subplots()
    there = np.isfinite(values)
    for number in range(task.classes):
        own = there & (answers.y == number)
        at = quantiles(values[own], answers.weight[own], (0.025, 0.16, 0.5, 0.84, 0.975))
        look = colour(number, task.classes)
        axes.plot(at[[0, 4]], [number] * 2, lw=1, color=look)
        axes.plot(at[[1, 3]], [number] * 2, lw=4, color=look, solid_capstyle="butt")
        axes.plot(at[2], number, "o", ms=4, color="black")
    axes.set_yticks(range(task.classes), task.names)
    axes.invert_yaxis()
    axes.yaxis.minorticks_off()
    axes.tick_params(labelsize=8)
    axes.set_xlabel(name, fontsize=10)


def correlation(answers: Answers, task: Task) -> Draw:
    """Draw the linear correlations of the most important inputs, by class."""

    def draw(figure: Any) -> None:
        names = list(answers.inputs)
        columns = np.stack([answers.inputs[name] for name in names], axis=1)
        groups = by_class(answers, task)
        few = len(groups) <= 3
        side = 1.8 + 0.36 * len(names) if few else 3.2
        grid = panels(figure, len(groups), width=side + 0.6, height=side)
        for place, (axes, (one, own)) in enumerate(zip(grid, groups, strict=True)):
            found = correlations(columns[own], answers.weight[own])
            image = axes.imshow(found, cmap="RdBu_r", vmin=-1, vmax=1)
            axes.set_title(one)
            axes.set_xticks(range(len(names)), names, rotation=90)
            axes.set_yticks(range(len(names)), names)
            axes.tick_params(
                which="both", length=0, labelsize=8 if few else 6, labelleft=place % len(grid) % 4 == 0
            )
            axes.minorticks_off()
            for (row, column), value in np.ndenumerate(found) if few else ():
                if np.isfinite(value) and row != column:
                    text = f"{100 * value:.0f}"
                    axes.text(column, row, text, ha="center", va="center", fontsize=6.5)
        figure.colorbar(image, ax=grid, label=f"linear correlation{' (numbers: %)' * few}", shrink=0.8)

    return draw


def against(answers: Answers, task: Task, variables: Mapping[str, npt.NDArray[Any]]) -> Draw:
    """Draw the score against variables: its mean, and how cuts on it shape the background.

    Of targets: the residuals against them.
    """

    def draw(figure: Any) -> None:
        many = task.classes > SHAPES
        figure.set_size_inches(11.5, (2.0 + 0.17 * task.classes if many else 3.9) * len(variables) + 0.3)
        grid = figure.subplots(len(variables), 2, squeeze=False)
        for (left, right), (name, values) in zip(grid, variables.items(), strict=True):
            edges = binned(values, 16)
            if task.classes > SHAPES:
                _maps(figure, left, right, name, values, answers, task, edges)
                continue
            if task.kind == "regression":
                _residuals(left, right, values, answers, task, edges)
            else:
                _means(left, values, answers, task, edges)
                _sculpted(right, values, answers, task, edges)
            for axes in (left, right):
                axes.set_xlabel(name)
                axes.legend(fontsize=8)

    return draw


def _line(axes: Any, at: Any, values: Any, answers: Answers, own: Any, **look: Any) -> None:
    """Draw the mean of values in bins of a variable, of some of the events."""
    there = own & np.isfinite(values[0])
    found = profile(values[0][there], values[1][there], answers.weight[there], at)
    middle = 0.5 * (at[1:] + at[:-1])
    axes.errorbar(middle, found.mean, found.error, fmt="o-", ms=3, lw=1, elinewidth=0.7, **look)


def _means(axes: Any, values: npt.NDArray[Any], answers: Answers, task: Task, edges: Any) -> None:
    if task.kind == "binary":
        for number, one in enumerate(task.names):
            pair = (values, answers.prediction[:, 0])
            _line(axes, edges, pair, answers, answers.y == number, color=COLOURS[number], label=one)
        axes.set_ylabel("mean score")
    else:
        for number, (one, score, signal) in enumerate(one_against_others(answers, task)):
            look = {"color": colour(number, task.classes), "label": one}
            _line(axes, edges, (values, score), answers, ~signal, **look)
        axes.set_ylabel("mean score, of the other classes' events", fontsize=11)
    axes.set_ylim(0, 1 if task.kind == "binary" else None)


def _sculpted(axes: Any, values: npt.NDArray[Any], answers: Answers, task: Task, edges: Any) -> None:
    """Draw the shape of the variable in the background, before and after cuts on the score."""
    there = np.isfinite(values)
    shown = list(one_against_others(answers, task))
    if task.kind == "binary":
        rest = there & ~shown[0][2]
        axes.stairs(
            histogram(values[rest], answers.weight[rest], edges)[0], edges, color="black", label="no cut"
        )
    else:
        every = histogram(values[there], answers.weight[there], edges)[0]
        axes.stairs(every, edges, color="black", lw=2, label="all events")
    for number, (one, score, signal) in enumerate(shown):
        for place, kept in enumerate(KEPT if len(shown) == 1 else KEPT[1:2]):
            (cut,) = quantiles(score[signal], answers.weight[signal], [1 - kept])
            passed = there & ~signal & (score >= cut)
            look = COLOURS[place] if len(shown) == 1 else colour(number, len(shown))
            label = f"{kept:.0%} of {one} kept" if len(shown) == 1 else one
            axes.stairs(
                histogram(values[passed], answers.weight[passed], edges)[0],
                edges,
                color=look,
                label=label,
                lw=1.2,
            )
    axes.set_ylabel(
        "share of the background" if len(shown) == 1 else "share of the others taken for", fontsize=11
    )
    axes.set_ylim(0, None)


def _residuals(
    left: Any, right: Any, values: npt.NDArray[Any], answers: Answers, task: Task, edges: Any
) -> None:
    """Draw mean and deviation of each target's residuals, in its deviations, against a variable."""
    truth = answers.y.reshape(len(answers.y), -1)
    everyone = np.ones(len(values), np.bool_)
    for number, one in enumerate(task.names):
        residual = (answers.prediction[:, number] - truth[:, number]) / task.scale[number]
        look = {"color": colour(number, len(task.names)), "label": one}
        _line(left, edges, (values, residual), answers, everyone, **look)
        _line(right, edges, (values, residual**2), answers, everyone, **look)
    left.axhline(0, color="grey", ls=":", lw=1)
    left.set_ylabel("mean of (predicted - true) / deviation", fontsize=11)
    right.set_ylabel("mean square of the same", fontsize=11)
    right.set_ylim(0, None)


def _maps(
    figure: Any,
    left: Any,
    right: Any,
    name: str,
    values: npt.NDArray[Any],
    answers: Answers,
    task: Task,
    edges: Any,
) -> None:
    """Draw what :func:`_means` and :func:`_sculpted` do, of many classes, as colours."""
    there = np.isfinite(values)
    means, ratios = [], []
    for _, score, signal in one_against_others(answers, task):
        rest = there & ~signal
        means.append(profile(values[rest], score[rest], answers.weight[rest], edges).mean)
        (cut,) = quantiles(score[signal], answers.weight[signal], [1 - KEPT[1]])
        passed = rest & (score >= cut)
        before, after = (histogram(values[own], answers.weight[own], edges)[0] for own in (rest, passed))
        ratios.append(np.divide(after, before, out=np.full(len(after), np.nan), where=before > 0))
    rows = np.arange(task.classes + 1) - 0.5
    for axes, found, look, label in (
        (left, means, {"cmap": "viridis", "vmin": 0}, "mean score, of the other\nclasses' events"),
        (
            right,
            ratios,
            {"cmap": "RdBu_r", "vmin": 0, "vmax": 2},
            "share of the others after the\ncut / before",
        ),
    ):
        mesh = axes.pcolormesh(edges, rows, np.ma.masked_invalid(found), **look)
        figure.colorbar(mesh, ax=axes).set_label(label, fontsize=10)
        axes.set_yticks(range(task.classes), task.names)
        axes.tick_params(axis="y", which="both", length=0, labelsize=8)
        axes.yaxis.minorticks_off()
        axes.invert_yaxis()
        axes.set_xlabel(name)
