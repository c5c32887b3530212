"""How fast events become images: the kernel, its reference, numpy.histogram2d; and scatter for comparison."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from mlaas_ray.core import Feature, FeatureSpec, GridSpec
from mlaas_ray.core.columns import Column, Jagged
from mlaas_ray.core.grid import Axis, Channel, View
from mlaas_ray.core.rasterise import rasterise as reference
from mlaas_ray.streaming.raster import rasterise
from mlaas_ray.streaming.scatter import scatter

COLLECTIONS = ("Jet", "Muon")
FIELDS = ("eta", "phi", "pt")
ETA = Axis(name="eta", bins=48, low=-2.5, high=2.5)
PHI = Axis(name="phi", bins=64, low=-np.pi, high=np.pi, periodic=True)
# events, and mean objects of each of two collections: jets, and hits
SIZES = ((4_000, 5), (1_000, 1_000))


def simulated(events: int, mean: int) -> dict[str, Column]:
    """Return big-endian columns, as a file has them."""
    random = np.random.default_rng(0)
    columns: dict[str, Column] = {}
    for collection in COLLECTIONS:
        offsets = np.concatenate([[0], np.cumsum(random.poisson(mean, events))]).astype(np.int64)
        values = (
            random.normal(0, 1.5, offsets[-1]),
            random.uniform(-3.1, 3.1, offsets[-1]),
            random.exponential(40, offsets[-1]),
        )
        for field, content in zip(FIELDS, values, strict=True):
            columns[f"{collection}_{field}"] = Jagged(offsets, content.astype(">f4"))
    return columns


def specs(length: int) -> tuple[GridSpec, FeatureSpec]:
    """Return the images, and a vector of the same branches."""
    features = [Feature(name=f"{c}_{f}", kind="jagged", length=length) for c in COLLECTIONS for f in FIELDS]
    channels = tuple(Channel(name=c, x=f"{c}_eta", y=f"{c}_phi", weight=f"{c}_pt") for c in COLLECTIONS)
    grid = GridSpec.of(features, views=(View(name="eta_phi", x=ETA, y=PHI, channels=channels),))
    return grid, FeatureSpec.of(features)


def histograms(columns: dict[str, Column], spec: GridSpec, out: np.ndarray) -> None:
    """Draw the same with one call of numpy an event and channel."""
    images = spec.fold(out)["eta_phi"]
    limits = [(PHI.low, PHI.high), (ETA.low, ETA.high)]
    for channel, collection in enumerate(COLLECTIONS):
        eta, phi, pt = (columns[f"{collection}_{field}"] for field in FIELDS)
        for event, (start, stop) in enumerate(zip(eta.offsets[:-1], eta.offsets[1:], strict=True)):
            images[event, channel], *_ = np.histogram2d(
                phi.content[start:stop],
                eta.content[start:stop],
                (PHI.bins, ETA.bins),
                limits,
                weights=pt.content[start:stop],
            )


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the median CPU time of seven calls, after one."""
    work()
    times = []
    for _ in range(7):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    for events, mean in SIZES:
        columns = simulated(events, mean)
        grid, vector = specs(2 * mean)
        drawn, checked = np.empty((2, events, grid.width), np.float32)
        rows = np.empty((events, vector.width), np.float32)
        timed = {
            "rasterise (numba)": lambda: rasterise(columns, grid, drawn),  # noqa: B023
            "its reference (numpy)": lambda: reference(columns, grid, checked),  # noqa: B023
            "numpy.histogram2d": lambda: histograms(columns, grid, checked),  # noqa: B023
            f"scatter, {vector.width} columns": lambda: scatter(columns, vector, rows),  # noqa: B023
            "filling with zeros": lambda: drawn.fill(0.0),  # noqa: B023
        }
        seconds = {name: cpu_seconds(work) for name, work in timed.items()}
        rasterise(columns, grid, drawn)
        histograms(columns, grid, checked)
        assert np.allclose(drawn, checked, rtol=1e-5), "the kernel draws something else than numpy"
        objects = sum(len(columns[f"{collection}_eta"].content) for collection in COLLECTIONS)
        table = Table(
            "", "events/s", "objects/s", "ns/object", title=f"2 x {mean} objects, 2 images of 64 x 48"
        )
        for name, spent in seconds.items():
            table.add_row(
                name, f"{events / spent:,.0f}", f"{objects / spent:,.0f}", f"{spent / objects * 1e9:.1f}"
            )
        Console().print(table)


if __name__ == "__main__":
    main()
