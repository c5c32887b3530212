"""``mlaas compare``: two models, by name or folder, on the events of a job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from mlaas_ray.cli.main import app
from mlaas_ray.repository import Repository
from mlaas_ray.streaming import first_pass
from mlaas_ray.workflows import Job
from tests.packaged import package_of


@pytest.fixture
def job(tmp_path: Path, samples: dict[str, Path]) -> Path:
    content = {
        "datasets": {name: {"files": str(path), "label": name == "signal"} for name, path in samples.items()},
        "inputs": {"include": ["MET_pt", "Jet_btag"], "objects": {"Jet": {"length": 2}}},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def shelf(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "shelf")


@pytest.fixture
def mlaas(shelf: Repository, job: Path) -> Callable[..., Result]:
    def run(*arguments: object) -> Result:
        options = ["--data", job, "--repository", shelf.root]
        return CliRunner().invoke(app, ["compare", *map(str, [*arguments, *options])])

    return run


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_published_model_is_compared_with_a_folder(
    mlaas: Callable[..., Result], job: Path, shelf: Repository, tmp_path: Path
) -> None:
    described = Job.load(job)
    found = first_pass(described.samples({}), described.wanted, progress=False)
    shelf.publish(package_of(tmp_path / "poor", found.features, {"MET_pt": 0.01}, name="toy"))
    shelf.set_alias("toy", "production")
    good = package_of(tmp_path / "good", found.features, {"Jet_btag_0": 5.0, "Jet_btag_1": 5.0})
    done = mlaas("toy:production", good.path, "--set", "split={test: 0.5}", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["first"], document["second"]) == ("toy:production", str(good.path))
    assert (document["verdict"], document["part"]) == ("better", "test")
    assert 2800 < document["events"] < 3200
    auc = document["auc"]
    assert auc["difference"] == pytest.approx(auc["second"] - auc["first"])
    assert 0.5 < auc["first"] < auc["second"] < 1
    assert document["loss"]["difference"] == pytest.approx(
        document["loss"]["second"] - document["loss"]["first"]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_people_get_a_table_and_a_sentence(
    mlaas: Callable[..., Result], job: Path, shelf: Repository, tmp_path: Path
) -> None:
    described = Job.load(job)
    found = first_pass(described.samples({}), described.wanted, progress=False)
    shelf.publish(package_of(tmp_path / "one", found.features, {"Jet_btag_0": 5.0}, name="toy"))
    done = mlaas("toy", "toy:1")
    assert done.exit_code == 0, done.stderr
    assert "AUC" in done.stdout
    assert "toy:1 is not significantly different from toy on 1," in done.stdout.replace("\n", " ")
    assert "validation events" in done.stdout


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("none", "toy"), "no model 'none'"),
        (("toy:2", "toy"), "model 'toy' has no version 2. It has: 1."),
        (("toy", "toy:best"), "model 'toy' has no alias 'best'"),
        (("toy", "."), "is no model package"),
    ],
)
def test_a_model_that_is_missing_is_one_line_with_a_remedy(
    mlaas: Callable[..., Result], shelf: Repository, onnx_package, names: tuple[str, str], message: str
) -> None:
    shelf.publish(onnx_package)
    done = mlaas(*names)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_job_that_is_wrong_is_told_first(mlaas: Callable[..., Result]) -> None:
    done = mlaas("none", "toy", "--set", "split.tset=0.1")
    assert done.exit_code == 2
    assert "unknown key 'split.tset'" in done.stderr
