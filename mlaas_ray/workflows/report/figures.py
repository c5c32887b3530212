"""Figures of a report: what the scores, the classes and the targets came to, and the course of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.task import Task
from mlaas_ray.workflows.report.answers import Answers
from mlaas_ray.workflows.report.drawing import (
    COLOURS,
    FEW,
    Draw,
    by_class,
    colour,
    histogram,
    one_against_others,
    panels,
    style,
)
from mlaas_ray.workflows.report.numbers import (
    Calibration,
    best_cut,
    calibration,
    confusion,
    kolmogorov_smirnov,
    moments,
    profile,
    roc,
    significances,
)

__all__ = [
    "Draw",
    "calibrations",
    "confusions",
    "cuts",
    "history",
    "importances",
    "rocs",
    "scores",
    "style",
    "targets",
    "times",
]

_MOST_BRANCHES = 25
_SCORE = {"auc": "AUC", "r2": "R²"}


def history(entries: Sequence[Mapping[str, Any]], task: Task, best: float | None = None) -> Draw:
    """Draw loss and score by epoch; ``best`` is the epoch that is exported."""

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        epochs = [entry["epoch"] for entry in entries]
        left.plot(epochs, [entry["loss"] for entry in entries], "o-", ms=3, label="training, as seen")
        left.plot(epochs, [entry["validation_loss"] for entry in entries], "s-", ms=3, label="validation")
        left.set_ylabel("loss")
        values = [entry["scores"].get(task.score, np.nan) for entry in entries]
        right.plot(epochs, values, "s-", ms=3, color=COLOURS[1], label="validation")
        right.set_ylabel(f"validation {_SCORE[task.score]}")
        for axes in (left, right):
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.xaxis.minorticks_off()
            if best:
                axes.axvline(best, color="grey", ls=":", lw=1, label=f"best epoch: {best:.0f}")
        left.legend()
        figure.set_size_inches(9.6, 4.2)

    return draw


def rocs(answers: Answers, task: Task, areas: Mapping[str, float | None] | None = None) -> Draw:
    """Draw the ROC curve of each class against the others, and rejection against efficiency.

    Args:
        answers: Validation events.
        task: What was learnt.
        areas: By class, the area of all validation events, where these are not all.
    """

    def draw(figure: Any) -> None:
        figure.set_size_inches(11, 4.8)
        left, right = figure.subplots(1, 2)
        several, highest = task.outputs > len(COLOURS), 10.0
        for number, (name, score, signal) in enumerate(one_against_others(answers, task)):
            curve = roc(score, signal, answers.weight)
            if curve is None:
                left.plot([], [], " ", label=f"{name}: no curve, its weights or the others' are not > 0")
                continue
            area = (areas or {}).get(name) or curve.area
            label = f"{name}: {area:.4f} ± {curve.area_error:.4f}"
            some = _some(len(curve.tpr))
            tpr, fpr, error = curve.tpr[some], curve.fpr[some], curve.error[some]
            look = {"color": colour(number, task.outputs), "ls": "-" if number < 10 or not several else "--"}
            left.plot(fpr, tpr, label=label, **look)
            passed = fpr > 0
            right.plot(tpr[passed], 1 / fpr[passed], **look)
            highest = max(highest, *(1 / fpr[passed & (tpr > 0.02)]).tolist())
            if task.outputs <= FEW:
                left.fill_between(fpr, tpr - error, tpr + error, alpha=0.25, color=look["color"], lw=0)
        diagonal = np.linspace(0.01, 1, 100)
        left.plot([0, 1], [0, 1], ":", color="grey", lw=1)
        right.plot(diagonal, 1 / diagonal, ":", color="grey", lw=1)
        left.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="background efficiency", ylabel="signal efficiency")
        right.set(xlim=(0, 1), ylim=(1, 2 * highest), yscale="log")
        right.set(xlabel="signal efficiency", ylabel="background rejection (1 / efficiency)")
        place: dict[str, Any] = {"loc": "lower right", "fontsize": 9}
        if task.outputs > FEW:
            place = {"loc": "center right", "bbox_to_anchor": (-0.2, 0.5), "fontsize": 8}
            figure.set_size_inches(13, 4.8)
        left.legend(title="area under the curve", **place)

    return draw


def _some(count: int) -> npt.NDArray[np.int64]:
    """Return which of so many points are drawn: some hundreds, more where the background is small."""
    places = np.concatenate([np.linspace(0, count - 1, 500), np.geomspace(1, max(1, count - 1), 300)])
    return np.unique(places.astype(np.int64))


def scores(judged: Answers, trained: Answers, task: Task) -> Draw:
    """Draw the scores of each class, in validation (lines) and training (points), and compare them.

    A panel for each score; of more than three classes it has the class itself and all others together.
    """

    def draw(figure: Any) -> None:
        shown, learnt = list(one_against_others(judged, task)), list(one_against_others(trained, task))
        few = task.classes <= FEW
        size: dict[str, float] = {"width": 6.4, "height": 4.8} if few else {}
        grid = panels(figure, len(shown), **size)
        edges = np.linspace(0, 1, 41 if few else 26)
        for axes, (name, score, signal), (_, before, truth) in zip(grid, shown, learnt, strict=True):
            groups = [(name, signal, truth), ("others", ~signal, ~truth)]
            if few:
                pairs = zip(by_class(judged, task), by_class(trained, task), strict=True)
                groups = [(one, own, seen) for (one, own), (_, seen) in pairs]
            for number, (one, own, seen) in enumerate(groups):
                ours, theirs = (score[own], judged.weight[own]), (before[seen], trained.weight[seen])
                p = _compared(axes, ours, theirs, edges, COLOURS[number], one)
                axes.plot([], [], " ", label=f"  {'Kolmogorov-Smirnov ' * few}p = {p:.2g}")
            axes.set(xlim=(0, 1), ylim=(1e-5, 1e2), yscale="log")
            axes.minorticks_off()
            if few:
                axes.set(xlabel=f"score of {name}", ylabel="share of the class")
                axes.legend(title="lines: validation, points: training", loc="upper center", ncols=2)
            else:
                axes.set_title(name)
                axes.legend(fontsize=6.5, ncols=2, loc="upper center", handlelength=1)
        if not few:
            figure.supxlabel("score of the class (lines: validation, points: training)", fontsize=12)
            figure.supylabel("share of the events", fontsize=12)

    return draw


def _compared(
    axes: Any, ours: tuple[Any, Any], theirs: tuple[Any, Any], edges: npt.NDArray[Any], look: str, label: str
) -> float:
    """Draw validation as a line and training as points; return the probability that they agree."""
    shares, _ = histogram(*ours, edges)
    axes.stairs(np.where(shares > 0, shares, np.nan), edges, color=look, label=label, lw=1.4)
    points, error = histogram(*theirs, edges)
    middle = 0.5 * (edges[1:] + edges[:-1])
    there = points > 0
    axes.errorbar(middle[there], points[there], error[there], fmt=".", ms=3, color=look, elinewidth=0.7)
    return kolmogorov_smirnov(*ours, *theirs)[1]


def cuts(answers: Answers, signal: float, background: float) -> Draw:
    """Draw efficiencies and significance against the cut on the score.

    Args:
        answers: Validation events of two classes.
        signal: Expected signal events before the cut.
        background: Expected background events.
    """

    def draw(figure: Any) -> None:
        figure.set_size_inches(6.4, 6.4)
        top, bottom = figure.subplots(2, 1, sharex=True)
        curve = roc(answers.prediction[:, 0], answers.y > 0.5, answers.expected)
        if curve is None:
            bottom.text(
                0.5, 0.5, "the weights of a class are not > 0", ha="center", transform=bottom.transAxes
            )
            return
        some = _some(len(curve.tpr))[1:]  # the first lets nothing through
        at = curve.threshold[some]
        for values, name, look in ((curve.tpr, "signal", COLOURS[1]), (curve.fpr, "background", COLOURS[0])):
            top.plot(at, values[some], color=look, label=name)
        bottom.plot(at, significances(curve, signal, background)[some], color=COLOURS[2])
        cut, most = best_cut(curve, signal, background)
        for axes in (top, bottom):
            axes.axvline(cut, color="grey", ls=":", lw=1)
        bottom.plot([cut], [most], "o", color=COLOURS[2], label=f"largest: {most:.3g} at {cut:.3f}")
        top.set(ylabel="efficiency", ylim=(0, 1.02))
        bottom.set(xlabel="cut on the score", ylabel="S / √(S + B)", xlim=(0, 1))
        bottom.set_ylim(0, None)
        top.legend()
        bottom.legend()

    return draw


def calibrations(answers: Answers, task: Task) -> Draw:
    """Draw what came of events of each predicted probability; of more than three classes a panel each."""

    def draw(figure: Any) -> None:
        shown = [
            (name, calibration(score, signal, answers.weight))
            for name, score, signal in one_against_others(answers, task)
        ]
        if len(shown) > FEW:
            for number, (axes, (name, found)) in enumerate(
                zip(panels(figure, len(shown)), shown, strict=True)
            ):
                _calibrated(axes, found, colour(number, len(shown)), None)
                axes.set_title(name)
                told = f"expected error {found.expected_error:.3f}\nBrier {found.brier:.3f}"
                axes.text(0.04, 0.95, told, va="top", fontsize=8, transform=axes.transAxes)
            figure.supxlabel("predicted probability", fontsize=12)
            figure.supylabel("observed share", fontsize=12)
            return
        axes = figure.subplots()
        for number, (name, found) in enumerate(shown):
            label = f"{name}: expected error {found.expected_error:.3f}, Brier {found.brier:.3f}"
            _calibrated(axes, found, COLOURS[number], label)
        axes.set(xlabel="predicted probability", ylabel="observed share")
        axes.legend(loc="upper left")

    return draw


def _calibrated(axes: Any, found: Calibration, look: Any, label: str | None) -> None:
    axes.plot([0, 1], [0, 1], ":", color="grey", lw=1)
    axes.errorbar(found.predicted, found.observed, found.error, fmt="o-", ms=3.5, color=look, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1))


def confusions(answers: Answers, task: Task) -> Draw:
    """Draw for what each class is taken."""

    def draw(figure: Any) -> None:
        classes = task.classes
        side = 4.0 + 0.35 * classes
        figure.set_size_inches(side + 1.8, side)
        axes = figure.subplots()
        matrix = confusion(answers.y, answers.choice(task), answers.weight, classes)
        image = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, label="share of the true class", fraction=0.046)
        for (row, column), value in np.ndenumerate(matrix):
            text = f"{value:.3f}" if classes <= 5 else f"{100 * value:.0f}"
            look = {"color": "white" if value > 0.5 else "black", "fontsize": 11 if classes <= 5 else 8}
            if classes <= 5 or abs(value) >= 0.005:
                axes.text(column, row, text, ha="center", va="center", **look)
        turned = 20 if classes <= 5 else 60
        axes.set_xticks(range(classes), task.names, rotation=turned, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(classes), task.names)
        axes.tick_params(which="both", length=0, labelsize=11 if classes <= 5 else 9)
        axes.minorticks_off()
        axes.set(xlabel="taken for" if classes <= 5 else "taken for (numbers: %)", ylabel="true class")

    return draw


def importances(found: Mapping[str, Sequence[float | None]], task: Task) -> Draw:
    """Draw what it costs to shuffle each branch; the largest first."""

    def draw(figure: Any) -> None:
        # the loss, where the events do not define the score
        which = 1 if all(values[1] is not None for values in found.values()) else 0
        cost = {name: values[which] or 0.0 for name, values in found.items()}
        rows = sorted(cost.items(), key=lambda item: item[1])[-_MOST_BRANCHES:]
        axes = figure.subplots()
        axes.barh([name for name, _ in rows], [value for _, value in rows], color=COLOURS[0])
        axes.axvline(0, color="grey", lw=0.8)
        what = f"drop of {_SCORE[task.score]}" if which else "growth of the loss"
        axes.set_xlabel(f"{what} when the branch is shuffled among events")
        axes.tick_params(axis="y", which="both", length=0, labelsize=9)
        axes.yaxis.minorticks_off()
        more = len(found) - len(rows)
        if more > 0:
            axes.set_title(f"the {len(rows)} most important branches of {len(found)}", loc="left")
        figure.set_size_inches(7.2, 1.6 + 0.24 * len(rows))

    return draw


def times(seconds: Mapping[str, float]) -> Draw:
    """Draw where the time went."""

    def draw(figure: Any) -> None:
        other = max(0.0, seconds["training"] - seconds["waiting"] - seconds["computing"])
        parts = {
            "waiting for events": seconds["waiting"],
            "computing": seconds["computing"],
            "batches and scores": other,
            "judging": seconds["judging"],
            "saving": seconds["saving"],
        }
        axes = figure.subplots()
        total = sum(parts.values()) or 1.0
        bars = axes.barh(list(parts), list(parts.values()), color=COLOURS[: len(parts)])
        labels = [f" {value:.1f} s ({value / total:.0%})" for value in parts.values()]
        axes.bar_label(bars, labels, fontsize=10)
        axes.set(xlabel="wall time [s]", xlim=(0, 1.3 * max(*parts.values(), 1e-3)))
        axes.invert_yaxis()
        axes.tick_params(axis="y", which="both", length=0)
        axes.yaxis.minorticks_off()
        figure.set_size_inches(7.2, 3.0)

    return draw


def targets(answers: Answers, task: Task, number: int) -> Draw:
    """Draw a target's predictions against the truth, their residuals, and these against the truth."""

    def draw(figure: Any) -> None:
        figure.set_size_inches(15, 4.6)
        left, right, third = figure.subplots(1, 3)
        name = task.names[number]
        truth = answers.y.reshape(len(answers.y), -1)[:, number].astype(np.float64)
        predicted = answers.prediction[:, number].astype(np.float64)
        low, high = np.quantile(np.concatenate([truth, predicted]), [0.005, 0.995])
        if not high > low:
            low, high = low - 0.5, high + 0.5
        span = [[low, high], [low, high]]
        counts, x, y = np.histogram2d(truth, predicted, bins=60, range=span, weights=answers.weight)
        mesh = left.pcolormesh(x, y, np.ma.masked_less_equal(counts.T, 0), cmap="viridis", norm="log")
        figure.colorbar(mesh, ax=left, label="sum of weights")
        left.plot([low, high], [low, high], ":", color="red", lw=1)
        left.set(xlabel=f"true {name}", ylabel=f"predicted {name}")
        residual = predicted - truth
        width = float(np.quantile(np.abs(residual), 0.99)) or 1.0
        edges = np.linspace(-width, width, 61)
        mean, deviation = moments(residual, answers.weight)
        shares, _ = histogram(residual, answers.weight, edges)
        right.stairs(shares, edges, lw=1.4, label=f"mean {mean:.3g}, deviation {deviation:.3g}")
        right.set(xlabel=f"predicted - true {name}", ylabel="share of the events")
        right.set_ylim(top=1.25 * max(float(np.nanmax(shares)), 1e-12) if len(shares) else None)
        right.legend()
        at = np.linspace(low, high, 21)
        first, second = (profile(truth, residual**power, answers.weight, at) for power in (1, 2))
        with np.errstate(invalid="ignore"):
            spread = np.sqrt(second.mean - first.mean**2)
        middle = 0.5 * (at[1:] + at[:-1])
        third.fill_between(
            middle, first.mean - spread, first.mean + spread, alpha=0.25, lw=0, label="± deviation"
        )
        third.errorbar(middle, first.mean, first.error, fmt="o", ms=4, label="mean")
        third.axhline(0, color="grey", ls=":", lw=1)
        third.set(xlabel=f"true {name}", ylabel=f"predicted - true {name}")
        third.legend()

    return draw
