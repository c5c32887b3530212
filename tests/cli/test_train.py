"""``mlaas train``: a job to a published model; bad input is one line with a remedy, and leaves nothing."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import uproot
import yaml
from typer.testing import CliRunner

from mlaas_ray.cli.main import app
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.repository import Repository
from tests.s3 import running_s3

pytestmark = pytest.mark.usefixtures("ray_local")


def job_on(samples: dict[str, Path], folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "toy",
        "datasets": {
            "signal": {"files": str(samples["signal"]), "label": 1},
            "background": {"files": str(samples["background"]), "label": 0},
        },
        "inputs": {"exclude": ["run", "event"]},
        "train": {"epochs": 1},
        "storage": str(folder / "runs"),
    } | changes


@dataclass
class Trained:
    """What ``mlaas train`` left, and said of it."""

    folder: Path
    run: Path
    shelf: Repository
    document: dict[str, Any]
    printed: str

    def mlaas(self, *arguments: object) -> tuple[dict[str, Any], str]:
        options = ["--repository", self.shelf.root, "--json"]
        done = CliRunner().invoke(app, ["train", *map(str, [*arguments, *options])])
        assert done.exit_code == 0, done.stderr
        assert done.stdout.count("\n") == 1
        return json.loads(done.stdout), done.stderr

    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(samples: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Trained:
    """A model that was trained for one epoch, and published."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job_on(samples, folder, train={"epochs": 7, "schedule": "constant"})))
    found = Trained(folder, folder, Repository(folder / "shelf"), {}, "")
    wish = "publish={name: other, aliases: [candidate]}"
    found.document, found.printed = found.mlaas(path, "--set", "train.epochs=1", "--set", wish)
    (found.run,) = (folder / "runs").iterdir()
    return found


def test_a_job_becomes_a_published_model(trained: Trained) -> None:
    document = trained.document
    assert (document["name"], document["version"]) == ("other", 1)
    assert document["package"] == str(trained.run / "package")
    assert Path(document["report"]).is_file()
    assert document["metrics"]["validation"]["auc"] > 0.6
    assert max(document["export_difference"].values()) < 1e-4
    assert (trained.shelf.list(), trained.shelf.aliases("other")) == (
        [trained.shelf.find("other:1")],
        {"candidate": 1},
    )
    package = trained.shelf.get("other", "candidate")
    package.check()
    assert (package.labels, package.features.by_name.keys() & {"run", "event"}) == (
        ["background", "signal"],
        set(),
    )
    # what was changed on the command line is what the model was made with
    assert package.lineage["job"]["train"]["epochs"] == 1
    assert package.metrics["validation"]["events"] + package.metrics["training"]["events"] == 6000
    assert {file["path"] for file in package.lineage["files"]} == {
        dataset["files"]
        for dataset in yaml.safe_load((trained.folder / "job.yaml").read_text())["datasets"].values()
    }


def test_what_goes_on_is_told_line_by_line(trained: Trained) -> None:
    lines = trained.printed.splitlines()
    assert f"run: {trained.run}" in lines
    (logs,) = (line.removeprefix("Ray's logs: ") for line in lines if line.startswith("Ray's logs: "))
    assert Path(logs).is_dir()
    # each silence has one line
    stages = [line for line in lines if line.endswith(" …")]
    assert stages == [
        "starting the workers …",
        "exporting and judging the model …",
        "drawing the report and packaging the model …",
    ]
    assert any(
        line.startswith("6,000 events in 2 files (background 3,000, signal 3,000); ") for line in lines
    )
    (epoch,) = (line for line in lines if line.startswith("epoch"))
    assert epoch.startswith("epoch   1/1   loss 0.")
    assert "AUC 0." in epoch


def test_a_runs_folder_holds_its_history_census_record_and_report(trained: Trained) -> None:
    (row,) = trained.history()
    assert (row["epoch"], row["epochs"]) == (1, 1)
    assert row["validation_auc"] == pytest.approx(trained.document["metrics"]["validation"]["auc"])
    (told,) = csv.DictReader((trained.run / "history.csv").read_text().splitlines())
    assert float(told["loss"]) == row["loss"]
    assert list((trained.run / "tensorboard").glob("events.out.tfevents.*"))
    census = json.loads((trained.run / "census.json").read_text())
    assert [(one["name"], one["entries"]) for one in census["datasets"]] == [
        ("background", 3000), ("signal", 3000),
    ]  # fmt: skip
    # an event is read once for training and once to judge: in one reading it is the other's
    total = json.loads((trained.run / "record.json").read_text())["total"]
    assert (total["skipped"], total["read"] % 6000) == (0, 0)
    page = (trained.run / "report" / "report.html").read_text()
    assert page == (trained.run / "package" / "report.html").read_text()
    assert (trained.run / "report" / "roc.png").is_file()


