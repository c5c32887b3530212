from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlaas_ray.core import FeatureSpec, MlaasError
from mlaas_ray.core.errors import JobError, ModelError
from mlaas_ray.core.task import Task
from mlaas_ray.training import TrainSettings, check_model

TORCH = "from torch import nn\n\n\ndef model(n):\n    return {}\n"
KERAS = "from keras import Sequential, layers\n\n\ndef model(n):\n    return {}\n"


def attempt(framework: str, path: str, features: Any, task: Any, options: Any) -> str:
    from mlaas_ray.training.framework import Setup
    from mlaas_ray.training.frameworks import find_model, load_framework
    from mlaas_ray.training.group import Group
    from mlaas_ray.training.settings import TrainSettings
    from mlaas_ray.training.trial import attempt as make

    chosen = load_framework(framework)
    settings = TrainSettings().filled(chosen.defaults)
    setup = Setup(find_model(path, chosen), options, features, task, settings, Group())
    try:
        make(chosen, setup, setup.model)
    except MlaasError as error:
        return str(error)
    return "good"


@pytest.mark.parametrize(
    ("framework", "network", "message"),
    [
        (
            "torch",
            "nn.Sequential(nn.Linear(20, 1), nn.Sigmoid())",
            "model(5) returned a network that takes 20 values, but the events have 5. Use the argument",
        ),
        (
            "torch",
            "nn.Sequential(nn.Linear(n, 2), nn.Sigmoid())",
            "answers with shape (events, 2), not (events, 1)",
        ),
        (
            "torch",
            "nn.Sequential(nn.Linear(n, 1), nn.ReLU())",
            "answers outside [0, 1]. End the network with one output and a sigmoid.",
        ),
        ("torch", "nn.Linear(n, 3)", "answers with shape (events, 3), not (events, 1)"),
        ("torch", "[nn.Linear(n, 1)]", "returned builtins.list, no torch.nn.Module"),
        ("torch", "nn.Linear(n, 'one')", "my_model.py, line 5: model(5) failed with TypeError"),
        ("torch", "nn.Bilinear(n, 7, 1)", "the network fails on events of 5 values with RuntimeError"),
        ("torch", "nn.Sequential(nn.LazyLinear(1), nn.Sigmoid())", "good"),
        (
            "keras",
            "Sequential([layers.Input((20,)), layers.Dense(1, 'sigmoid')])",
            "takes 20 values, but the events have 5",
        ),
        ("keras", "Sequential([layers.Dense(1, 'relu')])", "answers outside [0, 1]"),
        (
            "keras",
            "Sequential([layers.Dense(1), layers.Flatten(), layers.Reshape((1, 1))])",
            "(events, 1, 1)",
        ),
        ("keras", "layers.Dense(1, 'sigmoid')", "Dense, no keras.Model"),
        ("keras", "Sequential([layers.Dense(1, 'sigmoid')])", "good"),
    ],
)
def test_a_model_that_will_not_do_is_refused_with_what_to_do(
    in_a_process: Callable[..., Any],
    toy_features: FeatureSpec,
    tmp_path: Path,
    framework: str,
    network: str,
    message: str,
) -> None:
    file = tmp_path / "my_model.py"
    file.write_text((TORCH if framework == "torch" else KERAS).format(network))
    assert message in in_a_process(framework, attempt, framework, str(file), toy_features, Task(), {})


THREE = Task(kind="multiclass", names=("a", "b", "c"))
MASS = Task(kind="regression", names=("mass",))


@pytest.mark.parametrize(
    ("text", "task", "options", "message"),
    [
        ("nn.Sequential(nn.Linear(n, 3), nn.Softmax(1))", THREE, {}, "good"),
        ("nn.Sequential(nn.Linear(n, 1), nn.Sigmoid())", THREE, {}, "(events, 1), not (events, 3). End"),
        ("nn.Sequential(nn.Linear(n, 3), nn.Sigmoid())", THREE, {}, "do not come to 1. End the network"),
        ("nn.Linear(n, 1)", MASS, {}, "good"),
        ("nn.Sequential(nn.Linear(n, 1), nn.Sigmoid())", Task(), {"width": 3}, "no argument 'width'"),
        ("nn.Linear(n, 3)", THREE, {}, "good"),
    ],
)
def test_the_ending_must_fit_the_task(
    in_a_process: Callable[..., Any],
    toy_features: FeatureSpec,
    tmp_path: Path,
    text: str,
    task: Task,
    options: dict[str, Any],
    message: str,
) -> None:
    file = tmp_path / "my_model.py"
    file.write_text(TORCH.format(text))
    assert message in in_a_process("torch", attempt, "torch", str(file), toy_features, task, options)


