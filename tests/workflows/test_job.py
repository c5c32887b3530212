from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from mlaas_ray.core.errors import JobError, LabelError, ModelError
from mlaas_ray.streaming.sources import find_sources
from mlaas_ray.training import FRAMEWORKS
from mlaas_ray.workflows import Job

DOCS = Path(__file__).parents[2] / "docs"


def load(tmp_path: Path, text: str) -> Job:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return Job.load(path)


SMALLEST = """
datasets:
  signal: {files: s.root, label: 1}
  ww: {files: [a.root, "b*.root"], label: 0, tree: events}
  wz: {files: c.root, label: 0}
"""


def test_the_smallest_job_has_defaults_for_the_rest(tmp_path: Path) -> None:
    job = load(tmp_path, SMALLEST)
    assert (job.framework, job.model.name, job.split.validation, job.publish) == ("torch", None, 0.2, None)
    assert (job.kind, job.classes) == ("binary", ["ww+wz", "signal"])
    assert (job.shares, job.wanted_sums) == (None, {})
    assert [(s.name, s.files, s.tree, s.label, s.weight, s.constants) for s in job.samples({})] == [
        ("signal", ["s.root"], None, 1.0, None, {}),
        ("ww", ["a.root", "b*.root"], "events", 0.0, None, {}),
        ("wz", ["c.root"], None, 0.0, None, {}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epochs: 3", r"unknown key 'epochs'"),
        ("train: {epoch: 3}", r"unknown key 'train.epoch' .* Did you mean 'epochs'"),
        ("inputs: {objects: {Jet: {lenght: 3}}}", r"'inputs.objects.Jet.lenght' .* Did you mean 'length'"),
        ("frameworks: torch", r"'frameworks' .* Did you mean 'framework'"),
        ("train: {epochs: many}", r"train.epochs: .*integer.*'many'"),
        ("train: {workers: 0}", r"train: workers is a number of at least 1"),
        ("train: {workers: [4, 2]}", r"train: workers is .* \[least, most\]"),
        ("train: {schedule: cosinus}", r"train.schedule.kind: .*'cosinus'"),
        (
            "train: {early_stopping: {patince: 3}}",
            r"'train.early_stopping.patince' .* Did you mean 'patience'",
        ),
        ("weights: {expresion: w}", r"'weights.expresion' .* Did you mean 'expression'"),
        ("task: trinary", r"task.kind: .*'trinary'"),
        ("publish: {aliases: [best, 3rd]}", r"'3rd' cannot be an alias"),
        ("publish: {if_better_than: a/b}", r"'a/b' cannot be"),
        ("publish: {unless_worse_than: 0}", r"'model:0' names no version"),
        ("mixing: even", r"mixing: "),
        ("mixing: {signl: 1, ww: 1}", r"mixing names 'signl', which is no dataset. Did you mean 'signal'"),
        ("framework: pytorch", r"no framework 'pytorch'. Did you mean 'torch'"),
        ("framework: none.py", r"no framework file .*none.py"),
        ("split: {validation: 0.5, test: 0.5}", r"split: the fractions must leave something"),
        ("inputs: [a]", r"inputs: "),
    ],
)
def test_what_is_wrong_is_named_by_its_path(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        load(tmp_path, SMALLEST + line)


def test_a_key_of_a_dataset_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"'datasets.signal.lable' .* Did you mean 'label'"):
        load(tmp_path, "datasets: {signal: {files: s.root, label: 1, lable: 1}}")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"lacks the key 'datasets.signal.label'"):
        load(tmp_path, "datasets: {signal: {files: s.root}}")


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b", "a: [", "\x00"])
def test_a_file_that_is_no_job_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(JobError, match=r"job.yaml"):
        load(tmp_path, text)


def test_a_missing_job_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"none.yaml: No such file"):
        Job.load(tmp_path / "none.yaml")


def test_labels_of_one_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"has the label 1: there is nothing to tell apart.*label 0"):
        load(tmp_path, "datasets: {a: {files: a.root, label: 1}, b: {files: b.root, label: 1}}")


def labelled(*labels: object, **rest: Any) -> dict[str, Any]:
    """A job's content: a dataset ``d0``, ``d1``, … for each label."""
    return {"datasets": {f"d{i}": {"files": f"{i}.root", "label": x} for i, x in enumerate(labels)}, **rest}


def job_of(*labels: object, **rest: Any) -> Job:
    return Job.of(labelled(*labels, **rest), "the job").checked(Path.cwd())


