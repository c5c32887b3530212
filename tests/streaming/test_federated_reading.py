"""The whole way over a federation that loses a server: reading, its blocks, and what the record tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mlaas_ray.core.inputs import Inputs
from mlaas_ray.streaming import ReadingSettings, Sample, first_pass, new_record, planned_events
from tests.xrootd_federation import Federation

pytestmark = [pytest.mark.xrootd, pytest.mark.usefixtures("ray_local")]


def test_every_event_comes_once_and_the_record_tells_of_a_server_that_died(
    write_tree: Callable[..., Path], xrootd_federation: Callable[[Path], Federation]
) -> None:
    paths = [write_tree(f"files/{seed}.root", events=3_000, clusters=6, seed=seed) for seed in range(3)]
    federation = xrootd_federation(paths[0].parent)
    urls = [f"{federation.url}/{path.name}" for path in paths]
    found = first_pass([Sample(urls)], Inputs(include=["MET_pt", "Jet_*"]))
    record = new_record(found)
    # read in this process and little ahead, so that servers die while their files are being read
    reading = ReadingSettings(in_flight=1)
    events = planned_events(found, shuffle=True, reading=reading, record=record)
    blocks = range(events.blocks(0))
    assert len(blocks) > 5
    seen: list[tuple[int, int]] = []
    for number, table in enumerate(events.tables(0, blocks)):
        seen += zip(table["file"].to_pylist(), table["entry"].to_pylist(), strict=True)
        if number in (1, 3):  # one after the other, so that the one it is read from is among them
            federation.start()
            federation.servers[number // 3].kill()
    assert len(seen) == 9_000
    assert len(set(seen)) == 9_000
    total = record.document()["total"]
    assert total["read"] == total["planned"] == 9_000
    assert total["failovers"] >= 1
