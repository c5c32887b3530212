"""A training that Ray Data reads for: a worker dies in mid-epoch, a file is damaged."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlaas_ray.core.errors import DataError
from mlaas_ray.workflows import Hooks, Job, train
from mlaas_ray.workflows.run_folder import RunFolder
from tests.streaming.conftest import damage
from tests.training.test_fit import DIES_ONCE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]


def test_a_worker_that_dies_in_mid_epoch_costs_no_event(
    write_job: Callable[..., Path], tmp_path: Path
) -> None:
    marker, model = tmp_path / "died", tmp_path / "dies.py"
    model.write_text(DIES_ONCE.format(marker=str(marker)))
    runs: list[RunFolder] = []
    steps: dict[str, Any] = {"batch_size": 64, "checkpoint": {"every_steps": 20}, "early_stopping": False}
    job = write_job(
        model={"name": str(model)},
        reading={"mode": "cluster"},
        # less memory than the events need, so that every epoch is a pass over the files
        train={"epochs": 3, "workers": 2, "cpus_per_worker": 0.5, "max_failures": 1, "shuffle_bytes": 200_000}
        | steps,
    )
    package = train(Job.load(job), progress=False, hooks=Hooks(on_run=runs.append))
    assert marker.exists()
    events = package.metrics["training"]["events"]
    assert package.metrics["events"] == 3 * events
    assert events + package.metrics["validation"]["events"] == 6_000
    record = json.loads((Path(runs[0].url) / "record.json").read_text())
    readings = {(one["reading"], one["epoch"]): one["total"] for one in record["readings"]}
    assert {key for key in readings if key[0] == "train"} == {("train", epoch) for epoch in range(3)}
    for (name, _), total in readings.items():
        assert total["read"] == (events if name == "train" else 6_000 - events)
        assert total["read"] + total["cut"] + total["elsewhere"] == total["planned"]
        assert total["not_reached"] == 0


def test_what_cannot_be_read_ends_the_run_as_in_the_other_mode(
    write_job: Callable[..., Path], samples: dict[str, Path], tmp_path: Path
) -> None:
    broken = shutil.copy(samples["signal"], tmp_path / "broken.root")
    runs: list[RunFolder] = []

    def spoil(run: RunFolder) -> None:
        runs.append(run)
        damage(tmp_path / "broken.root", "MET_pt")

    datasets = {
        "signal": {"files": str(broken), "label": 1},
        "background": {"files": str(samples["background"]), "label": 0},
    }
    job = Job.load(write_job(datasets=datasets, reading={"mode": "cluster"}))
    with pytest.raises(DataError) as caught:
        train(job, progress=False, hooks=Hooks(on_run=spoil))
    assert re.search(r"broken\.root.*MET_pt", str(caught.value))
    assert "\n" not in str(caught.value)
