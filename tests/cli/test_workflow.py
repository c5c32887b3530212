"""``mlaas workflow``: MLaaS4HEP's arguments to a model that takes raw values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mlaas_ray.cli.main import app

MODELS = {
    "torch": """
import torch.nn as nn

def model(idim):
    return nn.Sequential(nn.Linear(idim, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())
""",
    # as in MLaaS4HEP's README, which compiles it
    "keras": """
from tensorflow import keras

def model(idim):
    ml_model = keras.Sequential([keras.layers.Dense(8, activation='relu', input_shape=(idim,)),
                                 keras.layers.Dense(1, activation='sigmoid')])
    ml_model.compile(optimizer=keras.optimizers.Adam(learning_rate=1e-3),
                     loss=keras.losses.BinaryCrossentropy(),
                     metrics=[keras.metrics.BinaryAccuracy(name='accuracy'), keras.metrics.AUC(name='auc')])
    return ml_model
""",
}
PARAMS = {
    "nevts": -1,
    "shuffle": True,
    "chunk_size": 1000,
    "epochs": 1,
    "batch_size": 100,
    "identifier": ["run", "event"],
    "branch": "Events",
    "selected_branches": "",
    "exclude_branches": "",
    "hist": "pdfs",
    "redirector": "",
    "verbose": 1,
}


@pytest.fixture
def recipe(tmp_path: Path, samples: dict[str, Path]) -> Callable[[str], list[str]]:
    """Write a recipe's files, and give the arguments that name them."""

    def write(framework: str) -> list[str]:
        (tmp_path / "files.txt").write_text(f"{samples['signal']}\n# and\n{samples['background']}\n")
        (tmp_path / "labels.txt").write_text("1\n0\n")
        (tmp_path / "my_model.py").write_text(MODELS[framework])
        (tmp_path / "params.json").write_text(json.dumps(PARAMS))
        preproc = {"flat_cut": {"MET_pt": {"cut": "5<=MET_pt<=500", "remove": "False"}}}
        (tmp_path / "preproc.json").write_text(json.dumps(preproc))
        names = {
            "files": "files.txt",
            "labels": "labels.txt",
            "model": "my_model.py",
            "params": "params.json",
        }
        options = {**names, "preproc": "preproc.json"}
        return [
            *(text for key, name in options.items() for text in (f"--{key}", str(tmp_path / name))),
            "--storage",
            str(tmp_path / "runs"),
        ]

    return write


@pytest.mark.usefixtures("ray_local")
def test_a_recipe_becomes_a_model_that_takes_raw_values(
    recipe: Callable[[str], list[str]], tmp_path: Path
) -> None:
    import onnxruntime

    fout = tmp_path / "out" / "model.onnx"
    done = CliRunner().invoke(app, ["workflow", *recipe("torch"), "--fout", str(fout), "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["model"], document["name"], document["version"]) == (str(fout), "my_model", None)
    assert document["metrics"]["validation"]["auc"] > 0.5
    package = Path(document["package"])
    assert fout.read_bytes() == (package / "model.onnx").read_bytes()
    with np.load(package / "sample.npz") as arrays:
        sample = dict(arrays)
    # the file alone, given momenta in GeV, and NaN where there is no jet
    session = onnxruntime.InferenceSession(str(fout), providers=["CPUExecutionProvider"])
    assert np.isnan(sample["x"]).any()
    (answers,) = session.run(None, {session.get_inputs()[0].name: sample["x"]})
    np.testing.assert_allclose(answers, sample["prediction"], atol=1e-5)
    columns = json.loads((package / "features.json").read_text())
    assert columns["select"] == "(5<=MET_pt<=500)"


@pytest.mark.slow
def test_a_recipe_of_keras_becomes_a_saved_model(recipe: Callable[[str], list[str]], tmp_path: Path) -> None:
    fout = tmp_path / "model"
    command = [sys.executable, "-m", "mlaas_ray.cli.main", "workflow", *recipe("keras"), "--fout", str(fout)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    assert "validation AUC" in done.stdout
    assert f"the model: {fout}" in done.stderr
    assert (fout / "saved_model.pb").is_file()


def test_what_would_be_overwritten_is_told_before_training(
    recipe: Callable[[str], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    done = CliRunner().invoke(app, ["workflow", *recipe("keras"), "--fout", str(tmp_path / "model")])
    assert done.exit_code == 2
    assert done.stderr == f"error: {tmp_path / 'model'} exists. Give another --fout, or delete it.\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--framework", "sklearn"], "no framework 'sklearn' for a recipe. Use keras or torch."),
        (["--labels", "1,0,1"], "there are 2 files and 3 labels."),
        (["--params", "none.json"], "cannot read the params file none.json"),
        (["--files", "none.txt"], "no file of files: "),
    ],
)
def test_a_recipe_that_is_wrong_is_one_line_with_a_remedy(
    recipe: Callable[[str], list[str]], changes: list[str], message: str
) -> None:
    done = CliRunner().invoke(app, ["workflow", *recipe("keras"), *changes])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_what_a_recipe_needs_is_asked_for() -> None:
    done = CliRunner().invoke(app, ["workflow", "--files", "a.root"])
    assert done.exit_code == 2
    assert "--labels" in done.output
