from __future__ import annotations

from pathlib import Path

import pytest

from mlaas_ray.core import FeatureSpec
from mlaas_ray.core.errors import JobError, ModelError
from mlaas_ray.training import check_model

TORCH = "from torch import nn\n\n\ndef model(n):\n    return {}\n"
KERAS = "from keras import Sequential, layers\n\n\ndef model(n):\n    return {}\n"


def check(tmp_path: Path, text: str, framework: str, features: FeatureSpec) -> None:
    file = tmp_path / "my_model.py"
    file.write_text(text)
    check_model(str(file), framework, features)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("nn.Sequential(nn.Linear(20, 1), nn.Sigmoid())", "takes 20 values, but the events have 5"),
        (
            "nn.Sequential(nn.Linear(n, 2), nn.Sigmoid())",
            r"answers with shape \(events, 2\), not \(events, 1\)",
        ),
        ("nn.Linear(n, 1)", r"answers outside \[0, 1\]"),
        ("[nn.Linear(n, 1)]", r"returned builtins\.list, no torch\.nn\.Module"),
        ("nn.Linear(n, 'one')", r"my_model\.py, line 5: model\(5\) failed with TypeError"),
        ("nn.Bilinear(n, n, 1)", "the network fails on events of 5 values with TypeError"),
    ],
)
def test_a_torch_model_that_will_not_do_is_refused(
    ray_local: None, toy_features: FeatureSpec, tmp_path: Path, network: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check(tmp_path, TORCH.format(network), "torch", toy_features)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            "Sequential([layers.Input((20,)), layers.Dense(1, 'sigmoid')])",
            "takes 20 values, but the events have 5",
        ),
        ("Sequential([layers.Dense(1, 'relu')])", r"answers outside \[0, 1\]"),
        ("layers.Dense(1, 'sigmoid')", r"keras.*Dense, no keras\.Model"),
    ],
)
def test_a_keras_model_that_will_not_do_is_refused(
    ray_local: None, toy_features: FeatureSpec, tmp_path: Path, network: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check(tmp_path, KERAS.format(network), "keras", toy_features)


@pytest.mark.parametrize(
    ("framework", "text"),
    [
        ("torch", TORCH.format("nn.Sequential(nn.Linear(n, 1), nn.Sigmoid())")),
        ("keras", KERAS.format("Sequential([layers.Dense(1, 'sigmoid')])")),
    ],
)
def test_a_good_model_passes_and_leaves_no_framework_in_this_process(
    ray_local: None, toy_features: FeatureSpec, tmp_path: Path, framework: str, text: str
) -> None:
    import sys

    before = {"keras", "tensorflow", "torch"} & set(sys.modules)
    check(tmp_path, text, framework, toy_features)
    assert {"keras", "tensorflow", "torch"} & set(sys.modules) == before


def test_a_model_that_ends_its_process_is_an_error_and_no_more(
    ray_local: None, toy_features: FeatureSpec, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="ended its process"):
        check(tmp_path, "import os\n\nos._exit(1)\n", "torch", toy_features)


def test_an_unknown_framework_is_named(toy_features: FeatureSpec) -> None:
    with pytest.raises(JobError, match="no framework 'pytorch'"):
        check_model("mlp", "pytorch", toy_features)
