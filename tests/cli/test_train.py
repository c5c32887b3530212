"""``mlaas train``: bad input is one line with a remedy, status 2, and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot
import yaml
from typer.testing import CliRunner

from mlaas_ray.cli.main import app

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture
def run(tmp_path: Path, samples: dict[str, Path]) -> Callable[..., tuple[int, str]]:
    """Run ``mlaas train`` on a job with the signal dataset and other keys changed."""

    def run_job(signal: dict[str, Any] | None = None, **changes: Any) -> tuple[int, str]:
        job = {
            "datasets": {
                "signal": {"files": str(samples["signal"]), "label": 1} | (signal or {}),
                "background": {"files": str(samples["background"]), "label": 0},
            },
            "inputs": {"exclude": ["run", "event"]},
            "train": {"epochs": 1},
            "storage": str(tmp_path / "runs"),
        } | changes
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        result = CliRunner().invoke(app, ["train", str(path), "--json"])
        return result.exit_code, result.stderr

    return run_job


def damaged(kind: str, samples: dict[str, Path], folder: Path) -> Path:
    path = folder / f"{kind}.root"
    content = samples["signal"].read_bytes()
    if kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "page":
        path.write_text("<html>404</html>")
    elif kind == "empty":
        with uproot.recreate(path) as file, uproot.open(samples["signal"]) as source:
            file.mktree(
                "Events",
                {
                    name: branch.interpretation.numpy_dtype
                    for name, branch in source["Events"].items()
                    if name.startswith("MET")
                },
            )
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file: {path}. Check the path"),
        ("page", "{path}: it is not a ROOT file"),
        ("cut", "{path}: it is cut short"),
        ("empty", "dataset 'signal' has no events: {path}, tree 'Events' is empty"),
    ],
)
def test_a_bad_file_is_named(
    run: Callable[..., tuple[int, str]], samples: dict[str, Path], tmp_path: Path, kind: str, message: str
) -> None:
    path = damaged(kind, samples, tmp_path)
    check(run({"files": str(path)}, inputs={"include": ["MET*"]}), message.format(path=path), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal": {"tree": "Evnets"}}, "holds no tree 'Evnets'. Its trees: Events."),
        ({"inputs": {"include": ["Jet_pT"]}}, "no branch 'Jet_pT'"),
        ({"inputs": {"include": ["Jet_pT"]}}, "Did you mean 'Jet_pt'"),
        ({"signal": {"label": 0}}, "there is nothing to tell apart. Add a dataset with label 1."),
        ({"frameworks": "torch"}, "unknown key 'frameworks' in the job file"),
        ({"train": {"epoch": 1}}, "unknown key 'train.epoch' in the job file"),
        ({"model": "none.py"}, "none.py"),
    ],
)
def test_a_bad_job_is_one_line_with_a_remedy(
    run: Callable[..., tuple[int, str]], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    check(run(**changes), message, tmp_path)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_network_of_the_wrong_size_is_told_before_training(
    run: Callable[..., tuple[int, str]], tmp_path: Path, framework: str
) -> None:
    model = tmp_path / "mine.py"
    model.write_text(
        "def model(input_dim):\n"
        + {
            "torch": "    import torch\n"
            "    return torch.nn.Sequential(torch.nn.Linear(7, 1), torch.nn.Sigmoid())\n",
            "keras": "    import keras\n"
            "    return keras.Sequential([keras.Input((7,)), keras.layers.Dense(1, 'sigmoid')])\n",
        }[framework]
    )
    check(run(model=str(model), framework=framework), "takes 7 values", tmp_path)


def test_a_job_file_that_is_missing_is_named_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlaas_ray.cli.main", "train", "none.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "error: cannot read the job file none.yaml: No such file or directory. Check the path.\n"
    )


def check(outcome: tuple[int, str], message: str, folder: Path) -> None:
    status, printed = outcome
    assert status == 2, printed
    last = printed.rstrip("\n").splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in printed
    assert not list(folder.rglob("package.json"))
    assert not list(folder.rglob(".incoming-*"))


def test_inspect_tells_what_training_would_see(samples: dict[str, Path]) -> None:
    result = CliRunner().invoke(app, ["inspect", str(samples["signal"]), "--include", "Jet_*", "--json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["entries"] == 3000
    assert [(feature["name"], feature["kind"]) for feature in document["features"]] == [
        (f"Jet_{name}", "jagged") for name in ("btag", "eta", "phi", "pt")
    ]
    with uproot.open(samples["signal"]) as file:
        pt = np.concatenate([np.asarray(event) for event in file["Events"]["Jet_pt"].array()])
    seen = document["features"][-1]["statistics"]
    assert (seen["count"], seen["max"]) == (len(pt), pytest.approx(pt.max()))


def test_inspect_shows_tables_to_people(samples: dict[str, Path]) -> None:
    result = CliRunner().invoke(app, ["inspect", str(samples["signal"])])
    assert result.exit_code == 0
    assert "3,000 events" in result.stdout
    assert "Jet_btag" in result.stdout
