"""Variables that a report draws the score against are those of the very events that were judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlaas_ray.core.errors import DataError
from mlaas_ray.streaming import first_pass, planned_events
from mlaas_ray.training.evaluation import evaluate
from mlaas_ray.training.group import Group
from mlaas_ray.training.settings import Weighting
from mlaas_ray.workflows import Job
from mlaas_ray.workflows.report.answers import Answers
from mlaas_ray.workflows.spectators import spectators, values_of

pytestmark = pytest.mark.usefixtures("ray_local")

AGAINST = {
    "define": {"ht": "sum(Jet_pt, axis=1)"},
    "select": "nJet >= 2",
    "inputs": {"include": ["MET_pt", "Jet_pt"]},
    "report": {"against": ["ht", "MET_phi", "MET_pt"]},
}


class Asked:
    """Answers every event alike."""

    def predict(self, x: Any) -> Any:
        return np.full((len(x), 1), 0.5, np.float32)


def judged_of(job: Job) -> tuple[Answers, Any]:
    """Return answers to the validation events, with the inputs of some, and what the first pass found."""
    from mlaas_ray.core.task import Task

    found = first_pass(job.samples({}), job.wanted, reading=job.reading, key=job.split.key, progress=False)
    source = planned_events(found, part=job.split.parts[1], seed=job.seed, classes=2)
    network: Any = Asked()
    seen = evaluate(
        network, source.tables(0, range(source.blocks(0))), found.features, Task(), Weighting(), Group()
    )
    rows, columns = seen.answers, found.features.columns
    inputs = {name: seen.inputs[:500, place] for place, name in enumerate(columns)}
    return (
        Answers(rows["prediction"], rows["y"], rows["weight"], rows["dataset"], seen.events, inputs=inputs),
        found,
    )


def test_they_are_of_the_events_that_were_judged(write_job: Callable[..., Path]) -> None:
    job = Job.load(write_job(**AGAINST))
    judged, found = judged_of(job)
    beside = spectators(job, found, progress=False)
    assert beside is not None
    values = values_of(job, beside, judged, 2)
    assert {name: len(one) for name, one in values.items()} == {"MET_phi": 500, "MET_pt": 500, "ht": 500}
    np.testing.assert_array_equal(values["MET_pt"], judged.inputs["MET_pt"])
    jets = [one for name, one in judged.inputs.items() if name.startswith("Jet_pt_")]
    np.testing.assert_allclose(values["ht"], np.nansum(jets, axis=0), rtol=1e-5)
    assert np.ptp(values["MET_phi"]) > 5  # which the model does not see


def test_without_a_wish_nothing_is_read(write_job: Callable[..., Path]) -> None:
    job = Job.load(write_job())
    assert spectators(job, None) is None  # type: ignore[arg-type]


def test_one_that_the_files_lack_is_told_before_training(write_job: Callable[..., Path]) -> None:
    job = Job.load(write_job(report={"against": ["mas"]}))
    found = first_pass(job.samples({}), job.wanted, progress=False)
    with pytest.raises(DataError, match="mas"):
        spectators(job, found, progress=False)


def test_events_that_are_others_now_are_not_drawn(
    write_job: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    job = Job.load(write_job(**AGAINST))
    judged, found = judged_of(job)
    beside = spectators(job.model_copy(update={"select": "nJet >= 3"}), found, progress=False)
    assert beside is not None
    assert values_of(job, beside, judged, 2) == {}
    assert "the report lacks report.against" in caplog.text
