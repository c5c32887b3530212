"""How fast TTrees become rows in one process: own decoding, uproot, and what users write today.

Usage: decoding.py [FILE...]: by default, files shaped like MLaaS4HEP's recipe, written for the occasion.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import awkward as ak
import numpy as np
import uproot
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

import loops

from mlaas_ray.core import FeatureSpec

EVENTS = 20_000
COLLECTIONS = {"Muon": (2.5, 15), "Tau": (5.0, 17), "Jet": (8.5, 6), "GenPart": (8.0, 10)}


def write_files(folder: Path) -> list[str]:
    """Write one zlib and one zstd file of 18 flat and 48 jagged branches, clusters of 10,000 events."""
    random = np.random.default_rng(0)
    arrays = {f"flat{i}": random.normal(size=EVENTS).astype(np.float32) for i in range(18)}
    for name, (mean, branches) in COLLECTIONS.items():
        counts = random.poisson(mean, EVENTS)
        fields = {
            f"b{i}": ak.unflatten(random.normal(size=counts.sum()).astype(np.float32), counts)
            for i in range(branches)
        }
        arrays[name] = ak.zip(fields)
    paths = []
    for name, codec in {"zlib": uproot.ZLIB(1), "zstd": uproot.ZSTD(5)}.items():
        path = folder / f"{name}.root"
        with uproot.recreate(path, compression=codec) as file:
            tree = file.mktree(
                "Events",
                {k: v.dtype if isinstance(v, np.ndarray) else v.type.content for k, v in arrays.items()},
            )
            for start in range(0, EVENTS, 10_000):
                tree.extend({k: v[start : start + 10_000] for k, v in arrays.items()})
        paths.append(str(path))
    return paths


def equal(files: Sequence[str], spec: FeatureSpec) -> bool:
    """Tell whether the loops give the same rows, value by value."""
    every: list[list[loops.Rows]] = []
    for loop in (loops.awkward, loops.uproot_numba, loops.plain):
        rows: list[loops.Rows] = []
        loop(files, spec, lambda part, rows=rows: rows.append(part.copy()))
        every.append(rows)
    return all(
        np.array_equal(a, b, equal_nan=True)
        for rows in every[1:]
        for a, b in zip(every[0], rows, strict=True)
    )


def measure(
    loop: Callable[..., int], files: Sequence[str], spec: FeatureSpec, repeats: int
) -> tuple[float, float]:
    """Return CPU-seconds per million events and events a second, medians, after one call to warm up."""
    loop(files[:1], spec)
    costs, speeds = [], []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        events = loop(files, spec)
        costs.append((time.process_time() - cpu) / events * 1e6)
        speeds.append(events / (time.perf_counter() - wall))
    return statistics.median(costs), statistics.median(speeds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--longest", type=int, help="objects kept of an event, at most")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        groups = [options.files] if options.files else [[path] for path in write_files(Path(folder))]
        for files in groups:
            spec = loops.spec_of(files, drop=["run", "event", "luminosityBlock"], longest=options.longest)
            same = "all equal" if equal(files[:1], spec) else "THEY DIFFER"
            table = Table(
                "", "CPU-s/Mev", "events/s", title=f"{Path(files[0]).name}: {spec.width} columns, {same}"
            )
            for name, loop, repeats in (
                ("own decoding + scatter", loops.plain, 5),
                ("uproot + scatter", loops.uproot_numba, 3),
                ("uproot + awkward", loops.awkward, 1),
            ):
                cost, speed = measure(loop, files, spec, min(repeats, options.repeats))
                table.add_row(name, f"{cost:.2f}", f"{speed:,.0f}")
            Console().print(table)


if __name__ == "__main__":
    main()
