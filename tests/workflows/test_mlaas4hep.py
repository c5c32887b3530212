from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlaas_ray.core.errors import JobError, LabelError
from mlaas_ray.workflows import Job
from mlaas_ray.workflows.mlaas4hep import recipe_job
from tests.training.test_mlaas4hep_models import LOGITS, TWO

MODEL = "from tensorflow import keras\n\ndef model(idim):\n    return keras.Sequential()\n"

# As in the README of MLaaS4HEP.
PARAMS = {
    "nevts": -1,
    "shuffle": True,
    "chunk_size": 10000,
    "epochs": 5,
    "batch_size": 100,
    "identifier": ["runNo", "evtNo", "lumi"],
    "branch": "events",
    "selected_branches": "",
    "exclude_branches": "",
    "hist": "pdfs",
    "redirector": "root://stormgf2.pi.infn.it",
    "verbose": 1,
}

Recipe = Callable[..., Job]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Make a job of a recipe's files; keyword arguments overrule what is in them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "files.txt").write_text("# the signal\ns.root\n\n/data/b1.root\n  /store/b2.root \n")
    (tmp_path / "labels.txt").write_text("1\n0\n0\n")

    def make(
        files: str = "files.txt",
        labels: str = "labels.txt",
        model: str = "my_model.py",
        params: dict[str, Any] | None = None,
        preproc: dict[str, Any] | None = None,
        **rest: Any,
    ) -> Job:
        for name, content in (("params.json", params), ("preproc.json", preproc)):
            if content is not None:
                (tmp_path / name).write_text(json.dumps(content))
        return recipe_job(
            files, labels, model, "params.json" if params is not None else None,
            "preproc.json" if preproc is not None else None, **rest,
        )  # fmt: skip

    return make


def test_the_files_of_a_class_are_a_dataset(recipe: Recipe) -> None:
    job = recipe(params=PARAMS)
    found = {name: (d.files, d.label, d.tree) for name, d in job.datasets.items()}
    assert found == {
        "class_1": (("s.root",), 1.0, "events"),
        "class_0": (("/data/b1.root", "/store/b2.root"), 0.0, "events"),
    }
    assert (job.kind, job.name, job.framework, job.model.name) == (
        "binary",
        "my_model",
        "keras",
        "my_model.py",
    )


def test_parameters_keep_their_meaning(recipe: Recipe) -> None:
    job = recipe(params=PARAMS)
    assert (job.train.epochs, job.train.batch_size) == (5, 100)
    assert job.inputs.exclude == ("runNo", "evtNo", "lumi")
    assert (job.inputs.include, job.inputs.normalise) == (None, "minmax")
    assert (job.reading.redirectors, job.reading.max_events) == (("root://stormgf2.pi.infn.it",), None)
    # a fifth is set aside, and of the rest a fifth judges
    assert job.split.parts == (pytest.approx((0, 0.64)), pytest.approx((0.64, 0.8)))
    assert job.split.held_out == pytest.approx((0.8, 1.0))


def test_without_parameters_its_defaults_hold(recipe: Recipe) -> None:
    job = recipe()
    assert (job.train.epochs, job.train.batch_size, job.datasets["class_0"].tree) == (10, 50, "Events")
    assert job.inputs.exclude == ("run", "event", "luminosityBlock")
    assert job.reading.redirectors == ("root://cms-xrd-global.cern.ch",)
    assert (job.define, job.select) == ({}, None)


@pytest.mark.parametrize(
    ("params", "exclude", "include"),
    [
        ({"identifier": ""}, ("run", "event", "luminosityBlock"), None),
        ({"identifier": []}, ("run", "event", "luminosityBlock"), None),
        ({"identifier": "a,b"}, ("a", "b"), None),
        ({"identifier": ["a"], "exclude_branches": ["c", "d"]}, ("a", "c", "d"), None),
        ({"identifier": ["a"], "exclude_branches": "c, d"}, ("a", "c", "d"), None),
        ({"identifier": ["a"], "exclude_branches": "unwanted.txt"}, ("a", "e", "f"), None),
        ({"identifier": ["a"], "selected_branches": ["x", "y"]}, ("a",), ("x", "y")),
        ({"identifier": ["a"], "selected_branches": "x,y"}, ("a",), ("x", "y")),
    ],
    ids=str,
)
def test_branches_are_lists_texts_or_files(
    recipe: Recipe, params: dict[str, Any], exclude: tuple[str, ...], include: tuple[str, ...] | None
) -> None:
    Path("unwanted.txt").write_text("e\n#g\nf\n")
    inputs = recipe(params=params).inputs
    assert (inputs.exclude, inputs.include) == (exclude, include)


@pytest.mark.parametrize(("events", "each"), [(-1, None), (0, None), (1000, 500), (1001, 501)])
def test_the_number_of_events_is_shared_by_the_classes(recipe: Recipe, events: int, each: int | None) -> None:
    assert recipe(params={"nevts": events}).reading.max_events == each


