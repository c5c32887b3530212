"""Drawing: what the figures of a report share: style, colours, binning, panels of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.task import Task
from mlaas_ray.workflows.report.answers import Answers

# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
# Classes whose lines can be told apart in one picture; more get a panel each.
FEW = 3
# Panels beside each other.
COLUMNS = 4

Array = npt.NDArray[np.float64]
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
        "axes.titlesize": 11,
        "xtick.labelsize": 11,
        "ytick.labelsize": 11,
        "legend.fontsize": 10,
        "legend.title_fontsize": 10,
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


def colour(number: int, of: int) -> Any:
    """Return the colour of one of so many lines."""
    if of <= len(COLOURS):
        return COLOURS[number]
    import matplotlib

    return matplotlib.colormaps["tab20"](number % 20)


def panels(figure: Any, count: int, *, width: float = 3.4, height: float = 2.8) -> list[Any]:
    """Give a figure so many panels with common axes, some beside each other, and return them."""
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure.set_size_inches(max(6.4, width * columns), height * rows + 0.5)
    grid = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    for number, axes in enumerate(grid):
        axes.tick_params(labelsize=8)
        axes.minorticks_off()
        # the lowest panel of a column has the names of its axis
        axes.tick_params(labelbottom=number + columns >= count)
        if number >= count:
            axes.remove()
    return list(grid[:count])


def one_against_others(
    answers: Answers, task: Task
) -> Iterator[tuple[str, npt.NDArray[np.float32], npt.NDArray[np.bool_]]]:
    """Give name, score and truth of each class that has a score of its own."""
    if task.kind == "binary":
        yield task.names[1], answers.prediction[:, 0], answers.y > 0.5
        return
    for number, name in enumerate(task.names):
        yield name, answers.prediction[:, number], answers.y == number


def by_class(answers: Answers, task: Task) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Return name and truth of each class; of targets, all events."""
    if not task.classes:
        return [("all events", np.ones(len(answers.y), np.bool_))]
    return [(name, answers.y == number) for number, name in enumerate(task.names)]


def histogram(values: npt.NDArray[Any], weight: npt.NDArray[Any], edges: Array) -> tuple[Array, Array]:
    """Return the share of the weights in each bin, and its standard error; of all, also beyond the edges."""
    w = weight.astype(np.float64)
    counts, squares = (np.histogram(values, edges, weights=one)[0] for one in (w, w**2))
    total = float(w.sum()) if w.sum() > 0 else np.nan
    return counts / total, np.sqrt(squares) / total


def binned(values: npt.NDArray[Any], count: int = 40) -> Array:
    """Return edges of bins: the middle 98 % of some values and a bit more; each whole number if few."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return np.array([0.0, 1.0])
    low, high = np.quantile(finite, [0.01, 0.99])
    reach = 0.1 * (high - low)
    low, high = max(float(finite.min()), low - reach), min(float(finite.max()), high + reach)
    if high - low < count and (finite == np.floor(finite)).all():
        return np.arange(low - 0.5, high + 1.0)
    if not high > low:
        width = abs(low) or 1.0
        low, high = low - width / 2, high + width / 2
    return np.linspace(low, high, count + 1)


def quantiles(values: npt.NDArray[Any], weight: npt.NDArray[Any], shares: Sequence[float]) -> Array:
    """Return weighted quantiles; NaN without weight."""
    order = np.argsort(values, kind="stable")
    # weights may be negative
    below = np.maximum.accumulate(np.cumsum(weight[order].astype(np.float64))) if len(order) else np.zeros(1)
    if not below[-1] > 0:
        return np.full(len(shares), np.nan)
    places = np.searchsorted(below, np.asarray(shares) * below[-1])
    return np.asarray(values[order][np.minimum(places, len(order) - 1)], np.float64)
