from __future__ import annotations

import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from mlaas_ray.core.task import Task

THREE = {"kind": "multiclass", "names": ("ttbar", "ttH", "ttZ")}


@pytest.mark.parametrize(
    ("values", "classes", "outputs", "shape", "score"),
    [
        ({}, 2, 1, (), "auc"),
        (THREE, 3, 3, (), "auc"),
        ({"kind": "regression"}, 0, 1, (), "r2"),
        ({"kind": "regression", "names": ("pt", "eta")}, 0, 2, (2,), "r2"),
    ],
    ids=["binary", "multiclass", "one target", "two targets"],
)
def test_what_a_task_asks_for_follows_from_its_kind_and_names(
    values: dict[str, Any], classes: int, outputs: int, shape: tuple[int, ...], score: str
) -> None:
    task = Task(**values)
    assert (task.classes, task.outputs, task.target_shape, task.score) == (classes, outputs, shape, score)


def test_without_words_a_task_tells_signal_from_background() -> None:
    assert (Task().kind, Task().names, Task().loss) == ("binary", ("background", "signal"), "cross_entropy")


@pytest.mark.parametrize("names", [("m",), ("pt", "eta", "phi")])
def test_targets_without_a_scale_are_learnt_as_they_are(names: tuple[str, ...]) -> None:
    task = Task(kind="regression", names=names)
    assert (task.offset, task.scale, task.loss) == ((0.0,) * len(names), (1.0,) * len(names), "mse")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"names": ("a",)}, "a binary task has two classes"),
        ({"names": ("a", "b", "c")}, "a binary task has two classes"),
        ({**THREE, "names": ("a", "b")}, "a multiclass task has three classes or more"),
        ({"kind": "regression", "names": ()}, "each target has a name, an offset and a scale"),
        ({"kind": "regression", "names": ("a", "b"), "scale": (1.0,)}, "each target has a name"),
        ({"kind": "regression", "offset": (1.0, 2.0)}, "each target has a name"),
        ({"loss": "mse"}, "the loss mse is not one of binary"),
        ({**THREE, "loss": "huber"}, "the loss huber is not one of multiclass"),
        ({"kind": "regression", "loss": "cross_entropy"}, "the loss cross_entropy is not one of regression"),
        ({"kind": "ranking"}, "kind"),
        ({"classes": 3}, "Extra inputs are not permitted"),
    ],
    ids=lambda case: str(case)[:50],
)
def test_a_task_that_contradicts_itself_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Task(**values)


@pytest.mark.parametrize(
    "task",
    [
        Task(),
        Task(**THREE),
        Task(kind="regression", names=("m", "n"), offset=(100.0, -1.0), scale=(30.0, 2.0), loss="huber"),
    ],
    ids=lambda task: task.kind,
)
def test_a_task_survives_json_and_pickle(task: Task) -> None:
    assert Task.model_validate_json(task.model_dump_json()) == task
    assert pickle.loads(pickle.dumps(task)) == task