@pytest.mark.parametrize(
    ("labels", "rest", "message"),
    [
        ((1, 2), {}, r"no dataset has the label 0. Number the classes from 0 on"),
        ((0, 1, 3), {}, r"no dataset has the label 2"),
        ((0, 0.5), {}, r"dataset 'd1' has the label 0.5. .* from 0 to 1: 0 for background and 1 for signal"),
        ((0, -1), {}, r"'d1' has the label -1"),
        ((0, 1, 2), {"task": {"classes": ["a", "b"]}}, r"'d2' has the label 2. .* from 0 to 1"),
        ((0, 1), {"task": {"classes": ["a", "b", "c"]}}, r"no dataset has the label 2"),
        ((0, 1, 2), {"task": "binary"}, r"3 classes are no binary task. Say task: multiclass"),
        ((0, 1), {"task": "multiclass"}, r"two classes are no multiclass task"),
        ((0, 1), {"task": {"classes": "a"}}, r"task.classes names one class, 'a'"),
        (({"branch": ["a", "b"]},), {"task": "binary"}, r"several targets are no binary task"),
        (({"branch": ["a", "b"]}, {"branch": "a"}), {}, r"different numbers of targets"),
        (({"expression": "a +"}, 0), {}, r"datasets.d0.label: "),
    ],
)
def test_labels_that_fit_no_task_are_refused(
    labels: tuple[object, ...], rest: dict[str, Any], message: str
) -> None:
    with pytest.raises((LabelError, JobError), match=message):
        job_of(*labels, **rest)


@pytest.mark.parametrize(
    ("labels", "rest", "kind", "names"),
    [
        ((0, 1), {}, "binary", ["d0", "d1"]),
        ((1, 0, 1), {}, "binary", ["d1", "d0+d2"]),
        ((0, 1, 2), {}, "multiclass", ["d0", "d1", "d2"]),
        ((0, 1), {"task": {"classes": ["no", "yes"]}}, "binary", ["no", "yes"]),
        (({"branch": "flavour"},), {}, "binary", ["0", "1"]),
        ((0, {"branch": "flavour"}), {}, "binary", ["d0", "1"]),
        (({"branch": "flavour"},), {"task": {"classes": ["u", "c", "b"]}}, "multiclass", ["u", "c", "b"]),
    ],
)
def test_the_labels_tell_task_and_names_of_the_classes(
    labels: tuple[object, ...], rest: dict[str, Any], kind: str, names: list[str]
) -> None:
    job = job_of(*labels, **rest)
    assert (job.kind, job.classes) == (kind, names)


@pytest.mark.parametrize(
    ("labels", "rest", "names"),
    [
        ((0.5, 7), {"task": "regression"}, ["target"]),
        (({"branch": "E"},), {"task": "regression"}, ["E"]),
        (({"branch": ["px", "py"]},), {}, ["px", "py"]),
        (({"expression": ["2 * px", "py"]},), {}, ["target_0", "target_1"]),
        (({"expression": "2 * px"},), {"task": {"targets": "p"}}, ["p"]),
    ],
)
def test_targets_have_names(labels: tuple[object, ...], rest: dict[str, Any], names: list[str]) -> None:
    job = job_of(*labels, **rest)
    assert (job.kind, job.targets) == ("regression", names)


def test_what_tells_the_label_or_the_weight_is_no_input() -> None:
    label = {"expression": "HT > cut"}
    job = job_of(label, define={"HT": "sum(Jet_pt)"}, weights="genWeight * w", inputs={"exclude": "run"})
    assert job.wanted.exclude == ("run", "HT", "Jet_pt", "cut", "genWeight", "w")
    assert (job.wanted.define, job.wanted.select) == ({"HT": "sum(Jet_pt)"}, None)
    # what somebody asks for by its name is an input: he knows
    asked = job_of(label, weights="w", inputs={"include": ["w", "x", "HT"]})
    assert asked.wanted.exclude == ("cut",)


@pytest.mark.parametrize("label", [{"branch": "HT"}, {"expression": "HT"}])
def test_the_label_itself_is_never_an_input(label: dict[str, Any]) -> None:
    assert job_of(label, inputs={"include": ["H*"]}).wanted.exclude == ("HT",)
    with pytest.raises(JobError, match=r"inputs.include names 'HT', which is the label"):
        _ = job_of(label, inputs={"include": ["HT"]}).wanted


def test_a_branch_whose_name_is_no_identifier_may_be_a_label() -> None:
    (sample,) = job_of({"branch": "truth.flavour"}).samples({})
    assert sample.label == ('branch("truth.flavour")',)


