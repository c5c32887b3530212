from __future__ import annotations

from typing import Any

import pytest

from mlaas_ray.core.errors import JobError
from mlaas_ray.workflows.overrides import changed

CONTENT = {"name": "toy", "train": {"epochs": 2}, "model": "mlp", "inputs": None, "files": ["a"]}


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("name=other", "name", "other"),
        ("seed=7", "seed", 7),
        ("train.epochs=3", "train", {"epochs": 3}),
        ("train.workers=[2, 8]", "train", {"epochs": 2, "workers": [2, 8]}),
        ("train.schedule.kind=step", "train", {"epochs": 2, "schedule": {"kind": "step"}}),
        ("inputs.objects.Jet.length=4", "inputs", {"objects": {"Jet": {"length": 4}}}),
        ("inputs.exclude=[run, 'MC*']", "inputs", {"exclude": ["run", "MC*"]}),
        ("publish={}", "publish", {}),
        ("select=MET_pt == 3", "select", "MET_pt == 3"),
        ("train=", "train", None),
        (" train.epochs =3", "train", {"epochs": 3}),
    ],
)
def test_a_key_gets_the_value_that_yaml_reads(change: str, key: str, value: object) -> None:
    assert changed(CONTENT, [change]) == {**CONTENT, key: value}


@pytest.mark.parametrize(
    ("place", "word", "change", "section"),
    [
        ("model", "mlp", "hidden=[8]", {"name": "mlp", "hidden": [8]}),
        ("weights", "w", "negative=zero", {"expression": "w", "negative": "zero"}),
        ("task", "regression", "targets=E", {"kind": "regression", "targets": "E"}),
        ("reading.bad_files", "skip", "max_fraction=0.5", {"policy": "skip", "max_fraction": 0.5}),
        ("train.schedule", "step", "every=2", {"kind": "step", "every": 2}),
        ("train.early_stopping", "auc", "patience=5", {"monitor": "auc", "patience": 5}),
    ],
)
def test_a_word_that_stands_for_a_section_stays_what_it_meant(
    place: str, word: str, change: str, section: dict[str, Any]
) -> None:
    found = changed({}, [f"{place}={word}", f"{place}.{change}"])
    for key in place.split("."):
        found = found[key]
    assert found == section


def test_changes_are_made_in_order_and_to_a_copy() -> None:
    before = {"train": {"epochs": 2}}
    assert changed(before, ["train.epochs=3", "train.epochs=4"]) == {"train": {"epochs": 4}}
    assert before == {"train": {"epochs": 2}}


@pytest.mark.parametrize(
    ("content", "change", "message"),
    [
        (
            CONTENT,
            "train.epochs",
            r"--set 'train.epochs' changes nothing. Write it as in --set train.epochs=3",
        ),
        (CONTENT, "=3", r"changes nothing"),
        (CONTENT, "train..epochs=3", r"changes nothing"),
        (CONTENT, "train.epochs=[3", r"the value is not YAML"),
        (CONTENT, "name.first=x", r"--set 'name.first=x': name holds no keys"),
        (CONTENT, "files.first=x", r"files holds no keys"),
        (CONTENT, "train.epochs.first=1", r"train.epochs holds no keys"),
        (None, "seed=1", r"the job holds no keys"),
        (["a"], "seed=1", r"the job holds no keys"),
    ],
)
def test_a_change_of_nothing_is_refused(content: object, change: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        changed(content, [change])
