"""Which keys of a job may change when its run goes on; the rest is refused by name, and nothing ignored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlaas_ray.core.errors import JobError
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.workflows import Hooks, Job, resume, train
from mlaas_ray.workflows.keeping import JOB, changes_of
from mlaas_ray.workflows.resuming import KEYS, entry_of
from mlaas_ray.workflows.run_folder import RunFolder
from mlaas_ray.workflows.schema import job_schema

DOCS = Path(__file__).parents[2] / "docs"

REFUSED = [
    "name=other",
    "seed=7",
    "datasets.a.tree=t",
    "datasets.a.label=0",
    "datasets.a.xsec=3",
    "datasets.a.sum_weights=3",
    "datasets.c={files: c.root, label: 1}",
    "lumi=3",
    "mixing=equal",
    "reading.missing=drop",
    "reading.fill={HLT_*: true}",
    "reading.nested=flatten",
    "reading.max_events=10",
    "reading.sample=0.5",
    "define.z=x + 1",
    "select=x > 1",
    "inputs.exclude=[x]",
    "inputs={normalise: standard}",
    "inputs.objects.Jet.length=3",
    "weights=w",
    "weights.balance=classes",
    "weights.negative=zero",
    "task=multiclass",
    "task.classes=[one, two]",
    "split.test=0.1",
    "split.key=[event]",
    "model=deepsets",
    "model.hidden=[3]",
    "framework=xgboost",
    "train.batch_size=7",
    "train.weight_decay=0.1",
    "train.precision=bfloat16",
    "train.loss=mae",
    "train.shuffle_bytes=100000",
    "train.parameters.max_depth=3",
    "train={epochs: 9, batch_size: 7}",
    "storage=elsewhere",
]
ACCEPTED = [
    "datasets.a.files=[moved/a.root]",
    "datasets.a.origin=a page",
    "datasets.a={das: /a/b/c, label: 1}",
    "reading.mode=plan",
    "reading.redirectors=[root://a/]",
    "reading.allow_duplicates=true",
    "reading.bad_files=skip",
    "reading.patience_s=60",
    "reading.checksums=false",
    "reading.cache={folder: /scratch}",
    "reading.ahead_bytes=1000",
    "reading.in_flight=2",
    "reading.threads=2",
    "train.workers=2",
    "train.workers=[1, 2]",
    "train.gpus_per_worker=1",
    "train.cpus_per_worker=0.5",
    "train.epochs=20",
    "train.learning_rate=0.1",
    "train.schedule=linear",
    "train.clip=1.0",
    "train.average=0.9",
    "train.early_stopping={}",
    "train.early_stopping=false",
    "train.early_stopping.patience=9",
    "train.checkpoint.keep=3",
    "train.max_failures=3",
    "report.against=[mass]",
    "publish={aliases: candidate}",
]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    job = {
        "datasets": {"a": {"files": "a.root", "label": 1}, "b": {"files": "b.root", "label": 0}},
        "reading": {"missing": "fill"},
        "train": {"epochs": 12},
    }
    (tmp_path / JOB).write_text(yaml.safe_dump(job))
    return RunFolder(tmp_path)


def key_of(change: str) -> str:
    return change.partition("=")[0]


@pytest.mark.parametrize("change", REFUSED)
def test_what_cannot_change_is_refused_by_its_name_and_with_the_reason(run: RunFolder, change: str) -> None:
    key = key_of(change)
    with pytest.raises(JobError) as caught:
        changes_of(run, [change])
    told, _, rest = caught.value.message.partition(" ")
    assert told.startswith(key)
    assert rest == f"cannot change when a run goes on: {KEYS[entry_of(told.split('.'))]}"
    # beside others that may
    with pytest.raises(JobError, match="cannot change"):
        changes_of(run, ["train.epochs=20", change])


@pytest.mark.parametrize("change", ACCEPTED)
def test_what_may_change_is_named(run: RunFolder, change: str) -> None:
    found = changes_of(run, [change])
    assert found
    # a section that was not there before is named itself, too
    asked = key_of(change)
    assert all(key.startswith(asked) or asked.startswith(key) for key in found)


def test_what_is_said_again_as_it_was_changes_nothing(run: RunFolder) -> None:
    assert changes_of(run, ["seed=0", "train.batch_size=256", "framework=torch", "train.epochs=12"]) == []


def test_the_changes_tried_here_are_of_every_key_of_the_table() -> None:
    tried = {
        entry_of(key_of(change).split("."))
        for change in (*REFUSED, *ACCEPTED)
        if not change.startswith(("datasets.c", "datasets.a={", "train="))
    }
    assert tried | {"datasets.NAME.das"} == set(KEYS)


def keys(schema: dict[str, Any], part: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return every key of a schema that holds no further keys; NAME for names that users give."""
    options = [part, *part.get("anyOf", [])]
    found = []
    for option in options:
        if "$ref" in option:
            option = schema["$defs"][option["$ref"].rpartition("/")[2]]
        for name, field in option.get("properties", {}).items():
            found += keys(schema, field, (*path, name))
        if isinstance(option.get("additionalProperties"), dict):
            found += keys(schema, option["additionalProperties"], (*path, "NAME"))
    return found or [path]