def test_weights_are_those_of_a_luminosity() -> None:
    content = labelled(0, 1, lumi=2.0, weights="genWeight * xsec * lumi / sum_weights")
    content["datasets"]["d0"] |= {"xsec": 3.0, "sum_weights": 400.0}
    content["datasets"]["d1"] |= {"xsec": 0.5, "sum_weights": {"tree": "Runs", "branch": "genEventSumw"}}
    job = Job.of(content, "the job").checked(Path.cwd())
    first, second = job.samples({"d0": 400.0, "d1": 9.0})
    # 2/fb are 2000/pb
    assert first.constants == {"xsec": 3.0, "lumi": 2000.0, "sum_weights": 400.0}
    assert second.constants == {"xsec": 0.5, "lumi": 2000.0, "sum_weights": 9.0}
    assert {sample.weight for sample in (first, second)} == {"genWeight * xsec * lumi / sum_weights"}
    assert job.wanted_sums == {name: dataset.sum_weights for name, dataset in job.datasets.items()}
    # nobody adds up what nobody divides by
    assert (
        job.model_copy(update={"weights": job.weights.model_copy(update={"expression": "xsec"})}).wanted_sums
        == {}
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("xsec", r"weights needs xsec, and there is no datasets.d0.xsec"),
        ("genWeight / sum_weights", r"there is no datasets.d0.sum_weights"),
        ("lumi", r"weights needs lumi, and there is no lumi"),
        ("genWeight *", r"weights: "),
    ],
)
def test_a_weight_that_lacks_a_number_is_refused(weights: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        job_of(0, 1, weights=weights)


def test_a_number_of_ones_own_may_have_such_a_name() -> None:
    assert job_of(0, 1, weights="xsec * w", define={"xsec": "genWeight"}).weights.expression == "xsec * w"


@pytest.mark.parametrize(
    ("mixing", "shares"),
    [("natural", None), ("equal", {"d0": 1.0, "d1": 1.0}), ({"d0": 1, "d1": 3}, {"d0": 1.0, "d1": 3.0})],
)
def test_datasets_are_mixed_as_asked(mixing: object, shares: object) -> None:
    assert job_of(0, 1, mixing=mixing).shares == shares


def test_one_word_stands_for_a_section() -> None:
    short = job_of(
        0,
        1,
        weights="w",
        task="binary",
        model="deepsets",
        reading={"bad_files": "skip", "max_events": "all"},
        train={"schedule": "step", "early_stopping": "auc"},
    )
    long = job_of(
        0,
        1,
        weights={"expression": "w"},
        task={"kind": "binary"},
        model={"name": "deepsets"},
        reading={"bad_files": {"policy": "skip"}},
        train={"schedule": {"kind": "step"}, "early_stopping": {"monitor": "auc"}},
    )
    assert short == long
    assert short.train.early_stopping.monitor == "auc"


def test_a_model_has_options_of_its_own() -> None:
    job = job_of(0, 1, model={"name": "mlp", "hidden": [64, 32], "dropout": 0.1})
    assert (job.model.name, job.model.options) == ("mlp", {"hidden": [64, 32], "dropout": 0.1})


@pytest.mark.parametrize(
    ("model", "framework", "message"),
    [
        ("mpl", "torch", r"no model 'mpl'. Did you mean 'mlp'"),
        ("trees", "torch", r"no model 'trees'"),
        ("none.py", "keras", r"no model file .*none.py"),
    ],
)
def test_a_model_that_is_none_is_told_before_a_file_is_read(model: str, framework: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        job_of(0, 1, model=model, framework=framework)


def test_a_job_may_be_changed_as_it_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(SMALLEST + "model: mlp")
    job = Job.load(path, ["train.epochs=3", "model.hidden=[8]", "datasets.ww.label=1", "publish={}"])
    assert (job.train.epochs, job.model.name, job.model.options) == (3, "mlp", {"hidden": [8]})
    assert job.classes == ["wz", "signal+ww"]
    assert job.publish is not None
    with pytest.raises(JobError, match=r"unknown key 'train.epoch' in the job file .*job.yaml"):
        Job.load(path, ["train.epoch=3"])


def test_a_job_survives_being_written_down(tmp_path: Path) -> None:
    job = load(
        tmp_path,
        SMALLEST
        + """
define: {b: "Jet_pt[:, 0]", a: "b + 1"}
select: a > 3
weights: {expression: a, negative: absolute}
model: {name: mlp, hidden: [8]}
inputs: {objects: {Jet: {length: 3}}}
train: {workers: [2, 4], schedule: {kind: step}, early_stopping: auc, parameters: {max_depth: 3}}
publish: {if_better_than: 3, aliases: candidate}
""",
    )
    again = Job.of(yaml.safe_load(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False)), "again")
    assert again == job
    assert list(again.define) == ["b", "a"]


def test_a_name_no_model_may_have_is_refused(tmp_path: Path) -> None:
    for line in ("name: ../up", "publish: {name: ../up}"):
        with pytest.raises(JobError, match="cannot be a model's name"):
            load(tmp_path, SMALLEST + line)


def test_paths_are_found_beside_the_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("s.root", "b1.root", "mine.py", "own.py"):
        (tmp_path / "jobs" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "jobs" / name).touch()
    path = tmp_path / "jobs" / "job.yaml"
    path.write_text(SMALLEST + "model: {name: mine.py, width: 3}\nframework: own.py")
    monkeypatch.chdir(tmp_path)
    job = Job.load(path)
    assert job.datasets["signal"].files == (str(tmp_path / "jobs/s.root"),)
    assert job.datasets["ww"].files == ("a.root", str(tmp_path / "jobs/b*.root"))
    assert (job.model.name, job.model.options) == (str(tmp_path / "jobs/mine.py"), {"width": 3})
    assert job.framework == str(tmp_path / "jobs/own.py")


def test_files_with_their_trees_are_found_beside_the_job_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs[1]").mkdir()
    for name in ("s.root", "b1.root"):
        (tmp_path / "jobs[1]" / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", "/data")
    files = ["s.root:Events", "b*.root/dir/Events", "das:/A/B/NANOAODSIM", "$DATA/a.root", "none.root:Events"]
    datasets = {"s": {"files": files, "label": 1}, "b": {"files": "b.root", "label": 0}}
    job = Job.of({"datasets": datasets}, "the job").checked(Path("jobs[1]"))
    assert job.datasets["s"].files == (
        "jobs[1]/s.root:Events",
        "jobs[[]1]/b*.root/dir/Events",
        *files[2:],
    )
    (found,) = find_sources(job.datasets["s"].files[1])
    assert (found.path, found.tree) == (str(tmp_path / "jobs[1]/b1.root"), "dir/Events")


def documented() -> dict[str, str]:
    """Return the default that docs/job.md gives for each key."""
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) ?\|", (DOCS / "job.md").read_text(), re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a key has two rows"
    return {key: default.strip("`") for key, default in rows}


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give every key a job may have, as the documentation writes it, with its default."""
    for name, field in model.model_fields.items():
        key = prefix + name
        inner = models_in(field.annotation)
        if name == "define":
            yield f"{key}.NAME", None
        elif name == "views":  # docs/streaming/grid.md has a table of theirs
            yield key, None
        elif not inner:
            yield key, field.get_default(call_default_factory=True)
        else:
            if float in get_args(field.annotation):  # a number, or keys that tell where it is
                yield key, None
            step = "NAME." if name in ("datasets", "objects") else ""
            yield from keys(inner[0], f"{key}.{step}")


def test_every_key_is_documented_and_no_other() -> None:
    assert set(documented()) == {key for key, _ in keys(Job)}


# Where the default is in other settings, or in words: what the documentation calls them.
IN_WORDS = {
    "reading.redirectors": "CMS's three",
    "reading.max_events": "all",
    "model.name": "the framework's first",
}


@pytest.mark.parametrize(("key", "default"), list(keys(Job)), ids=[key for key, _ in keys(Job)])
def test_documented_defaults_are_those_of_the_settings(key: str, default: Any) -> None:
    shown = documented()[key]
    if key in IN_WORDS:
        assert shown == IN_WORDS[key]
    elif default is PydanticUndefined:
        assert shown == "", "it must be given"
    elif default is None or default in ((), {}):
        # the words that stand there must not look like a value
        assert not re.fullmatch(r"[\d.]+|true|false", shown)
    elif isinstance(default, bool):
        assert shown == str(default).lower()
    else:
        assert (type(default)(shown) if isinstance(default, int | float) else shown) == default


@pytest.mark.parametrize("key", ["epochs", "learning_rate"])
def test_documented_defaults_of_the_frameworks_are_theirs(key: str) -> None:
    usual, _, trees = documented()[f"train.{key}"].partition("; xgboost ")
    told = {"torch": float(usual), "keras": float(usual), "xgboost": float(trees)}
    assert told == {name: framework().defaults[key] for name, framework in FRAMEWORKS.items()}


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", (DOCS / "job.md").read_text(), re.DOTALL))
def test_documented_examples_are_right(text: str) -> None:
    content = yaml.safe_load(text)
    # a part of a job is one of the smallest
    Job.of(yaml.safe_load(SMALLEST) | content, "the example").check_labels()
