from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlaas_ray.core.errors import JobError
from mlaas_ray.core.task import Task
from mlaas_ray.streaming import Census, FirstPass, first_pass, take_census
from mlaas_ray.workflows import Job, resume
from mlaas_ray.workflows.keeping import begin, first_weights, kept_features, kept_job, kept_task
from mlaas_ray.workflows.run_folder import RunFolder
from mlaas_ray.workflows.sections import ModelSettings
from tests.packaged import package_of

pytestmark = pytest.mark.usefixtures("ray_local")

TASK = Task(names=("background", "signal"))


@pytest.fixture
def job(write_job: Callable[..., Path]) -> Job:
    return Job.load(write_job())


@pytest.fixture(scope="module")
def found(samples: dict[str, Path], ray_local: None) -> FirstPass:
    content = {
        "datasets": {
            "signal": {"files": str(samples["signal"]), "label": 1},
            "background": {"files": str(samples["background"]), "label": 0},
        },
        "inputs": {"include": ["MET_pt", "nJet"]},
    }
    job = Job.of(content, "the job")
    return first_pass(job.samples({}), job.wanted, progress=False)


@pytest.fixture(scope="module")
def census(found: FirstPass) -> Census:
    return take_census(found, classes=2, progress=False)


def test_a_run_can_be_gone_on_with_from_elsewhere(
    job: Job, found: FirstPass, census: Census, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def model(input_dim): ...\n")
    (tmp_path / "own.py").write_text("def framework(): ...\n")
    (tmp_path / "a.root").touch()
    monkeypatch.chdir(tmp_path)
    content = job.model_dump(mode="json", exclude_unset=True)
    content |= {"model": {"name": "mine.py", "width": 3}, "framework": "own.py"}
    content["datasets"]["signal"]["files"] = ["a.root", "root://host//b.root", "/store/c.root"]
    job = Job.of(content, "the job").checked(tmp_path)
    run = RunFolder("runs/toy-1")
    begin(job, run, found, census, TASK, None)
    # the user goes on to change his code
    (tmp_path / "mine.py").write_text("def model(input_dim): raise\n")
    monkeypatch.chdir("/")
    kept = Job.of(yaml.safe_load(run.read("job.yaml") or ""), "the run's job")
    assert kept.datasets["signal"].files == (f"{tmp_path}/a.root", "root://host//b.root", "/store/c.root")
    assert kept.model.options == {"width": 3}
    assert Path(kept.model.name or "").read_text() == "def model(input_dim): ...\n"
    assert Path(kept.framework).read_text() == "def framework(): ...\n"
    assert kept.storage == f"{tmp_path}/runs"
    same = ("name", "seed", "inputs", "split", "train", "define", "select", "weights", "mixing")
    assert [getattr(kept, key) for key in same] == [getattr(job, key) for key in same]


def test_what_was_learnt_of_the_files_is_kept(
    job: Job, found: FirstPass, census: Census, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    assert (kept_task(run, None), kept_features(run, None), first_weights(run)) == (None, None, {})
    task = Task(kind="regression", names=("E",), offset=(3.0,), scale=(2.0,))
    begin(job, run, found, census, task, None)
    assert kept_task(run, None) == task
    # the columns are found again, in the same files
    assert kept_features(run, None) is None
    kept = yaml.safe_load(run.read("census.json") or "")
    assert Census.of(kept).document() == census.document()
    assert [dataset["entries"] for dataset in kept["datasets"]] == [3000, 3000]


def test_a_run_that_begins_with_a_package_keeps_its_columns_task_and_weights(
    job: Job, found: FirstPass, census: Census, tmp_path: Path
) -> None:
    first = package_of(tmp_path / "first", found.features, {"MET_pt": 1.0}, state={"network.pt": b"weights"})
    run = RunFolder(tmp_path / "run")
    assert kept_task(run, first) == first.task
    assert kept_features(run, first) == found.features
    begin(job, run, found, census, TASK, first)
    assert kept_features(run, None) == found.features
    assert first_weights(run) == {"network.pt": b"weights"}


def changed_file(found: FirstPass, **changes: Any) -> FirstPass:
    return replace(found, files=(replace(found.files[0], **changes), *found.files[1:]))


@pytest.mark.parametrize(
    "change",
    [
        lambda job, found: (job, changed_file(found, uuid="another")),
        lambda job, found: (job, changed_file(found, boundaries=(0, 1000, 3000))),
        lambda job, found: (job, replace(found, files=found.files[:1])),
        lambda job, found: (job, replace(found, key=("event",))),
        lambda job, found: (job.model_copy(update={"seed": 4}), found),
        lambda job, found: (job.model_copy(update={"mixing": "equal"}), found),
        lambda job, found: (
            job.model_copy(update={"split": job.split.model_copy(update={"test": 0.1})}),
            found,
        ),
    ],
    ids=["file", "clusters", "files", "key", "seed", "mixing", "split"],
)
def test_a_run_does_not_go_on_with_other_events(
    job: Job, found: FirstPass, census: Census, tmp_path: Path, change: Callable[..., tuple[Job, FirstPass]]
) -> None:
    run = RunFolder(tmp_path / "run")
    begin(job, run, found, census, TASK, None)
    begin(job, run, found, census, TASK, None)
    # how it learns may change
    begin(
        job.model_copy(update={"train": job.train.model_copy(update={"epochs": 9})}),
        run,
        found,
        census,
        TASK,
        None,
    )
    kept = run.read("job.yaml")
    other, files = change(job, found)
    with pytest.raises(JobError, match=r"the files or inputs are not those with which .*run began"):
        begin(other, run, files, census, TASK, None)
    assert run.read("job.yaml") == kept


def test_what_is_changed_of_a_run_counts_next_time_too(
    job: Job, found: FirstPass, census: Census, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "toy-1")
    begin(job, run, found, census, TASK, None)
    begin(kept_job(run, ["train.epochs=7"]), run, found, census, TASK, None)
    assert kept_job(run).train.epochs == 7


def test_a_run_in_an_object_store_has_its_code_with_it(
    job: Job, found: FirstPass, census: Census, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def model(input_dim): ...\n")
    run = RunFolder("memory://bucket/toy-1")
    begin(job.model_copy(update={"model": ModelSettings(name=str(mine))}), run, found, census, TASK, None)
    mine.unlink()
    again = kept_job(run)
    assert again.model.name != str(mine)
    assert Path(again.model.name or "").read_text() == "def model(input_dim): ...\n"
    begin(again, run, found, census, TASK, None)
    assert kept_job(run).model.name is not None


def test_a_folder_of_something_else_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(
        JobError, match=r"none is no run: it has no job.yaml. Give the folder that mlaas train"
    ):
        resume(tmp_path / "none")
