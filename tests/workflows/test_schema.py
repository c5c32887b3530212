from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mlaas_ray.core.errors import JobError
from mlaas_ray.workflows import Job
from mlaas_ray.workflows.schema import job_schema

DOCS = Path(__file__).parents[2] / "docs"

SMALLEST = """
datasets:
  signal: {files: "signal/*.root", label: 1}
  background: {files: [a.root, b.root], label: 0}
"""

FULL = """
name: ttH-resolved
seed: 42
datasets:
  ttH:
    files: ["root://eospublic.cern.ch//eos/somewhere/ttH_*.root"]
    tree: Events
    label: 1
    xsec: 0.5071
    sum_weights: {tree: Runs, branch: genEventSumw}
  ttbar:
    das: /TTToSemiLeptonic_TuneCP5_13TeV-powheg-pythia8/RunIISummer20UL18NanoAODv9/NANOAODSIM
    tree: Events
    label: 0
    xsec: 365.34
    sum_weights: 123456.0
lumi: 59.74
mixing: {ttH: 1, ttbar: 2.5}
reading:
  redirectors: ["root://cms-xrd-global.cern.ch/", "root://xrootd-cms.infn.it/"]
  bad_files: {policy: skip, max_fraction: 0.02}
  max_events: all
  cache: {folder: /scratch/cache}
define:
  HT: "sum(Jet_pt, axis=1)"
  Jet_logpt: "log(Jet_pt)"
select: "(nMuon >= 1) & (HT > 200)"
inputs:
  representation: vector
  include: ["Jet_*", "Muon_*", "MET_pt", "HT"]
  exclude: [run, event, luminosityBlock, "MC*"]
  objects:
    Jet: {length: 8, sort_by: Jet_pt, where: "(Jet_pt > 30) & (abs(Jet_eta) < 2.4)"}
  normalise: minmax
weights: {expression: "genWeight * xsec * lumi / sum_weights", balance: classes, negative: keep}
task: {kind: binary, classes: [ttbar, ttH]}
split: {train: 0.8, validation: 0.1, test: 0.1, key: [run, luminosityBlock, event]}
model: {name: mlp, hidden: [64, 64], dropout: 0.1}
framework: torch
train:
  workers: [2, 4]
  gpus_per_worker: 1
  batch_size: 1024
  epochs: 20
  learning_rate: 1.0e-3
  schedule: {kind: cosine, warmup: 0.5}
  clip: 1.0
  precision: bfloat16
  early_stopping: {monitor: validation_loss, patience: 3}
  checkpoint: {every_steps: 2000, keep: 3}
  parameters: {max_depth: 6}
storage: s3://bucket/runs
publish: {name: tth, aliases: [candidate], if_better_than: production, unless_worse_than: 3}
"""


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    found = job_schema()
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_the_documented_schema_is_that_of_the_code() -> None:
    assert json.loads((DOCS / "job.schema.json").read_text()) == job_schema()


# Each with the smallest job; what a job file may say in short.
SHORT = [
    {"weights": "genWeight"},
    {"task": "regression"},
    {"task": {"targets": "E"}},
    {"model": "mlp"},
    {"reading": {"bad_files": "skip", "max_events": 100, "redirectors": "root://a/"}},
    {"inputs": {"include": "Jet_*", "exclude": "run"}},
    {"inputs": {"representation": "grid", "views": "eta-phi", "scalars": "MET_pt"}},
    {"inputs": {"representation": "grid", "views": {"x": "eta", "y": "phi", "channels": ["Jet"]}}},
    {"inputs": {"representation": "grid", "views": ["x-y", {"x": "z", "y": "x", "weight": "pt"}]}},
    {
        "inputs": {
            "representation": "grid",
            "views": {"x": "a", "y": "b", "channels": [{"collection": "Jet"}]},
        }
    },
    {"train": {"workers": 2, "schedule": "linear", "early_stopping": "auc"}},
    {"publish": {"aliases": "candidate", "if_better_than": 3}},
    {"publish": None, "select": None, "lumi": None},
    {"mixing": "equal", "split": {"key": "event"}},
    {"datasets": {"a": {"files": "a.root", "label": {"branch": "flavour"}}}},
    {"datasets": {"a": {"files": "a.root", "label": {"expression": ["2 * px", "py"]}}}},
]


@pytest.mark.parametrize("changes", [{}, yaml.safe_load(FULL), *SHORT], ids=lambda changes: str(changes)[:60])
def test_what_a_job_may_say_is_accepted(
    schema: jsonschema.Draft202012Validator, changes: dict[str, Any]
) -> None:
    content = yaml.safe_load(SMALLEST) | changes
    Job.of(content, "the job").checked(Path.cwd())
    assert [error.message for error in schema.iter_errors(content)] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"framworks": "torch"},
        {"train": {"epoch": 3}},
        {"train": {"epochs": "many"}},
        {"train": {"schedule": "cosinus"}},
        {"reading": {"bad_files": "ignore"}},
        {"reading": {"max_events": "some"}},
        {"task": "trinary"},
        {"weights": {"balance": "equal"}},
        {"inputs": {"objects": {"Jet": {"lenght": 3}}}},
        {"inputs": {"normalise": "max"}},
        {"split": {"validation": 1.5}},
        {"datasets": {"a": {"files": "a.root"}}},
        {"datasets": {"a": {"files": "a.root", "label": "signal"}}},
        {"datasets": {}},
        {"publish": "here"},
    ],
    ids=str,
)
def test_what_a_job_may_not_say_is_refused_as_the_command_does(
    schema: jsonschema.Draft202012Validator, changes: dict[str, Any]
) -> None:
    content = yaml.safe_load(SMALLEST) | changes
    with pytest.raises(JobError):
        Job.of(content, "the job")
    assert not schema.is_valid(content)


def properties(part: dict[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{name}.{key}", field) for key, field in part.get("properties", {}).items()]


def test_every_key_and_section_is_described() -> None:
    schema = job_schema()
    sections = {"Job": schema, **schema["$defs"]}
    fields = [entry for name, part in sections.items() for entry in properties(part, name)]
    assert len(fields) > 60
    lacking = [name for name, part in [*sections.items(), *fields] if not part.get("description")]
    assert lacking == []


def test_descriptions_are_the_docstrings() -> None:
    schema = job_schema()
    assert schema["description"] == "A training job."
    epochs = schema["$defs"]["TrainSettings"]["properties"]["epochs"]["description"]
    # over the lines of the docstring
    assert epochs.startswith("Times each event is seen; for trees, how many of them there will be. Left out,")
    assert schema["$defs"]["DatasetSettings"]["properties"]["files"]["description"].startswith("Paths, globs")
    assert "``" not in json.dumps(schema)