@pytest.mark.slow
def test_a_run_that_ended_before_its_package_goes_on_to_it(trained: Trained) -> None:
    """As after a crash: the trained model is there, and the package is not."""
    history = trained.history()
    shutil.rmtree(trained.run / "package")
    document, printed = trained.mlaas("--resume", trained.run)
    assert document == {**trained.document, "version": 2}
    assert "epoch" not in printed
    assert trained.shelf.aliases("other") == {"candidate": 2}
    assert trained.history() == history
    ModelPackage(trained.run / "package").check()
    # what is whole is neither trained nor packaged again
    written = (trained.run / "package" / "package.json").stat().st_mtime_ns
    again, printed = trained.mlaas("--resume", trained.run, "--set", "publish.name=third")
    assert again == {**document, "name": "third", "version": 1}
    assert printed.splitlines()[0] == f"run: {trained.run}"
    assert "epoch" not in printed
    assert (trained.run / "package" / "package.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_model_may_begin_with_the_weights_of_another(trained: Trained) -> None:
    changes = ["train.epochs=1", "train.learning_rate=1.0e-9", "seed=0"]
    options = [text for change in changes for text in ("--set", change)]
    document, _ = trained.mlaas(trained.folder / "job.yaml", "--from", "other:1", "--publish", *options)
    # nothing was learnt that was not known before
    assert document["metrics"]["validation"]["auc"] == pytest.approx(
        trained.shelf.get("other", 1).metrics["validation"]["auc"], abs=1e-3
    )
    assert (document["name"], document["version"]) == ("toy", 1)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("how", "status"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.soak),
    ],
)
def test_a_run_that_was_interrupted_says_how_it_goes_on_and_does(
    samples: dict[str, Path], tmp_path: Path, how: signal.Signals, status: int
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_on(samples, tmp_path, train={"epochs": 400})))
    command = [sys.executable, "-m", "mlaas_ray.cli.main", "train", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch   3/"):
                process.send_signal(how)
                break
        rest = process.stderr.read().splitlines()
        assert process.wait(120) == status
    (run,) = (tmp_path / "runs").iterdir()
    # epochs that were under way may be told meanwhile
    assert [line for line in rest if not line.startswith("epoch")] == [
        f"stopped; go on with: mlaas train --resume {run}"
    ]
    assert not (run / "package").exists()
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    last = rows[-1]["epoch"]
    found = Trained(tmp_path, run, Repository(tmp_path / "shelf"), {}, "")
    found.mlaas("--resume", run, "--set", f"train.epochs={last + 2}")
    assert [row["epoch"] for row in found.history()] == list(range(1, last + 3))
    # from the last checkpoint, which may be of an epoch before the last that was told
    assert found.history()[: last - 1] == rows[: last - 1]


@pytest.mark.soak
def test_a_disk_that_runs_full_is_told_in_a_line_and_the_run_goes_on_when_there_is_room(
    samples: dict[str, Path], tmp_path: Path, small_disk: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        yaml.safe_dump(job_on(samples, tmp_path, train={"epochs": 400}, storage=f"{small_disk}/runs"))
    )
    command = [sys.executable, "-m", "mlaas_ray.cli.main", "train", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch   3/"):
                break
        with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(1000)):
                pass
        rest = process.stderr.read().splitlines()
        assert process.wait(120) == 2
    (run,) = (small_disk / "runs").iterdir()
    (error,) = (line for line in rest if not line.startswith("epoch"))
    assert error.startswith("error: ")
    assert str(small_disk) in error
    assert error.endswith(f"Make room there, then go on: mlaas train --resume {run}.")
    (small_disk / "filler").unlink()
    found = Trained(tmp_path, run, Repository(tmp_path / "shelf"), {}, "")
    last = len(found.history()) + 3
    found.mlaas("--resume", run, "--set", f"train.epochs={last}")
    assert [row["epoch"] for row in found.history()] == list(range(1, last + 1))
    ModelPackage(run / "package").check()


@pytest.mark.parametrize("where", ["runs", "runs/deep/er"])
def test_storage_that_cannot_be_written_to_is_told_before_anything_is_read(
    run: Callable[..., tuple[int, str]], read_only: Path, where: str
) -> None:
    code, printed = run({"files": "/nowhere/there.root"}, storage=f"{read_only}/{where}")
    assert (code, printed) == (
        2,
        f"error: cannot write to {read_only}: Read-only file system. "
        "Make it writable, or choose another folder.\n",
    )


def test_a_repository_that_cannot_be_written_to_is_told_before_training(
    run: Callable[..., tuple[int, str]], read_only: Path
) -> None:
    code, printed = run({"files": "/nowhere/there.root"}, publish={"repository": f"{read_only}/models"})
    assert code == 2
    assert printed.startswith(f"error: cannot write to {read_only}: Read-only file system.")


@pytest.fixture
def bucket() -> Iterator[str]:
    with running_s3("runs") as address:
        yield address


@pytest.mark.slow
def test_a_run_may_be_kept_in_a_bucket(samples: dict[str, Path], tmp_path: Path, bucket: str) -> None:
    store = fsspec.filesystem("s3")
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_on(samples, tmp_path, storage=f"{bucket}/all")))
    program = [sys.executable, "-m", "mlaas_ray.cli.main", "train", "--json"]

    def mlaas(*arguments: str) -> dict[str, Any]:
        done = subprocess.run([*program, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = mlaas(str(path))
    assert first["metrics"]["validation"]["auc"] > 0.6
    (run,) = store.ls("runs/all")
    for name in ("job.yaml", "history.csv", "record.json", "report/report.html", "package/package.json"):
        assert store.exists(f"{run}/{name}"), name
    assert not (tmp_path / "runs").exists()
    store.rm(f"{run}/package", recursive=True)
    # from what Ray Train left there
    second = mlaas("--resume", f"s3://{run}", "--publish")
    assert (second["version"], second["metrics"]) == (1, first["metrics"])
    assert len(store.cat(f"{run}/history.jsonl").splitlines()) == 1
    Repository(tmp_path / "models").get("toy").check()


@pytest.fixture
def run(tmp_path: Path, samples: dict[str, Path]) -> Callable[..., tuple[int, str]]:
    """Run ``mlaas train`` on a job with the signal dataset and other keys changed."""

    def run_job(signal: dict[str, Any] | None = None, **changes: Any) -> tuple[int, str]:
        job = job_on(samples, tmp_path, **changes)
        job["datasets"]["signal"] |= signal or {}
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
        ({"model": "none.py"}, "no model file"),
        ({"framework": "trch"}, "no framework 'trch'. Did you mean 'torch'"),
        ({"framework": "xgboost", "task": "regression", "model": "mlp"}, "no model 'mlp'"),
        ({"select": "MET_pt < 0"}, "no event passes the selection"),
        ({"select": "MET_pt <"}, "select: "),
        ({"weights": "1 - nJet"}, "of the events have negative weights"),
        ({"weights": "genWeight"}, "no branch 'genWeight'"),
        ({"mixing": {"signl": 1}}, "mixing names 'signl', which is no dataset. Did you mean 'signal'"),
        ({"storage": "ftp://127.0.0.1:1/runs"}, "cannot keep runs in ftp://127.0.0.1:1/runs: "),
    ],
)
def test_a_bad_job_is_one_line_with_a_remedy(
    run: Callable[..., tuple[int, str]], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    check(run(**changes), message, tmp_path)


@pytest.mark.parametrize("framework", ["torch", pytest.param("keras", marks=pytest.mark.slow)])
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: there is no job to train. Give a job file, or --resume RUN.\n"),
        (
            ["job.yaml", "--resume", "runs/a"],
            "error: there is no job to train. Give a job file, or --resume RUN.\n",
        ),
        (
            ["--resume", "runs/a", "--from", "toy"],
            "error: a run that goes on has weights of its own. Leave out --from.\n",
        ),
        (
            ["--resume", "/nowhere"],
            "error: /nowhere is no run: it has no job.yaml. Give the folder that mlaas train named.\n",
        ),
    ],
)
def test_what_is_asked_must_be_one_thing(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["train", *arguments])
    assert (done.exit_code, done.stderr) == (2, message)


def test_a_model_to_begin_with_that_is_missing_is_named(samples: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_on(samples, tmp_path)))
    done = CliRunner().invoke(
        app, ["train", str(path), "--from", "toy:best", "--repository", str(tmp_path / "shelf")]
    )
    assert done.exit_code == 2
    assert "error: no model 'toy' in " in done.stderr
    assert not (tmp_path / "runs").exists()


def check(outcome: tuple[int, str], message: str, folder: Path) -> None:
    status, printed = outcome
    assert status == 2, printed
    # below the line there may be the place in an expression
    last = re.sub(r"\n    .*\n *\^+\n$", "\n", printed).splitlines()[-1]
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
