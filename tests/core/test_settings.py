from __future__ import annotations

import pytest
from pydantic import Field, ValidationError, model_validator

from mlaas_ray.core.errors import JobError
from mlaas_ray.core.settings import Settings


class Dataset(Settings):
    files: tuple[str, ...]
    label: int = Field(default=0, ge=0)


class Train(Settings):
    workers: int = Field(default=1, ge=1)
    gpus: int | float | None = None

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.workers == 13:
            raise ValueError("13 workers are unlucky")
        return self


class Job(Settings):
    datasets: dict[str, Dataset]
    train: Train = Train()
    extra: Dataset | None = None


GOOD = {"datasets": {"ttH": {"files": ["a.root"]}}}


def test_settings_are_made_from_what_a_file_holds() -> None:
    job = Job.of({**GOOD, "train": {"workers": 2}}, "job.yaml")
    assert job.train.workers == 2
    assert job.datasets["ttH"] == Dataset(files=("a.root",))


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Train().workers = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trian": {}}, r"unknown key 'trian' in job\.yaml\. Did you mean 'train'"),
        ({"train": {"worker": 2}}, r"unknown key 'train\.worker' in job\.yaml\. Did you mean 'workers'"),
        (
            {"datasets": {"ttH": {"files": [], "lable": 1}}},
            r"unknown key 'datasets\.ttH\.lable'.*Did you mean 'label'",
        ),
        ({"extra": {"file": ["a"]}}, r"unknown key 'extra\.file'.*Did you mean 'files'"),
        ({"train": {"workers": 0}}, r"job\.yaml: train\.workers: .*greater than or equal to 1 \(it is 0\)"),
        ({"train": {"workers": "many"}}, r"train\.workers: .*integer.*'many'"),
        ({"train": {"gpus": "all"}}, r"train\.gpus: .*'all'"),
        ({"train": {"workers": 13}}, r"train: 13 workers are unlucky"),
        ({"datasets": {"ttH": {}}}, r"lacks the key 'datasets\.ttH\.files'"),
        ({"datasets": 3}, r"job\.yaml: datasets: .*\(it is 3\)"),
    ],
    ids=lambda case: str(case)[:40],
)
def test_what_is_wrong_is_named_with_its_path(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(JobError, match=reason):
        Job.of(GOOD | changes, "job.yaml")


def test_an_unknown_key_is_reported_before_what_it_may_have_caused() -> None:
    with pytest.raises(JobError, match="unknown key 'dataset'"):
        Job.of({"dataset": {}}, "job.yaml")


@pytest.mark.parametrize("values", [None, [], "text", 3])
def test_what_holds_no_keys_is_refused(values: object) -> None:
    with pytest.raises(JobError, match=r"job\.yaml holds no keys and values, but"):
        Job.of(values, "job.yaml")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("epochs", "'train.epochs'"),
        ("epoch", "'train.epochs'"),
        ("workers", "'train.workers'"),
        ("patience", "'train.early_stopping.patience'"),
        ("exclude", "'inputs.exclude'"),
        ("label", "'datasets.NAME.label'"),
        ("train.validation", "'split.validation'"),
        # what is like a neighbour is that
        ("datasts", "'datasets'"),
        ("train.epoch", "'epochs'"),
    ],
)
def test_a_key_of_another_section_is_offered_with_its_path(key: str, meant: str) -> None:
    from mlaas_ray.workflows.job import Job
    from mlaas_ray.workflows.overrides import changed

    datasets = {"a": {"files": "a.root", "label": 1}, "b": {"files": "b.root", "label": 0}}
    with pytest.raises(JobError) as caught:
        Job.of(changed({"datasets": datasets}, [f"{key}=3"]), "the job")
    assert caught.value.message == f"unknown key {key!r} in the job"
    assert f"Did you mean {meant}" in caught.value.remedy
