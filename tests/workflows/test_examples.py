"""The example jobs load, find their files from a new clone, and reach what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlaas_ray.core.errors import FileMissingError
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.workflows import Job, train
from tests.workflows.conftest import EXAMPLES, simulate

# On 3,000 simulated events of each process: what a model reaches that has learnt something.
SIMULATED = {
    "toy-torch": ("auc", 0.75),
    "toy-keras": ("auc", 0.75),
    "toy-xgboost": ("auc", 0.75),
    "toy-classes": ("auc", 0.7),
    "toy-regression": ("r2", 0.2),
    "toy-grid": ("auc", 0.7),
    "toy-own-network": ("auc", 0.75),
}
# Held-out AUC on real files; MLaaS4HEP's recipe comes to 0.879 on single top against dibosons.
REAL = {
    "sigbkg-torch": 0.890,
    "sigbkg-keras": 0.890,
    "sigbkg-xgboost": 0.900,
    "higgs-torch": 0.740,
    "higgs-xgboost": 0.765,
}


def load(name: str, *changes: str) -> Job:
    return Job.load(EXAMPLES / f"{name}.yaml", changes)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_example_is_tried_and_in_the_list_of_them() -> None:
    names = sorted(path.stem for path in EXAMPLES.glob("*.yaml"))
    assert names == sorted([*SIMULATED, *REAL])
    listed = (EXAMPLES / "README.md").read_text()
    assert [name for name in names if f"`{name}.yaml`" not in listed] == []


@pytest.mark.parametrize("name", [*SIMULATED, *REAL])
def test_an_example_is_a_job(name: str) -> None:
    assert load(name).name == name
    assert load(name).framework in name or load(name).framework == "torch"


@pytest.mark.parametrize("name", [*SIMULATED, *REAL])
def test_an_example_whose_files_are_missing_says_where_they_come_from(name: str, elsewhere: Path) -> None:
    for sample in load(name).samples({}):
        with pytest.raises(FileMissingError) as caught:
            sample.found()
        told = str(caught.value).partition("Get it from: ")[2]
        assert told.startswith("https://") if name in REAL else told == "the command 'mlaas simulate'."


@pytest.mark.parametrize("name", SIMULATED)
def test_an_example_on_simulated_events_reads_what_is_simulated(name: str, elsewhere: Path) -> None:
    simulate(elsewhere)
    for sample in load(name).samples({}):
        assert [source.path for source in sample.found().sources] == [
            str(elsewhere / "quickstart/data" / f"{sample.name}.root")
        ]


@pytest.mark.slow
@pytest.mark.parametrize("name", SIMULATED)
def test_an_example_on_simulated_events_learns(name: str, example: Callable[[str], ModelPackage]) -> None:
    metric, least = SIMULATED[name]
    package = example(name)
    package.check()
    assert package.metrics["validation"][metric] >= least


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
@pytest.mark.usefixtures("ray_local")
def test_an_example_separates_as_well_as_is_said(name: str, real_data: Path, tmp_path: Path) -> None:
    changes = [f"storage={tmp_path}"]
    for dataset, settings in load(name).datasets.items():
        files = [str(real_data / "sigbkg" / Path(file).name) for file in settings.files]
        changes.append(f"datasets.{dataset}.files={json.dumps(files)}")
    package = train(load(name, *changes), progress=False)
    assert package.metrics["validation"]["auc"] >= REAL[name]
