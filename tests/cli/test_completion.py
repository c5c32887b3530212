"""What TAB offers in a shell: models, their versions and aliases, and the keys of a job."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlaas_ray.cli.main import app
from mlaas_ray.core.errors import JobError
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.repository import Repository


def completed(line: str) -> list[str]:
    """Return what bash is offered for the last word of a line."""
    words = line.split(" ")
    environment = {"_MLAAS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = CliRunner().invoke(app, [], prog_name="mlaas", env=environment)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def shelf(tmp_path: Path, onnx_package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLAAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLAAS_REPOSITORY", raising=False)
    repository = Repository(tmp_path / "models")
    for name in ("higgs", "higgs", "top"):
        repository.publish(onnx_package, name)
    repository.set_alias("higgs", "production", 1)
    return repository


@pytest.mark.usefixtures("shelf")
def test_names_of_models_then_their_aliases_and_versions() -> None:
    assert completed("mlaas models show ") == ["higgs", "top"]
    assert completed("mlaas models delete hi") == ["higgs"]
    assert completed("mlaas models alias higgs:") == ["higgs:production", "higgs:1", "higgs:2"]
    assert completed("mlaas train job.yaml --from t") == ["top"]
    assert completed("mlaas compare hi") == ["higgs"]


def test_the_folder_is_the_one_that_the_command_names(
    shelf: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.root.rename(tmp_path / "other")
    assert completed("mlaas models show ") == []
    assert completed("mlaas models show --repository other ") == ["higgs", "top"]
    monkeypatch.setenv("MLAAS_REPOSITORY", "other")
    assert completed("mlaas models show to") == ["top"]


def test_a_service_that_does_not_answer_offers_nothing() -> None:
    assert completed("mlaas models show --url http://127.0.0.1:1 ") == []
    assert completed("mlaas bench --url http://127.0.0.1:1 --model ") == []


@pytest.mark.usefixtures("shelf")
def test_keys_of_a_job() -> None:
    assert completed("mlaas train job.yaml --set train.e")[0] == "train.early_stopping="
    for _ in range(2):  # the second time from what was kept
        assert completed("mlaas train job.yaml --set train.epo") == ["train.epochs="]
    from mlaas_ray.workflows import Job
    from mlaas_ray.workflows.overrides import changed

    # each key is one that a job can have
    job = {"datasets": {"a": {"files": "a.root", "label": 1}, "b": {"files": "b.root", "label": 0}}}
    for key in completed("mlaas train job.yaml --set "):
        said = ""
        try:
            Job.of(changed(job, [f"{key}null"]), "the job")
        except JobError as error:
            said = str(error)
        assert "unknown key" not in said, key


def test_commands_are_offered_too() -> None:
    assert completed("mlaas mod") == ["models"]
    assert "publish" in completed("mlaas models ")
