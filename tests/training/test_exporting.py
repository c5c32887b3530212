"""Networks of users' own are exported when they are tried, or refused with the line that no export takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlaas_ray.core import Feature, FeatureSpec
from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.task import Task
from mlaas_ray.training.exporting import export
from mlaas_ray.training.frameworks.modules import Ending
from mlaas_ray.training.source import MODEL, Source
from tests.training.test_check import attempt

# The first line of the body is line 13.
TORCH = """import random
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.last = nn.Linear(n, 1)

    def forward(self, x):
        {}


def model(n):
    return Net(n)
"""
# The first line of the body is line 12.
KERAS = """import numpy as np
import tensorflow as tf
from keras import Model, layers, ops


class Net(Model):
    def __init__(self):
        super().__init__()
        self.last = layers.Dense(1, "sigmoid")

    def call(self, x):
        {}


def model(n):
    return Net()
"""
END = "return torch.sigmoid(self.last({}))"


def told(
    in_a_process: Callable[..., Any], folder: Path, framework: str, text: str, features: FeatureSpec
) -> str:
    file = folder / "my_model.py"
    file.write_text(text)
    said: str = in_a_process(framework, attempt, framework, str(file), features, Task(), {})
    return said.replace(f"{folder}/", "")


VALUES = "line 13: the network branches on the events' values, which an exported model cannot. In place of if"
NUMBER = "line 13: the network depends on the number of events. Use x.shape[0] or -1"
BESIDE = "my_model.py: the network's answer to an event depends on the events beside it, by up to"
RANDOM = "my_model.py: asked twice about the same events, the network's answers differ by up to"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"if x.abs().max() > 100: x = x.clamp(-100, 100)\n        {END.format('x')}", VALUES),
        (f"if x.max().item() > 3: x = 2 * x\n        {END.format('x')}", VALUES),
        (f"while x.abs().max() > 1: x = x / 2\n        {END.format('x')}", VALUES),
        ("return torch.stack([torch.sigmoid(self.last(x[i])) for i in range(len(x))])", NUMBER),
        (f"rows = [sum(row) for row in x.tolist()]\n        {END.format('x')}", NUMBER),
        (
            END.format("x.view(64, -1)"),
            "line 13: the network takes 64 events, but fails on 3 with RuntimeError",
        ),
        (END.format("x - x.mean(0)"), BESIDE),
        (END.format("x - x.mean().item()"), BESIDE),
        (END.format("x * 2 if x.shape[0] == 1 else x"), BESIDE),
        (END.format("x * random.random()"), RANDOM),
        (END.format("x + torch.randn_like(x)"), RANDOM),
        (
            f"x = x - x.median(1, keepdim=True)[0]\n        {END.format('x')}",
            "line 13: the network cannot be exported: ONNX has nothing for aten.median.dim. Write it with",
        ),
        (
            f"x = x + torch.linalg.svdvals(x[:, None])\n        {END.format('x')}",
            "line 13: the network cannot be exported: ONNX has nothing for aten._linalg_svd",
        ),
        (
            END.format("x / 0"),
            "my_model.py: model(5) answers with what is no number",
        ),
    ],
)
def test_what_no_export_takes_is_refused_with_its_line_and_what_to_write(
    in_a_process: Callable[..., Any], toy_features: FeatureSpec, tmp_path: Path, body: str, message: str
) -> None:
    said = told(in_a_process, tmp_path, "torch", TORCH.format(body), toy_features)
    assert message in said
    assert said.startswith("my_model.py")
    assert "\n" not in said


@pytest.mark.parametrize(
    "body",
    [
        END.format("x.reshape(len(x), -1)"),
        END.format("torch.from_numpy(np.tanh(x.detach().numpy()))"),
        f"x[:, 0] = 0\n        {END.format('x.clamp_(-1, 1)')}",
        f"assert x.shape[1] == 5 and len(x) > 0\n        {END.format('x')}",
        f"self.seen = getattr(self, 'seen', 0) + len(x)\n        {END.format('x')}",
        END.format(
            "sum(torch.cdist(x[:, :, None], x[:, :, None], p).amax(1) for p in (2, 1, 0, 3, float('inf')))"
        ),
    ],
)
def test_what_can_be_exported_is(
    in_a_process: Callable[..., Any], toy_features: FeatureSpec, tmp_path: Path, body: str
) -> None:
    assert told(in_a_process, tmp_path, "torch", TORCH.format(body), toy_features) == "good"


LAYERS = {
    "attention": (
        "self.wide, self.mix, self.last = "
        "nn.Linear(1, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 1)",
        "x = self.wide(x[..., None]); x = self.mix(x, x, x)[0].mean(1)",
    ),
    "transformer": (
        "self.wide, self.last = nn.Linear(1, 8), nn.Linear(8, 1); self.mix = "
        "nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)",
        "x = self.mix(self.wide(x[..., None])).mean(1)",
    ),
    "gru": (
        "self.mix, self.last = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 1)",
        "x = self.mix(x[..., None])[0][:, -1]",
    ),
    "batchnorm": (
        "self.mix, self.last = "
        "nn.Sequential(nn.Linear(n, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)), nn.Linear(8, 1)",
        "x = self.mix(x)",
    ),
    "hook": (
        "self.last = nn.Linear(n, 1); self.last.register_forward_hook(lambda layer, given, found: 2 * found)",
        "pass",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_others_use_are_exported(
    in_a_process: Callable[..., Any], toy_features: FeatureSpec, tmp_path: Path, name: str
) -> None:
    layers, run = LAYERS[name]
    text = TORCH.replace("self.last = nn.Linear(n, 1)", layers).format(f"{run}\n        {END.format('x')}")
    assert told(in_a_process, tmp_path, "torch", text, toy_features) == "good"


EDGES = """import torch
from torch import nn


