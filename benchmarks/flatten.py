"""How fast events become rows: arrays as a reader gives them, and single events as a client sends them."""

from __future__ import annotations

import time
from collections.abc import Callable

import awkward as ak
import numpy as np
from rich.console import Console
from rich.table import Table

from mlaas_ray.core import Feature, FeatureSpec, flatten, flatten_events

EVENTS = 50_000
FLAT, COLLECTIONS, BRANCHES, LENGTH = 18, 8, 6, 8
SECONDS = 3.0


def simulated() -> tuple[FeatureSpec, dict[str, ak.Array]]:
    """Return columns like those of a NanoAOD analysis, and events with 0 to 11 objects a collection."""
    random = np.random.default_rng(0)
    arrays = {f"flat{i}": random.normal(size=EVENTS).astype(np.float32) for i in range(FLAT)}
    features = [Feature(name=name, kind="flat") for name in arrays]
    for collection in range(COLLECTIONS):
        counts = random.integers(0, 12, EVENTS)
        for branch in range(BRANCHES):
            name = f"Object{collection}_b{branch}"
            arrays[name] = ak.unflatten(random.normal(size=counts.sum()).astype(np.float32), counts)
            features.append(Feature(name=name, kind="jagged", length=LENGTH))
    return FeatureSpec.of(features), arrays


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call, from as many as fit into a few seconds."""
    work()
    calls, start, deadline = 0, time.process_time(), time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        work()
        calls += 1
    return (time.process_time() - start) / calls


def main() -> None:
    """Measure and print."""
    spec, arrays = simulated()
    out = np.empty((EVENTS, spec.width), np.float32)
    events = [{name: array[i].tolist() for name, array in arrays.items()} for i in range(200)]
    rows = {
        "flatten, new rows": cpu_seconds(lambda: flatten(arrays, spec)) / EVENTS,
        "flatten, rows reused": cpu_seconds(lambda: flatten(arrays, spec, out)) / EVENTS,
        "flatten_events, 200 at once": cpu_seconds(lambda: flatten_events(events, spec)) / len(events),
        "flatten_events, one by one": cpu_seconds(lambda: [flatten_events([e], spec) for e in events])
        / len(events),
    }
    table = Table("", "CPU us/event", "events/s", title=f"{len(arrays)} branches, {spec.width} columns")
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds * 1e6:.2f}", f"{1 / seconds:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
