from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from mlaas_ray.core.errors import InvalidNameError, JobError, LabelError
from mlaas_ray.core.inputs import ObjectSettings
from mlaas_ray.streaming.settings import Cache
from mlaas_ray.workflows import Job
from mlaas_ray.workflows.job import DatasetSettings, PublishSettings

DOCS = Path(__file__).parents[2] / "docs"


def load(tmp_path: Path, text: str) -> Job:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return Job.load(path)


SMALLEST = """
datasets:
  signal: {files: s.root, label: 1}
  ww: {files: [a.root, "b*.root"], label: 0, tree: events}
  wz: {files: c.root, label: 0}
"""


def test_the_smallest_job_has_defaults_for_the_rest(tmp_path: Path) -> None:
    job = load(tmp_path, SMALLEST)
    assert (job.framework, job.model, job.split.validation, job.publish) == ("torch", "mlp", 0.2, None)
    assert job.classes == ["ww+wz", "signal"]
    assert [(s.name, s.files, s.tree, s.label) for s in job.samples] == [
        ("signal", ["s.root"], None, 1.0),
        ("ww", ["a.root", "b*.root"], "events", 0.0),
        ("wz", ["c.root"], None, 0.0),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epochs: 3", r"unknown key 'epochs'"),
        ("train: {epoch: 3}", r"unknown key 'train.epoch' .* Did you mean 'epochs'"),
        ("inputs: {objects: {Jet: {lenght: 3}}}", r"'inputs.objects.Jet.lenght' .* Did you mean 'length'"),
        ("frameworks: torch", r"'frameworks' .* Did you mean 'framework'"),
        ("train: {epochs: many}", r"train.epochs: .*integer.*'many'"),
        ("train: {workers: 0}", r"train.workers: .*greater than or equal to 1"),
        ("framework: sklearn", r"framework: .*'torch' or 'keras'.*'sklearn'"),
        ("split: {validation: 0.5, test: 0.5}", r"split: the fractions must leave something"),
        ("inputs: [a]", r"inputs: "),
    ],
)
def test_what_is_wrong_is_named_by_its_path(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        load(tmp_path, SMALLEST + line)


def test_a_key_of_a_dataset_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"'datasets.signal.lable' .* Did you mean 'label'"):
        load(tmp_path, "datasets: {signal: {files: s.root, label: 1, lable: 1}}")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"lacks the key 'datasets.signal.label'"):
        load(tmp_path, "datasets: {signal: {files: s.root}}")


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b", "a: [", "\x00"])
def test_a_file_that_is_no_job_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(JobError, match=r"job.yaml"):
        load(tmp_path, text)


def test_a_missing_job_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"none.yaml: No such file"):
        Job.load(tmp_path / "none.yaml")


def test_labels_of_one_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"has the label 1: there is nothing to tell apart.*label 0"):
        load(tmp_path, "datasets: {a: {files: a.root, label: 1}, b: {files: b.root, label: 1}}")


def test_labels_other_than_two_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="'b' has the label 2"):
        load(tmp_path, "datasets: {a: {files: a.root, label: 1}, b: {files: b.root, label: 2}}")


def test_a_name_no_model_may_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises((JobError, InvalidNameError), match="cannot be a model's name"):
        load(tmp_path, SMALLEST + "name: ../up")


def test_paths_are_found_beside_the_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("s.root", "b1.root", "mine.py"):
        (tmp_path / "jobs" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "jobs" / name).touch()
    path = tmp_path / "jobs" / "job.yaml"
    path.write_text(SMALLEST + "model: mine.py")
    monkeypatch.chdir(tmp_path)
    job = Job.load(path)
    assert job.datasets["signal"].files == (str(tmp_path / "jobs/s.root"),)
    assert job.datasets["ww"].files == ("a.root", str(tmp_path / "jobs/b*.root"))
    assert job.model == str(tmp_path / "jobs/mine.py")


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ({}, ((0.0, 0.8), (0.8, 1.0))),
        ({"validation": 0.3}, ((0.0, 0.7), (0.7, 1.0))),
        ({"train": 0.5, "validation": 0.25}, ((0.0, 0.5), (0.5, 0.75))),
        ({"validation": 0.1, "test": 0.1}, ((0.0, 0.8), (0.8, 0.9))),
    ],
)
def test_the_split_is_two_neighbouring_intervals(
    tmp_path: Path, split: dict[str, float], parts: object
) -> None:
    job = load(tmp_path, SMALLEST + yaml.safe_dump({"split": split}))
    found = job.split.parts
    assert found[0][1] == found[1][0]
    assert found == (pytest.approx(parts[0]), pytest.approx(parts[1]))


def documented() -> dict[str, str]:
    """Return the default that docs/job.md gives for each key."""
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \|", (DOCS / "job.md").read_text(), re.MULTILINE)
    return {key: default.strip("`") for key, default in rows}


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Give every key a job may have, as the documentation writes it, with its default."""
    nested = {"datasets": (DatasetSettings, "NAME."), "objects": (ObjectSettings, "NAME.")}
    for name, field in model.model_fields.items():
        inner, step = nested.get(name, (field.annotation, ""))
        inner = {"publish": PublishSettings, "cache": Cache}.get(name, inner)
        if name == "define":
            yield f"{prefix}define.NAME", None
            continue
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{prefix}{name}.{step}")
        else:
            yield prefix + name, field.get_default()


def test_every_key_is_documented_and_no_other() -> None:
    assert set(documented()) == {key for key, _ in keys(Job)}


def test_documented_numbers_and_words_are_the_defaults() -> None:
    plain = {
        key: default for key, default in keys(Job) if isinstance(default, int | float | str) and default != ()
    }
    assert len(plain) > 10
    told = documented()
    for key, default in plain.items():
        shown = told[key]
        if isinstance(default, bool):
            assert (shown == "true") is default, key
            continue
        assert (type(default)(shown) if isinstance(default, int | float) else shown) == default, key