def test_every_key_of_a_job_is_in_the_table() -> None:
    schema = job_schema()
    found = keys(schema, schema)
    assert len(found) > 70
    decided = {entry_of(path) for path in found}
    assert decided == set(KEYS)
    # a key added to one of these sections must be decided upon by itself
    assert not decided & {"train", "reading", "datasets.NAME"}


def test_the_documentation_tells_what_may_change() -> None:
    page = (DOCS / "training" / "faults.md").read_text()
    told = page.partition("## Resuming")[2].partition("\n## ")[0]
    for key, reason in KEYS.items():
        assert (f"`{key}`" in told) == (not reason), key


def trained(job: Path) -> tuple[RunFolder, ModelPackage]:
    runs: list[RunFolder] = []
    package = train(Job.load(job), progress=False, hooks=Hooks(on_run=runs.append))
    return runs[0], package


def losses(package: ModelPackage) -> list[list[float]]:
    return [[one["loss"], one["validation_loss"]] for one in package.metrics["history"]]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_local")
def test_a_finished_run_trains_on_to_what_a_longer_one_comes_to(write_job: Callable[..., Path]) -> None:
    options = {"schedule": "constant", "checkpoint": {"keep": 1}}
    _, longer = trained(write_job(train={"epochs": 4, **options}))
    run, short = trained(write_job(train={"epochs": 2, **options}))
    sizes = short.manifest.files
    _, further = resume(run.url, progress=False, changes=["train.epochs=4"])
    further.check()
    assert [one["epoch"] for one in further.metrics["history"]] == [1, 2, 3, 4]
    assert losses(further) == [pytest.approx(one, rel=1e-5) for one in losses(longer)]
    assert further.metrics["validation"]["auc"] == pytest.approx(
        longer.metrics["validation"]["auc"], abs=1e-5
    )
    assert further.metrics["events"] == longer.metrics["events"]
    # the model is another, and made of the same files: nothing of the run's state is in it
    assert sizes.keys() == further.manifest.files.keys()
    assert not [name for name in sizes if name.startswith("last")]
    # and again: nothing is left, and nothing is written
    written = (Path(run.url) / "package" / "package.json").stat().st_mtime_ns
    resume(run.url, progress=False)
    assert (Path(run.url) / "package" / "package.json").stat().st_mtime_ns == written
    with pytest.raises(JobError, match=r"has trained 4 epochs, so train\.epochs cannot be 3\. Give more"):
        resume(run.url, progress=False, changes=["train.epochs=3"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_local")
def test_a_run_that_early_stopping_ended_trains_on(write_job: Callable[..., Path]) -> None:
    # no epoch is better than the first by so much
    rule = {"patience": 1, "min_delta": 10.0}
    run, package = trained(write_job(train={"epochs": 6, "early_stopping": rule}))
    assert [len(package.metrics["history"]), package.metrics["best_epoch"]] == [2, 1]
    with pytest.raises(JobError, match=r"has finished its training: train\.workers would change nothing"):
        resume(run.url, progress=False, changes=["train.workers=2"])
    _, package = resume(run.url, progress=False, changes=["train.early_stopping.patience=2"])
    assert [len(package.metrics["history"]), package.metrics["best_epoch"]] == [3, 1]
    _, package = resume(run.url, progress=False, changes=["train.epochs=5", "train.early_stopping=false"])
    assert [len(package.metrics["history"]), package.metrics["best_epoch"]] == [5, None]