class Edges(nn.Module):
    def __init__(self, features):
        super().__init__()
        jets = [one for one in features.features if one.name.startswith("Jet_")]
        self.starts, self.size = [features.starts[one.name] for one in jets], len(jets[0].columns)
        self.convolve = nn.Sequential(nn.Conv2d(2 * len(jets), 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Linear(8, 1)

    def forward(self, x):
        jets = torch.stack([x[:, start : start + self.size] for start in self.starts], 1)
        apart = torch.cdist(jets.transpose(1, 2), jets.transpose(1, 2))
        near = (-apart).topk(3, -1)[1]
        events, variables, size = jets.shape
        wide = jets.unsqueeze(2).expand(events, variables, size, size)
        found = torch.gather(wide, 3, near.unsqueeze(1).expand(events, variables, size, 3))
        edges = torch.cat([jets.unsqueeze(3).expand(-1, -1, -1, 3), found - jets.unsqueeze(3)], 1)
        return torch.sigmoid(self.last(self.convolve(edges).mean(3).max(2)[0]))


def model(input_dim, features):
    return Edges(features)
"""


def test_a_network_of_nearest_neighbours_is_exported(
    in_a_process: Callable[..., Any], tmp_path: Path
) -> None:
    jets = [Feature(name=f"Jet_{name}", kind="jagged", length=6) for name in ("pt", "eta", "phi")]
    features = FeatureSpec.of([Feature(name="MET", kind="flat"), *jets])
    assert told(in_a_process, tmp_path, "torch", EDGES, features) == "good"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "x = 2 * x if ops.max(x) > 3 else x\n        return self.last(x)",
            "line 12: the network branches on the events' values, which an exported model cannot. In",
        ),
        (
            "return ops.stack([self.last(x[None, i])[0] for i in range(len(x))])",
            "line 12: the network depends on the number of events. Use keras.ops.shape(x)[0] or -1",
        ),
        ("return self.last(ops.reshape(x, (64, 5)))", "line 12: the network takes 64 events, but fails on 3"),
        (
            "return self.last(tf.convert_to_tensor(np.tanh(x.numpy())))",
            "line 12: the network leaves Keras for numpy",
        ),
        (
            "y = tf.py_function(tf.tanh, [x], tf.float32); y.set_shape(x.shape); return self.last(y)",
            "line 12: the network calls Python by tf.py_function, which a SavedModel cannot hold. Use",
        ),
        ("return self.last(x - ops.mean(x, axis=0))", BESIDE),
        ("return self.last(x + tf.random.normal(tf.shape(x)))", RANDOM),
        ("return self.last(ops.reshape(x, (ops.shape(x)[0], 5)))", "good"),
        ("return self.last(layers.Lambda(lambda y: ops.tanh(y))(x))", "good"),
    ],
)
def test_keras_networks_are_tried_alike(
    in_a_process: Callable[..., Any], toy_features: FeatureSpec, tmp_path: Path, body: str, message: str
) -> None:
    said = told(in_a_process, tmp_path, "keras", KERAS.format(body), toy_features)
    assert message in said
    assert said.startswith("my_model.py") or said == "good"
    assert "\n" not in said


def test_a_line_of_a_file_beside_the_model_is_named(
    in_a_process: Callable[..., Any], toy_features: FeatureSpec, tmp_path: Path
) -> None:
    body = f"if x.max() > 3: x = 2 * x\n        {END.format('x')}"
    (tmp_path / "my_layers_beside.py").write_text(TORCH.format(body))
    said = told(in_a_process, tmp_path, "torch", "from my_layers_beside import model\n", toy_features)
    assert said.startswith("my_layers_beside.py, line 13: the network branches on the events' values")


# Three values, answered by their sum.
X = np.array([[1.0, 2.0, 3.0], [0.5, 0.0, np.nan], [0.1, 0.2, 0.3], [0.0, 0.0, 0.1]], np.float32)


class Summing:
    """A network and its framework, in numpy; what it does wrong is told by functions of the answers."""

    def __init__(self, network: Any = None, file: Any = None) -> None:
        self.wrong, self.wrong_file = network or (lambda x: x), file or (lambda x: x)

    def predict(self, x: Any) -> Any:
        return self.wrong(np.nansum(x, axis=1, keepdims=True, dtype=np.float32))

    def export(self, folder: Path) -> list[str]:
        return ["a.model"]

    def answer(self, folder: Path, file: str, x: Any) -> Any:
        return self.wrong_file(np.nansum(x, axis=1, keepdims=True, dtype=np.float32))


def fails(answers: Any) -> Any:
    raise RuntimeError("no kernel for this type\nat all")


def exported(summing: Any, tmp_path: Path) -> dict[str, float]:
    return export(summing, summing, tmp_path, X, Source("mine.py", MODEL))


@pytest.mark.parametrize(
    ("network", "file", "message"),
    [
        (
            None,
            lambda y: y + 0.01,
            "mine.py: the exported a.model answers otherwise than the network, by up to 0.01",
        ),
        # right for many events, wrong for one
        (None, lambda y: y if len(y) > 1 else y + 1, "answers otherwise than the network, by up to 1"),
        (None, lambda y: y[:2], "answers otherwise than the network, by up to inf"),
        (None, lambda y: np.where(y == 0, np.nan, y), "answers otherwise than the network, by up to inf"),
        (None, fails, "the exported a.model does not run: RuntimeError: no kernel for this type at all"),
        (lambda y: y - y.mean(), None, "answer to an event depends on the events beside it, by up to"),
        (lambda y: y + np.random.default_rng().random(), None, "asked twice about the same events"),
        (lambda y: np.where(y == 6, np.nan, y), None, "answers to 1 of 4 events are not finite numbers"),
    ],
)
def test_an_export_that_answers_otherwise_is_an_error(
    tmp_path: Path, network: Any, file: Any, message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        exported(Summing(network, file), tmp_path)
    assert message in caught.value.message
    assert caught.value.remedy


def test_the_largest_difference_is_told_and_no_number_is_as_good_as_none(tmp_path: Path) -> None:
    assert exported(Summing(), tmp_path) == {"a.model": 0.0}
    # of the largest answer, 6
    assert exported(Summing(None, lambda y: y + 5e-4), tmp_path)["a.model"] == pytest.approx(5e-4, rel=1e-2)
    # an event without any value may be answered by no number, if the file does so too
    nothing = Summing(*(2 * [lambda y: np.where(y == 0, np.nan, y).astype(np.float32)]))
    assert exported(nothing, tmp_path) == {"a.model": 0.0}


TWO = np.array([[0.25, 0.75], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("task", "answers", "linear", "ending"),
    [
        (Task(), TWO[:, :1], False, Ending()),
        (Task(), TWO[:, :1], True, Ending("sigmoid")),
        (Task(), TWO, False, Ending(second=True)),
        (Task(), TWO, True, Ending("softmax", second=True)),
        (Task(), 0.9 * TWO, False, Ending()),
        (Task(), 2 * TWO - 0.5, False, Ending()),
        (Task(kind="multiclass", names=("a", "b", "c")), TWO, True, Ending("softmax")),
        (Task(kind="multiclass", names=("a", "b", "c")), TWO, False, Ending()),
        (Task(kind="regression", names=("a", "b")), TWO, True, Ending()),
    ],
)
def test_a_network_is_given_the_ending_that_it_lacks(
    task: Task, answers: Any, linear: bool, ending: Ending
) -> None:
    assert Ending.of(task, answers, linear) == ending
