"""Model files as MLaaS4HEP's examples are: they run unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# What the examples of MLaaS4HEP have: an optimiser's lr, two softmax outputs for two classes, and a PyTorch
# network of the package's own layer that ends without a sigmoid.
LR = """
from tensorflow import keras
from keras.models import Sequential
from keras.layers import Dense

def model(idim):
    net = keras.Sequential([keras.layers.Dense(16, activation='relu', input_shape=(idim,)),
                            keras.layers.Dropout(0.2), keras.layers.Dense(1, activation='sigmoid')])
    net.compile(optimizer=keras.optimizers.Adam(lr=3e-3), loss=keras.losses.BinaryCrossentropy(),
                metrics=[keras.metrics.BinaryAccuracy(name='accuracy'), keras.metrics.AUC(name='auc')])
    return net
"""
TWO = """
from keras.models import Sequential
from keras.layers import Activation, Dense

def model(idim):
    net = Sequential([Dense(16, input_shape=(idim,)), Activation('relu'), Dense(2), Activation('softmax')])
    net.compile(optimizer='adam', loss='categorical_crossentropy', metrics=['accuracy'])
    return net
"""
LOGITS = """
from {package} import JaggedArrayLinear
import torch

def model(idim):
    return torch.nn.Sequential(JaggedArrayLinear(idim, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1))
"""


def answers(framework: str, path: str) -> Any:
    """Build what a model file describes; return its bare answers, the network's, and those of its file."""
    import tempfile

    from mlaas_ray.core import Feature, FeatureSpec
    from mlaas_ray.core.task import Task
    from mlaas_ray.training.exporting import export
    from mlaas_ray.training.framework import Setup
    from mlaas_ray.training.frameworks import find_model, load_framework
    from mlaas_ray.training.group import Group
    from mlaas_ray.training.settings import TrainSettings
    from mlaas_ray.training.trial import build

    chosen = load_framework(framework)
    features = FeatureSpec.of([Feature(name=f"v{i}", kind="flat") for i in range(4)])
    settings = TrainSettings().filled(chosen.defaults)
    network: Any = build(chosen, Setup(find_model(path, chosen), {}, features, Task(), settings, Group()))
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    bare = network._module if framework == "keras" else network._full.answering.body
    own = chosen.run(bare, x, np.ones_like(x))  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        export(chosen, network, Path(folder), x, find_model(path, chosen))
    rate = float(network._optimizer.learning_rate.numpy()) if framework == "keras" else 0.0
    return own, network.predict(x), rate


@pytest.mark.parametrize(
    ("framework", "text", "outputs"),
    [
        ("keras", LR, 1),
        ("keras", TWO, 2),
        ("torch", LOGITS.format(package="MLaaS4HEP.jarray.pytorch"), 1),
        ("torch", LOGITS.format(package="jarray.pytorch"), 1),
    ],
)
def test_its_example_models_run_unchanged(
    in_a_process: Callable[..., Any], tmp_path: Path, framework: str, text: str, outputs: int
) -> None:
    file = tmp_path / "ex_model.py"
    file.write_text(text)
    bare, found, rate = in_a_process(framework, answers, framework, str(file))
    assert bare.shape == (20, outputs)
    signal = bare if outputs == 1 else bare[:, 1:]
    expected = signal if framework == "keras" else 1 / (1 + np.exp(-signal))
    assert found == pytest.approx(expected, abs=1e-6)
    assert np.ptp(found) > 1e-3
    if text is LR:
        assert rate == pytest.approx(3e-3)
