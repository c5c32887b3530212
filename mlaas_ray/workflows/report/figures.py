"""Figures of a report, drawn with matplotlib in the field's style (mplhep)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.task import Task
from mlaas_ray.workflows.report.answers import Answers
from mlaas_ray.workflows.report.numbers import calibration, confusion, kolmogorov_smirnov, moments, roc

# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MOST_BRANCHES = 25

Draw = Callable[[Any], None]


@contextmanager
def style() -> Iterator[None]:
    """Draw in mplhep's style, at the size of a page."""
    import matplotlib
    import mplhep
    from cycler import cycler

    smaller: dict[Any, Any] = {
        "figure.figsize": (6.4, 4.8),
        "figure.dpi": 110,
        "figure.constrained_layout.use": True,
        "font.size": 12,
        "axes.labelsize": 13,
        "axes.titlesize": 13,
        "xtick.labelsize": 11,
        "ytick.labelsize": 11,
        "legend.fontsize": 10,
        "lines.linewidth": 1.6,
        "axes.prop_cycle": cycler(color=COLOURS),
        "xtick.major.size": 6,
        "ytick.major.size": 6,
        "xtick.minor.size": 3,
        "ytick.minor.size": 3,
        "mathtext.fontset": "dejavusans",
    }
    both: dict[Any, Any] = {**mplhep.style.ROOT, **smaller}
    with matplotlib.rc_context(both):
        yield


def history(entries: Sequence[Mapping[str, Any]], task: Task) -> Draw:
    """Draw loss and score by epoch."""

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        epochs = [entry["epoch"] for entry in entries]
        left.plot(epochs, [entry["loss"] for entry in entries], "o-", ms=3, label="training, as seen")
        left.plot(epochs, [entry["validation_loss"] for entry in entries], "s-", ms=3, label="validation")
        left.set_ylabel("loss")
        right.plot(
            epochs,
            [entry["scores"].get(task.score, np.nan) for entry in entries],
            "s-",
            ms=3,
            color=COLOURS[1],
        )
        right.set_ylabel(f"validation {'AUC' if task.score == 'auc' else 'R²'}")
        for axes in (left, right):
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        left.legend()
        figure.set_size_inches(9.6, 4.2)

    return draw


def rocs(answers: Answers, task: Task) -> Draw:
    """Draw the ROC curve of each class against the others, with its uncertainty."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name, score, signal in _one_against_others(answers, task):
            curve = roc(score, signal, answers.weight)
            if curve is None:
                continue
            label = f"{name}: {curve.area:.4f} ± {curve.area_error:.4f}"
            (line,) = axes.plot(curve.fpr, curve.tpr, label=label)
            low, high = curve.tpr - curve.error, curve.tpr + curve.error
            axes.fill_between(curve.fpr, low, high, alpha=0.25, color=line.get_color(), lw=0)
        axes.plot([0, 1], [0, 1], ":", color="grey", lw=1)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="background efficiency", ylabel="signal efficiency")
        axes.legend(title="area under the curve", loc="lower right")

    return draw


def scores(judged: Answers, trained: Answers, task: Task) -> Draw:
    """Draw the scores of each class, in validation (lines) and training (points), and compare them."""

    def draw(figure: Any) -> None:
        import mplhep

        panels = list(_one_against_others(judged, task))
        training = list(_one_against_others(trained, task))
        grid = np.atleast_1d(figure.subplots(1, len(panels)))
        edges = np.linspace(0, 1, 41)
        for axes, (name, score, _), (_, other, _) in zip(grid, panels, training, strict=True):
            for number, label in enumerate(task.names):
                own, before = judged.y == number, trained.y == number
                if not own.any() or not before.any():
                    continue
                counts, squares = _histogram(score[own], judged.weight[own], edges)
                total = counts.sum() or 1.0
                colour = COLOURS[number % len(COLOURS)]
                mplhep.histplot(counts / total, edges, ax=axes, color=colour, label=label, histtype="step")
                points, squares = _histogram(other[before], trained.weight[before], edges)
                whole = points.sum() or 1.0
                middle = 0.5 * (edges[1:] + edges[:-1])
                error = np.sqrt(squares) / whole
                axes.errorbar(middle, points / whole, error, fmt=".", ms=4, color=colour, elinewidth=0.8)
                _, p = kolmogorov_smirnov(
                    score[own], judged.weight[own], other[before], trained.weight[before]
                )
                axes.plot([], [], " ", label=f"  Kolmogorov-Smirnov p = {p:.2g}")
            axes.set(xlim=(0, 1), yscale="log", xlabel=f"score of {name}", ylabel="share of the class")
            axes.legend(title="lines: validation, points: training", loc="best")
        figure.set_size_inches(6.4 * len(panels), 4.8)

    return draw


def calibrations(answers: Answers, task: Task) -> Draw:
    """Draw what came of events of each predicted probability."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], ":", color="grey", lw=1)
        for name, score, signal in _one_against_others(answers, task):
            found = calibration(score, signal, answers.weight)
            label = f"{name}: expected error {found.expected_error:.3f}, Brier {found.brier:.3f}"
            axes.errorbar(found.predicted, found.observed, found.error, fmt="o-", ms=4, label=label)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability", ylabel="observed share")
        axes.legend(loc="upper left")

    return draw


