"""Tiny models that one can compute by hand, packaged, and a service that serves them."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from mlaas_ray.core.features import Feature, FeatureSpec, Statistics
from mlaas_ray.core.package import ModelPackage, Signature, Tensor, write_package
from mlaas_ray.core.task import Task
from mlaas_ray.inference.environment import free_ports
from mlaas_ray.repository import Repository

# What services find out about models: the next one need not examine the same model again.
EXAMINED = Path(tempfile.mkdtemp(prefix="mlaas-tests-"))
atexit.register(shutil.rmtree, EXAMINED, ignore_errors=True)

SEEN = Statistics(count=4, min=0.0, max=1.0, mean=0.5, std=0.3)

# Five columns: MET_pt, run, Jet_pt_0, Jet_pt_1, Jet_pt_2
SPEC = FeatureSpec.of(
    [
        Feature(name="MET_pt", kind="flat", statistics=SEEN),
        Feature(name="run", kind="flat", statistics=SEEN),
        Feature(name="Jet_pt", kind="jagged", length=3, multiplicity=3, statistics=SEEN),
    ],
    normalisation="none",
)
WIDTH = SPEC.width


def expected(rows: np.ndarray) -> np.ndarray:
    """What the tiny models answer: the sum of (column + 1) * value over the values there are, over 100."""
    weights = np.arange(1, rows.shape[1] + 1, dtype=np.float32)
    return (np.nan_to_num(rows) @ weights / 100)[:, None]


def write_onnx(path: Path, width: int = WIDTH, *, scale: float = 1.0, batch: object = "batch") -> Path:
    """Write an ONNX file that computes :func:`expected`, times ``scale``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = (np.arange(1, width + 1, dtype=np.float32) * scale / 100)[:, None]
    graph = helper.make_graph(
        [
            helper.make_node("IsNaN", ["x"], ["missing"]),
            helper.make_node("Where", ["missing", "zero", "x"], ["filled"]),
            helper.make_node("MatMul", ["filled", "weights"], ["prediction"]),
        ],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, [batch, 1])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.zeros((), np.float32), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, str(path))
    return path


# TensorFlow would stay in the tests' own process for ever: it writes its model in another.
_SAVE = """
import sys
import tensorflow as tf

class Sum(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, WIDTH], tf.float32, name="x")])
    def __call__(self, x):
        weights = tf.range(1, WIDTH + 1, dtype=tf.float32)[:, None] / 100
        return {"prediction": tf.where(tf.math.is_nan(x), tf.zeros_like(x), x) @ weights}

model = Sum()
tf.saved_model.save(model, sys.argv[1], signatures={"serving_default": model.__call__})
"""


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel that computes :func:`expected`."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    subprocess.run(
        [sys.executable, "-c", _SAVE.replace("WIDTH", str(WIDTH)), str(folder)], check=True, timeout=240
    )
    return folder


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file that computes :func:`expected`."""
    return write_onnx(tmp_path_factory.mktemp("onnx") / "model.onnx")


def signature(width: int = WIDTH) -> Signature:
    return Signature(
        inputs=(Tensor(name="x", dtype="float32", shape=(None, width)),),
        outputs=(Tensor(name="prediction", dtype="float32", shape=(None, 1)),),
    )


@pytest.fixture(scope="session")
def onnx_package(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    folder = tmp_path_factory.mktemp("packages") / "toy"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(onnx_file.read_bytes())
    return write_package(
        folder,
        name="toy",
        framework="torch",
        model_format="onnx",
        signature=signature(),
        task=Task(),
        features=SPEC,
        labels=["background", "signal"],
        metrics={"validation": {"auc": 0.9}},
    )


@pytest.fixture(scope="session")
def saved_package(saved_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    folder = tmp_path_factory.mktemp("packages") / "toytf"
    shutil.copytree(saved_model, folder / "model")
    return write_package(
        folder,
        name="toytf",
        framework="keras",
        model_format="savedmodel",
        signature=signature(),
        task=Task(),
        features=SPEC,
    )


def free_port() -> int:
    """A port that is free now, and that no outgoing connection will be given."""
    return free_ports(1)[0]


@dataclass
class Served:
    """A service that runs, and the repository it serves."""

    url: str
    pid: int
    repository: Repository
    http: httpx.Client

    def json(self, document: Any) -> httpx.Response:
        return self.http.post(
            "/json", content=document if isinstance(document, bytes) else orjson.dumps(document)
        )


def start_serving(repository: Path, port: int, *options: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Run ``mlaas serve --json`` until it says that it is ready."""
    command = [sys.executable, "-m", "mlaas_ray.cli.main", "serve", "--json", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--repository", str(repository), *options],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_end_with_the_tests,
        env=os.environ | {"MLAAS_CACHE": str(EXAMINED)},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"mlaas serve ended with {process.wait(60)}"
    return process, json.loads(line)


def _end_with_the_tests() -> None:
    """Ask the kernel to stop the service when the tests are killed, and end no fixture."""
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


@pytest.fixture(scope="session")
def served(
    onnx_package: ModelPackage, saved_package: ModelPackage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A service of ``toy`` (ONNX) and ``toytf`` (SavedModel), as a user starts it; bodies up to 8 MiB."""
    repository = Repository(tmp_path_factory.mktemp("served") / "models")
    repository.publish(onnx_package)
    repository.publish(saved_package)
    # of a delete that was killed
    (repository.root / ".deleting-half" / "1").mkdir(parents=True)
    process, ready = start_serving(
        repository.root, free_port(), "--max-request", "8", "--max-upload", "8", "--replicas", "2"
    )
    with httpx.Client(base_url=ready["url"], timeout=60, trust_env=False) as http:
        yield Served(ready["url"], process.pid, repository, http)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    if process.stdout:
        process.stdout.close()
