"""Plots: the distribution of every branch that a first pass measured, one histogram a dataset."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlaas_ray import __version__
from mlaas_ray.core.statistics import Doubles, Sketches

if TYPE_CHECKING:
    from mlaas_ray.streaming.first_pass import FirstPass

BINS = 60
# Branches on one page, each with its counts (log) and its shapes (linear).
ROWS, COLUMNS = 4, 3
# What lies beyond a range this many times the middle 98 % is not shown: one outlier would hide the rest.
REACH = 0.5
# Units of branches as experiments name them: GeV for momenta, energies and masses, radians for azimuths.
_UNITS = (("GeV", ("pt", "et", "energy", "mass", "m", "e", "ht", "met", "px", "py", "pz")), ("rad", ("phi",)))


def draw(found: FirstPass, folder: Path) -> list[Path]:
    """Draw all branches, twelve a page: entries on a logarithmic axis, and normalised shapes on a linear one.

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
    told = f"{time.strftime('%Y-%m-%d')}, mlaas-ray {__version__}"
    sampled = f", {found.sampled:.3g} of the clusters" if found.sampled < 1 else ""
    pages = []
    for number, own in enumerate(_pages(names), start=1):
        figure = Figure(figsize=(4.6 * COLUMNS, 4.4 * -(-len(own) // COLUMNS) + 0.4), layout="constrained")
        canvas: Any = FigureCanvasAgg(figure)
        parts = figure.subfigures(-(-len(own) // COLUMNS), COLUMNS, squeeze=False).ravel()
        for place, (part, name) in enumerate(zip(parts, own, strict=False)):
            _branch(part, name, found, legend=place == 0)
        basis = f"{found.features.entries:,} events{sampled}, each value counts 1; units by name"
        figure.suptitle(f"{basis}; {told}", fontsize=8, color="0.4", x=0.99, ha="right")
        pages.append(folder / f"distributions-{number:02d}.png")
        with pages[-1].open("wb") as file:
            canvas.print_png(file)
    return pages


def unit(name: str) -> str | None:
    """Return the usual unit of a branch of this name, None where the name tells none.

    Files do not tell units; these are those of NanoAOD, Delphes and most ntuples.
    """
    last = name.replace(".", "_").rpartition("_")[2].lower()
    return next((unit for unit, endings in _UNITS if last in endings), None)


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


def _branch(part: Any, name: str, found: FirstPass, *, legend: bool) -> None:
    """Draw the entries of a branch, and the shapes of the datasets, each normalised to 1."""
    edges = bins(Sketches.merged(found.sketches, [name]), name)
    top, bottom = part.subplots(2, 1, sharex=True)
    for number, (sample, sketches) in enumerate(zip(found.samples, found.sketches, strict=True)):
        if name in sketches.names:
            counts = sketches.histogram(name, edges)
            look = {"label": sample.name, "linewidth": 1.2, "color": f"C{number % 10}"}
            top.stairs(counts, edges, **look)
            bottom.stairs(counts / max(1, sketches.statistics(name).count), edges, **look)
    top.set_yscale("log", nonpositive="clip")
    top.set_ylim(bottom=0.5)
    top.set_title(_title(name, found), fontsize=9)
    top.set_ylabel("values", fontsize=8)
    bottom.set_ylabel("share of the dataset's", fontsize=8)
    bottom.set_ylim(0, None)
    told = unit(name)
    bottom.set_xlabel(f"{name} [{told}]" if told else name, fontsize=9)
    for axes in (top, bottom):
        axes.tick_params(labelsize=7)
    if legend:
        top.legend(fontsize=7)


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