def confusions(answers: Answers, task: Task) -> Draw:
    """Draw for what each class is taken."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        matrix = confusion(answers.y, answers.choice(task), answers.weight, task.classes)
        image = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, label="share of the true class")
        for (row, column), value in np.ndenumerate(matrix):
            colour = "white" if value > 0.5 else "black"
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=colour)
        axes.set_xticks(range(task.classes), task.names, rotation=20)
        axes.set_yticks(range(task.classes), task.names)
        axes.tick_params(which="both", length=0)
        axes.minorticks_off()
        axes.set(xlabel="taken for", ylabel="is")

    return draw


def importances(found: Mapping[str, Sequence[float | None]], task: Task) -> Draw:
    """Draw what it costs to shuffle each branch; the largest first."""

    def draw(figure: Any) -> None:
        rows = sorted(found.items(), key=lambda item: item[1][1] or 0.0)[-_MOST_BRANCHES:]
        axes = figure.subplots()
        axes.barh([name for name, _ in rows], [values[1] or 0.0 for _, values in rows], color=COLOURS[0])
        axes.axvline(0, color="grey", lw=0.8)
        name = "AUC" if task.score == "auc" else "R²"
        axes.set_xlabel(f"loss of {name} when its values are shuffled among events")
        axes.tick_params(axis="y", which="both", length=0, labelsize=9)
        axes.yaxis.minorticks_off()
        more = len(found) - len(rows)
        if more > 0:
            axes.set_title(f"the {len(rows)} branches that count most, of {len(found)}", loc="left")
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
        start = 0.0
        total = sum(parts.values()) or 1.0
        for number, (name, value) in enumerate(parts.items()):
            label = f"{name}: {value:.1f} s ({value / total:.0%})"
            axes.barh([0], [value], left=start, color=COLOURS[number], label=label)
            start += value
        axes.set(yticks=[], xlabel="seconds of wall time", xlim=(0, total))
        axes.yaxis.minorticks_off()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.45), ncols=2)
        figure.set_size_inches(7.2, 2.6)

    return draw


def targets(answers: Answers, task: Task, number: int) -> Draw:
    """Draw a target's predictions against the truth, and their residuals."""

    def draw(figure: Any) -> None:
        import mplhep

        left, right = figure.subplots(1, 2)
        truth = answers.y.reshape(len(answers.y), -1)[:, number].astype(np.float64)
        predicted = answers.prediction[:, number].astype(np.float64)
        low, high = np.quantile(np.concatenate([truth, predicted]), [0.005, 0.995])
        if not high > low:
            low, high = low - 0.5, high + 0.5
        span = [[low, high], [low, high]]
        counts, x, y = np.histogram2d(truth, predicted, bins=60, range=span, weights=answers.weight)
        mesh = left.pcolormesh(x, y, np.ma.masked_less_equal(counts.T, 0), cmap="viridis", norm="log")
        figure.colorbar(mesh, ax=left, label="events")
        left.plot([low, high], [low, high], ":", color="red", lw=1)
        left.set(xlabel=f"true {task.names[number]}", ylabel=f"predicted {task.names[number]}")
        residual = predicted - truth
        width = float(np.quantile(np.abs(residual), 0.99)) or 1.0
        edges = np.linspace(-width, width, 61)
        found, _ = _histogram(residual, answers.weight, edges)
        mean, deviation = moments(residual, answers.weight)
        label = f"mean {mean:.3g}, deviation {deviation:.3g}"
        mplhep.histplot(found, edges, ax=right, label=label, histtype="step")
        right.set(xlabel="predicted - true", ylabel="events")
        right.legend()
        figure.set_size_inches(10.4, 4.4)

    return draw


def _histogram(
    values: npt.NDArray[Any], weight: npt.NDArray[Any], edges: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return sums of weights and of their squares."""
    w = weight.astype(np.float64)
    return np.histogram(values, edges, weights=w)[0], np.histogram(values, edges, weights=w**2)[0]


def _one_against_others(
    answers: Answers, task: Task
) -> Iterator[tuple[str, npt.NDArray[np.float32], npt.NDArray[np.bool_]]]:
    """Give name, score and truth of each class that has a score of its own."""
    if task.kind == "binary":
        yield task.names[1], answers.prediction[:, 0], answers.y > 0.5
        return
    for number, name in enumerate(task.names):
        yield name, answers.prediction[:, number], answers.y == number
