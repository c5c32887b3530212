"""Plots: the distribution of every branch that a first pass measured, one histogram a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlaas_ray.core.statistics import Doubles, Sketches

if TYPE_CHECKING:
    from mlaas_ray.streaming.first_pass import FirstPass

BINS = 60
# Plots on one page.
ROWS, COLUMNS = 4, 3
# What lies beyond a range this many times the middle 98 % is not shown: one outlier would hide the rest.
REACH = 0.5


def draw(found: FirstPass, folder: Path) -> list[Path]:
    """Draw all branches, twelve a page.

    Args:
        found: With sketches: what was measured.
        folder: Where ``distributions-01.png`` and so on go; it is made.

    Returns:
        The pages.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    names = [feature.name for feature in found.features.features if feature.statistics is not None]
    pages = []
    for number, own in enumerate(_pages(names), start=1):
        figure = Figure(figsize=(4 * COLUMNS, 3 * ROWS), layout="constrained")
        FigureCanvasAgg(figure)
        for place, name in enumerate(own, start=1):
            _histogram(figure.add_subplot(ROWS, COLUMNS, place), name, found, legend=place == 1)
        pages.append(folder / f"distributions-{number:02d}.png")
        figure.savefig(pages[-1], dpi=100)
    return pages


def bins(sketches: Sketches, name: str) -> Doubles:
    """Return the edges of a branch's bins: its middle 98 % and some way around; each whole number if few."""
    seen = sketches.statistics(name)
    if seen.min is None or seen.max is None:
        return np.array([0.0, 1.0])
    low, high = sketches.quantiles(name, (0.01, 0.99))
    reach = REACH * (high - low)
    low, high = max(seen.min, low - reach), min(seen.max, high + reach)
    row = sketches.names.index(name)
    if sketches.whole[row] and high - low < BINS:
        return np.arange(low - 0.5, high + 1.0)
    if low == high:
        width = abs(low) or 1.0
        low, high = low - width / 2, high + width / 2
    return np.linspace(low, high, BINS + 1)


def _histogram(axes: Any, name: str, found: FirstPass, *, legend: bool) -> None:
    edges = bins(Sketches.merged(found.sketches, [name]), name)
    for sample, sketches in zip(found.samples, found.sketches, strict=True):
        if name in sketches.names:
            counts = sketches.histogram(name, edges)
            axes.stairs(counts, edges, label=sample.name, linewidth=1.2)
    axes.set_yscale("log", nonpositive="clip")
    axes.set_title(_title(name, found), fontsize=9)
    axes.tick_params(labelsize=7)
    if legend:
        axes.legend(fontsize=7)


def _title(name: str, found: FirstPass) -> str:
    """Return the name, and how much of it is no number."""
    seen = found.features.by_name[name].statistics
    assert seen is not None
    values = max(1, seen.count + seen.nan + seen.infinite)
    odd = [
        f"{share:.2g} % {what}"
        for what, share in (
            ("NaN", 100 * seen.nan / values),
            ("infinite", 100 * seen.infinite / values),
            ("of events without", 100 * seen.missing / max(1, found.features.entries)),
        )
        if share > 0
    ]
    return ", ".join([name, *odd])


def _pages(names: Sequence[str]) -> Iterator[Sequence[str]]:
    page = ROWS * COLUMNS
    for start in range(0, len(names), page):
        yield names[start : start + page]
