"""Training on a GPU learns what training on a CPU does, and exports a model that any CPU runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import ray

from mlaas_ray.core import FeatureSpec
from mlaas_ray.training import TrainedModel, TrainSettings, fit
from tests.training.conftest import toy_table

pytestmark = pytest.mark.gpu

# Tells where each of its steps was computed.
SAYS_WHERE = """
from torch import nn

class Layers(nn.Sequential):
    def forward(self, x):
        if self.training:
            with open({log!r}, "a") as file:
                file.write(x.device.type + "\\n")
        return super().forward(x)

def model(n):
    return Layers(nn.Linear(n, 64), nn.ReLU(), nn.Linear(64, 1), nn.Sigmoid())
"""

Train = Callable[..., tuple[TrainedModel, set[str]]]


@pytest.fixture(scope="module")
def train(ray_local: None, toy_features: FeatureSpec, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """``train(framework, model, **settings)``: a trained model, and where its steps were computed."""

    if not ray.cluster_resources().get("GPU"):
        pytest.skip("Ray finds no GPU on this machine")

    def run(framework: str, model: str, **settings: Any) -> tuple[TrainedModel, set[str]]:
        folder = tmp_path_factory.mktemp("gpu")
        log = folder / "devices"
        log.write_text("")
        if "\n" in model:
            (folder / "model.py").write_text(model.format(log=str(log)))
            model = str(folder / "model.py")
        trained = fit(
            *(ray.data.from_arrow([toy_table(count, seed)]) for count, seed in ((3000, 1), (601, 2))),
            toy_features,
            name="gpu",
            framework=framework,
            model=model,
            settings=TrainSettings(**{"batch_size": 64, "epochs": 4, "cpus_per_worker": 1, **settings}),
            seed=5,
            storage=folder / "runs",
        )
        # the two steps of its trial are on the CPU, whatever the training's are
        return trained, set(log.read_text().splitlines()[2:])

    return run


def losses(trained: TrainedModel) -> list[float]:
    return [entry["validation_loss"] for entry in trained.metrics["history"]]


@pytest.fixture(scope="module")
def on_cpu(train: Train) -> TrainedModel:
    trained, devices = train("torch", SAYS_WHERE)
    assert devices == {"cpu"}  # not asked for, the GPU is left alone
    return trained


@pytest.mark.parametrize(
    ("settings", "apart"),
    [
        ({}, 1e-4),
        ({"precision": "bfloat16"}, 0.01),
        ({"precision": "float16"}, 0.01),
        ({"workers": 2, "gpus_per_worker": 0.5}, 0.02),
    ],
    ids=["float32", "bfloat16", "float16", "two workers share it"],
)
def test_torch_learns_on_a_gpu_what_it_learns_on_a_cpu(
    train: Train, on_cpu: TrainedModel, settings: dict[str, Any], apart: float
) -> None:
    trained, devices = train("torch", SAYS_WHERE, **{"gpus_per_worker": 1, **settings})
    assert devices == {"cuda"}
    # the first epoch of two workers takes other steps
    assert losses(trained)[1:] == pytest.approx(losses(on_cpu)[1:], abs=apart)
    assert max(trained.metrics["export_difference"].values()) <= 1e-5


@pytest.mark.parametrize("model", ["periodic", "mlp", "masked_linear"])
def test_our_own_networks_learn_on_a_gpu(train: Train, model: str) -> None:
    trained, _ = train("torch", model, gpus_per_worker=1)
    assert trained.metrics["validation"]["auc"] > 0.75
    assert max(trained.metrics["export_difference"].values()) <= 1e-5


def test_the_same_seed_gives_the_same_losses_on_a_gpu(train: Train) -> None:
    first, _ = train("torch", "periodic", gpus_per_worker=1)
    again, _ = train("torch", "periodic", gpus_per_worker=1)
    assert losses(again) == losses(first)


def test_trees_grow_on_a_gpu_as_on_a_cpu(train: Train) -> None:
    xgboost = pytest.importorskip("xgboost")
    if not xgboost.build_info()["USE_CUDA"]:
        pytest.skip("this XGBoost is built without CUDA")
    on_cpu, _ = train("xgboost", "trees", epochs=3)
    on_gpu, _ = train("xgboost", "trees", epochs=3, gpus_per_worker=1)
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), abs=0.01)
    assert max(on_gpu.metrics["export_difference"].values()) <= 1e-5


def test_a_job_s_validation_events_are_answered_in_float32(train: Train) -> None:
    trained, _ = train("torch", SAYS_WHERE, gpus_per_worker=1, precision="bfloat16")
    with np.load(trained.folder / "sample.npz") as sample:
        answers = sample["prediction"]
    # rounded to bfloat16, most would keep the eight bits that it has
    assert np.mean(answers.view(np.uint32) & 0xFFFF != 0) > 0.9