def test_a_model_is_given_what_it_asks_for(
    in_a_process: Callable[..., Any], toy_features: FeatureSpec, tmp_path: Path
) -> None:
    file = tmp_path / "my_model.py"
    file.write_text(
        "from torch import nn\n\n"
        "def model(input_dim, outputs, features, nodes=1):\n"
        "    assert (outputs, features.width, nodes) == (3, input_dim, 7)\n"
        "    return nn.Sequential(nn.Linear(input_dim, nodes), nn.Linear(nodes, outputs), nn.Softmax(1))\n"
    )
    told = in_a_process("torch", attempt, "torch", str(file), toy_features, THREE, {"nodes": 7})
    assert told == "good"


@pytest.mark.parametrize(
    ("framework", "model", "options", "message"),
    [
        ("torch", "mlp", {"hiden": [3]}, "unknown key 'hiden' in model mlp. Did you mean 'hidden'"),
        ("torch", "deepsets", {}, "the model deepsets needs jagged branches"),
        ("keras", "cnn", {}, "the model cnn needs images"),
        ("xgboost", "trees", {"depth": 3}, "the model 'trees' has no option 'depth'. Write it into"),
    ],
)
def test_models_of_ours_refuse_what_they_cannot_do(
    in_a_process: Callable[..., Any],
    toy_features: FeatureSpec,
    framework: str,
    model: str,
    options: dict[str, Any],
    message: str,
) -> None:
    told = in_a_process(framework, attempt, framework, model, toy_features, Task(), options)
    assert message in told


def test_the_check_leaves_no_framework_in_this_process(
    ray_local: None, toy_features: FeatureSpec, tmp_path: Path
) -> None:
    file = tmp_path / "my_model.py"
    file.write_text(KERAS.format("Sequential([layers.Dense(1, 'sigmoid')])"))
    check_model(str(file), "keras", toy_features)
    assert "tensorflow" not in sys.modules


def test_what_the_check_finds_is_raised_here(
    ray_local: None, toy_features: FeatureSpec, tmp_path: Path
) -> None:
    file = tmp_path / "my_model.py"
    file.write_text("def model(n):\n    return [][n]\n")
    with pytest.raises(ModelError, match=r"my_model\.py, line 2: model\(5\) failed with IndexError"):
        check_model(str(file), "torch", toy_features)


def test_a_model_that_ends_its_process_is_an_error_and_no_more(
    ray_local: None, toy_features: FeatureSpec, tmp_path: Path
) -> None:
    file = tmp_path / "my_model.py"
    file.write_text("import os\n\nos._exit(1)\n")
    with pytest.raises(ModelError, match="ended its process"):
        check_model(str(file), "torch", toy_features)


def test_an_unknown_framework_is_named(toy_features: FeatureSpec) -> None:
    with pytest.raises(JobError, match="no framework 'pytorch'"):
        check_model("mlp", "pytorch", toy_features)


@pytest.mark.parametrize(
    ("framework", "parameters", "message"),
    [
        (
            "torch",
            {"momentum": 0.9},
            "torch has no parameter 'momentum'. What a model is built with goes under",
        ),
        ("xgboost", {"max_dept": 3}, "xgboost has no parameter 'max_dept'. Did you mean 'max_depth'"),
        ("xgboost", {"eta": 0.3}, "xgboost has no parameter 'eta'"),  # it is train.learning_rate
        ("xgboost", {"booster": "dart"}, "booster 'dart' cannot be exported. Use gbtree"),
    ],
)
def test_a_parameter_that_nobody_would_look_at_is_refused(
    ray_local: None,
    toy_features: FeatureSpec,
    framework: str,
    parameters: dict[str, Any],
    message: str,
) -> None:
    settings = TrainSettings(parameters=parameters)
    with pytest.raises(ModelError) as caught:
        check_model(None, framework, toy_features, settings=settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("framework", ["keras", "xgboost"])
def test_weights_are_averaged_by_pytorch_alone(toy_features: FeatureSpec, framework: str) -> None:
    with pytest.raises(JobError, match=f"train.average: {framework} does not average weights"):
        check_model(None, framework, toy_features, settings=TrainSettings(average=0.9))