def test_labels_may_be_numbers_or_a_branch(recipe: Recipe) -> None:
    job = recipe("a.root,b.root,c.root", "0, 1, 2")
    assert [(d.files, d.label) for d in job.datasets.values()] == [
        (("a.root",), 0.0), (("b.root",), 1.0), (("c.root",), 2.0),
    ]  # fmt: skip
    assert job.kind == "multiclass"
    (dataset,) = recipe("a.root,b.root", "is_signal").datasets.values()
    assert (dataset.files, dataset.label.texts) == (("a.root", "b.root"), ("is_signal",))


def test_other_formats_have_no_tree(recipe: Recipe) -> None:
    job = recipe("a.parquet,b.csv", "0,1", params=PARAMS)
    assert {dataset.tree for dataset in job.datasets.values()} == {None}


@pytest.mark.parametrize(
    ("text", "framework"),
    [
        (MODEL, "keras"),
        ("import torch\n", "torch"),
        ("def model(idim):\n    from torch.nn import Linear\n", "torch"),
        ("import keras  # not torch\n", "keras"),
    ],
)
def test_the_model_tells_its_framework(recipe: Recipe, text: str, framework: str) -> None:
    Path("other.py").write_text(text)
    assert recipe(model="other.py").framework == framework
    assert recipe(model="other.py", framework="torch").framework == "torch"


def test_preprocessing_becomes_definitions_and_a_selection(recipe: Recipe) -> None:
    preproc = {
        "new_branch": {
            "log_partonE": {
                "def": "np.log(partonE)",
                "type": "jagged",
                "cut_1": ["log_partonE<6.31", "any"],
                "cut_2": ["log_partonE>5.85", "all"],
                "remove": "False",
                "keys_to_remove": ["partonE"],
            },
            "nJets_square": {
                "def": "nJets**2", "type": "flat", "cut": "1<=nJets_square<=16", "remove": "True",
            },
        },
        "flat_cut": {"nLeptons": {"cut": "0<=nLeptons<=2", "remove": "False"}},
        "jagged_cut": {"partonPt": {"cut": ["partonPt>200", "all"], "remove": True}},
    }  # fmt: skip
    job = recipe(params={"identifier": ["id"], "selected_branches": ["a"]}, preproc=preproc)
    assert job.define == {"log_partonE": "log(partonE)", "nJets_square": "nJets**2"}
    assert job.select == (
        "(any(log_partonE<6.31)) & (all(log_partonE>5.85)) & (1<=nJets_square<=16) & (0<=nLeptons<=2) "
        "& (all(partonPt>200))"
    )
    assert job.inputs.exclude == ("id", "partonE", "nJets_square", "partonPt")
    assert job.inputs.include == ("a", "log_partonE", "nJets_square")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"files": "none.txt"}, r"no file of files: .*none.txt"),
        ({"files": ","}, r"there are no files in ','"),
        ({"labels": "none.txt"}, r"no file of labels: .*none.txt"),
        ({"labels": "1,0"}, r"there are 3 files and 2 labels. Give one label for each file"),
        ({"labels": "1,0,+-"}, r"the label '\+-' is no class number"),
        ({"labels": "1,1,1"}, r"has the label 1: there is nothing to tell apart"),
        ({"model": "none.py"}, r"cannot read the model file none.py: No such file"),
        ({"params": {"epoch": 3}}, r"unknown key 'epoch' in params.json. Did you mean 'epochs'"),
        ({"params": {"epochs": "many"}}, r"the recipe: train.epochs: .*'many'"),
        ({"params": {"nevts": "all"}}, r"nevts in params.json is no number of events: 'all'"),
        ({"params": []}, r"params.json holds no keys and values"),
        ({"preproc": {"flat_cut": {"n": {"cut": "n"}}}}, r"the cut 'n' on 'n' compares nothing"),
        ({"preproc": {"flat_cut": {"n": {"cut": "n < import os"}}}}, r"select: "),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_recipe_is_named(
    recipe: Recipe, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((JobError, LabelError), match=message):
        recipe(**arguments)


def test_a_file_that_is_no_json_is_named(recipe: Recipe) -> None:
    recipe()
    Path("bad.json").write_text("{epochs: 3}")
    with pytest.raises(JobError, match=r"the params file bad.json is not JSON"):
        recipe_job("files.txt", "labels.txt", "my_model.py", "bad.json")
    with pytest.raises(JobError, match=r"cannot read the preproc file none.json: No such file"):
        recipe_job("files.txt", "labels.txt", "my_model.py", None, "none.json")


@pytest.mark.slow
@pytest.mark.parametrize("text", [TWO, LOGITS.format(package="MLaaS4HEP.jarray.pytorch")])
def test_the_whole_recipe_runs_with_each_of_them(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    from mlaas_ray.workflows import train
    from mlaas_ray.workflows.toy import write_sample

    monkeypatch.chdir(tmp_path)
    for process in ("signal", "background"):
        write_sample(tmp_path / f"{process}.root", process, 3000, 1)  # type: ignore[arg-type]
    Path("ex_model.py").write_text(text)
    Path("params.json").write_text(json.dumps({"epochs": 3, "batch_size": 100}))
    job = recipe_job("signal.root,background.root", "1,0", "ex_model.py", "params.json")
    package = train(job, progress=False)
    assert package.metrics["validation"]["auc"] > 0.6
    assert max(package.metrics["export_difference"].values()) < 1e-4
