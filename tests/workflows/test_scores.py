"""Scores of whole files: entry by entry what the model answers to the events, in a file of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot

from mlaas_ray.core.errors import (
    BranchMissingError,
    DataError,
    EventError,
    FeatureError,
    FileMissingError,
    FileUnreadableError,
    JobError,
    ModelMissingError,
    TreeMissingError,
)
from mlaas_ray.core.features import Feature, FeatureSpec, ObjectRule
from mlaas_ray.core.flatten import Rows, flatten_events
from mlaas_ray.core.task import Task
from mlaas_ray.repository import Repository
from mlaas_ray.workflows import scores
from mlaas_ray.workflows.scores import Scorer, published, score_file
from tests.packaged import package_of

# Definitions of definitions, an order, and a selection by a branch that is no input.
SPEC = FeatureSpec.of(
    [
        Feature(name="HT", kind="flat"),
        Feature(name="ratio", kind="flat"),
        Feature(name="Jet_pt", kind="jagged", length=2),
    ],
    define={"hard": "Jet_pt[Jet_pt > 30]", "HT": "sum(hard)", "ratio": "MET_pt / (count(hard) - 1)"},
    objects={"Jet": ObjectRule(where="abs(Jet_eta) < 2", sort_by="Jet_pt")},
    branches={"MET_pt": "flat", "Jet_eta": "jagged"},
    select="(nMuon > 0) & (HT > 20)",
)
SLOPES = {"HT": 0.01, "ratio": 0.1, "Jet_pt_0": -0.02, "Jet_pt_1": 0.03}


def answers(rows: Rows) -> np.ndarray:
    """What the package of :func:`package` answers; infinite values are missing, as in training."""
    slopes = np.array([[SLOPES[column]] for column in SPEC.columns], np.float32)
    known = np.where(np.isfinite(rows), rows, 0)
    return np.asarray(1 / (1 + np.exp(-(known @ slopes))), np.float32)


def scorer(outputs: int = 1, task: Task | None = None, spec: FeatureSpec = SPEC) -> Scorer:
    def ask(rows: Rows) -> np.ndarray:
        assert not np.isinf(rows).any()
        return answers(rows) * np.arange(1, outputs + 1, dtype=np.float32)

    return Scorer("higgs:3", spec, task, lambda: ask)


def made(events: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 5, events)
    total = counts.sum()
    return {
        "MET_pt": random.exponential(30, events).astype(np.float32),
        "nMuon": random.integers(0, 3, events).astype(np.int32),
        "Jet_pt": ak.unflatten(random.exponential(40, total).astype(np.float32), counts),
        "Jet_eta": ak.unflatten(random.normal(0, 2, total).astype(np.float32), counts),
    }


def wanted(arrays: dict[str, Any]) -> np.ndarray:
    """The answer to each event by itself; NaN where the selection is not passed."""
    events = [
        {name: ak.to_list(values[i]) for name, values in arrays.items()} for i in range(len(arrays["MET_pt"]))
    ]
    found = answers(flatten_events([{**event} for event in events], SPEC))[:, 0]
    for number, event in enumerate(events):
        if not (event["nMuon"] > 0 and sum(np.float32(pt) for pt in event["Jet_pt"] if pt > 30) > 20):
            found[number] = np.nan
    return found


def write(
    path: Path, arrays: dict[str, Any], kind: str = "TTree", clusters: int = 3, tree: str = "Events"
) -> Path:
    parts = [
        np.arange(len(arrays["MET_pt"]))[part]
        for part in np.array_split(np.arange(len(arrays["MET_pt"])), clusters)
    ]
    if kind == "Parquet":
        table = pa.table(
            {name: ak.to_arrow(ak.Array(values), extensionarray=False) for name, values in arrays.items()}
        )
        pq.write_table(table, path, row_group_size=max(1, len(parts[0])))
        return path
    with uproot.recreate(path) as file:
        if kind == "RNTuple":
            out = file.mkrntuple(tree, ak.Array(arrays).layout.form)
        else:
            out = file.mktree(
                tree, {name: getattr(values, "type", None) or values.dtype for name, values in arrays.items()}
            )
        for part in parts:
            if len(part):
                out.extend({name: values[part[0] : part[-1] + 1] for name, values in arrays.items()})
    return path


def read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".parquet":
        return {
            name: column.to_numpy()
            for name, column in zip(pq.read_schema(path).names, pq.read_table(path).columns, strict=True)
        }
    with uproot.open(path) as file:
        assert file.classnames() == {"scores;1": "TTree"}
        return dict(file["scores"].arrays(library="np"))


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", ["TTree", "RNTuple", "Parquet"])
@pytest.mark.parametrize("pieces", [1, 40])
def test_every_entry_gets_its_own_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, pieces: int
) -> None:
    arrays = made(900)
    path = write(tmp_path / ("data.parquet" if kind == "Parquet" else "data.root"), arrays, kind)
    if pieces > 1:
        monkeypatch.setattr(scores, "_PIECE_BYTES", 900 * 16 // pieces)
        monkeypatch.setattr(scores, "_BASKET", 100)
    told: list[tuple[int, int]] = []
    done = score_file(str(path), scorer(), told=lambda *now: told.append(now))
    assert done.output == Path("data_higgs_scores.parquet" if kind == "Parquet" else "data_higgs_scores.root")
    assert len(told) > pieces / 2
    assert told[-1] == (900, 900)
    expected = wanted(arrays)
    assert 0 < done.selected == np.isfinite(expected).sum() < done.events == 900
    found = read(done.output)
    assert list(found) == ["score"]
    assert found["score"].dtype == np.float32
    np.testing.assert_allclose(found["score"], expected, rtol=2e-6)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_a_repositorys_model_answers_in_this_process(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "models")
    repository.publish(package_of(tmp_path / "p", SPEC, SLOPES, name="higgs"))
    arrays = made(100)
    path = write(tmp_path / "data.root", arrays)
    model = published(repository.root, None)
    assert (model.model, model.task) == ("higgs:1", Task())
    done = score_file(str(path), model, tmp_path / "out.parquet")
    np.testing.assert_allclose(read(done.output)["score"], wanted(arrays), rtol=1e-5)


def test_a_friend_tree_stands_beside_its_tree(tmp_path: Path) -> None:
    arrays = made(300)
    path = write(tmp_path / "data.root", arrays, tree="nominal")
    score_file(str(path), scorer(), Path("friend.root"), tree="nominal")
    with uproot.open(path) as data, uproot.open("friend.root") as friend:
        assert friend["scores"].title == "higgs:3"
        assert friend["scores"].num_entries == data["nominal"].num_entries
        np.testing.assert_allclose(friend["scores"]["score"].array(), wanted(arrays), rtol=2e-6)


def test_one_file_is_scored_which_may_be_named_with_its_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", str(tmp_path))
    for name in ("a", "b"):
        write(tmp_path / f"{name}.root", made(30), tree="nominal")
    done = score_file("$DATA/a.root:nominal", scorer(), Path("out.root"))
    assert (done.tree, done.events) == ("nominal", 30)
    with pytest.raises(JobError, match=r"\[ab\].root names 2 files"):
        score_file("[ab].root", scorer(), Path("more.root"))


@pytest.mark.parametrize(
    ("outputs", "task", "names"),
    [
        (1, Task(), ["score"]),
        (1, None, ["score"]),
        (2, None, ["score_0", "score_1"]),
        (3, Task(kind="multiclass", names=("ttbar", "W+jets", "1 lepton")), ["ttbar", "W_jets", "_1_lepton"]),
        (3, Task(kind="multiclass", names=("a b", "a-b", "c")), ["a_b_0", "a_b_1", "c_2"]),
        (1, Task.model_validate({"kind": "regression", "names": ("mass",)}), ["mass"]),
        (2, Task.model_validate({"kind": "regression", "names": ("px", "py")}), ["px", "py"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", [".root", ".parquet"])
def test_outputs_have_the_names_of_classes_and_targets(
    tmp_path: Path, outputs: int, task: Task | None, names: list[str], suffix: str
) -> None:
    arrays = made(50)
    path = write(tmp_path / "data.root", arrays)
    done = score_file(str(path), scorer(outputs, task), Path(f"out{suffix}"))
    found = read(done.output)
    assert list(done.branches) == list(found) == names
    for number, name in enumerate(names, start=1):
        np.testing.assert_allclose(found[name], wanted(arrays) * number, rtol=2e-6)


@pytest.mark.parametrize("suffix", [".root", ".parquet"])
def test_a_file_without_events_or_without_selected_ones_has_as_many_scores(
    tmp_path: Path, suffix: str
) -> None:
    for number in (0, 7):
        arrays = made(number) | {"nMuon": np.zeros(number, np.int32)}
        path = write(tmp_path / f"data{number}.root", arrays)
        done = score_file(str(path), scorer(), Path(f"out{number}{suffix}"))
        assert (done.events, done.selected) == (number, 0)
        assert np.isnan(read(done.output)["score"]).tolist() == [True] * number


def test_lists_of_lists_are_read_as_the_model_was_trained(tmp_path: Path) -> None:
    spec = FeatureSpec.of([Feature(name="Hit_x", kind="jagged", length=4)])
    hits = ak.Array([[[1.0, 2.0], []], [], [[3.0]]])
    pq.write_table(pa.table({"Hit_x": ak.to_arrow(hits, extensionarray=False)}), tmp_path / "hits.parquet")
    ask = lambda rows: np.nansum(rows, axis=1, keepdims=True).astype(np.float32)  # noqa: E731
    done = score_file(str(tmp_path / "hits.parquet"), Scorer("hits:1", spec, None, lambda: ask))
    assert read(done.output)["score"].tolist() == [3, 0, 3]


def test_a_model_of_integers_is_asked_for_integers_and_for_no_missing_ones(tmp_path: Path) -> None:
    spec = FeatureSpec.of([Feature(name="run", kind="flat"), Feature(name="Hit_id", kind="jagged", length=1)])
    asked: list[np.ndarray] = []

    def ask(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return np.zeros((len(rows), 1), np.float32)

    model = Scorer("ids:1", spec, None, lambda: ask, np.dtype(np.int64))
    runs = np.array([2**62 + 1, 16777217])
    for name, hits in (("all", [[7], [8]]), ("some", [[7], []])):
        table = {"run": runs, "Hit_id": pa.array(hits, pa.list_(pa.int32()))}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    score_file(str(tmp_path / "all.parquet"), model)
    np.testing.assert_array_equal(asked[-1], np.array([[2**62 + 1, 7], [16777217, 8]]), strict=True)
    with pytest.raises(EventError, match="from 0 on, row 1: the value of Hit_id_0 is missing, which int64"):
        score_file(str(tmp_path / "some.parquet"), model)


def cut_short(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-2000])
    return path


Wrong = Callable[[Path], Any]
WRONG: list[tuple[str, Wrong, type[Exception], str]] = [
    ("missing", lambda at: at / "none.root", FileMissingError, "no such file"),
    ("no ROOT", lambda at: _text(at / "text.root"), FileUnreadableError, "it is not a ROOT file"),
    ("cut short", lambda at: cut_short(write(at / "cut.root", made(5000))), FileUnreadableError, "cut short"),
    ("no Parquet", lambda at: _text(at / "text.parquet"), FileUnreadableError, "text.parquet"),
    ("no branch", lambda at: _without("Jet_eta", at / "a.root"), BranchMissingError, "'Jet_eta', which"),
    ("no cut", lambda at: _without("nMuon", at / "a.root"), BranchMissingError, "which is not there"),
    ("another kind", lambda at: write(at / "a.root", made(9) | {"Jet_pt": np.ones(9)}), FeatureError, "in "),
    ("a text", lambda at: _texts(at / "a.parquet"), BranchMissingError, "needs 'nMuon', which is string"),
]  # fmt: skip


def _text(path: Path) -> Path:
    path.write_text("no events here, but more than a header has\n" * 50)
    return path


def _without(name: str, path: Path) -> Path:
    return write(path, {key: values for key, values in made(9).items() if key != name})


def _texts(path: Path) -> Path:
    write(path, made(9), "Parquet")
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "nMuon", pa.array(["x"] * 9)), path)
    return path


@pytest.mark.parametrize(
    ("wrong", "kind", "said"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_a_wrong_file_is_named_and_leaves_no_output(
    tmp_path: Path, wrong: Wrong, kind: type[Exception], said: str
) -> None:
    path = wrong(tmp_path)
    with pytest.raises(kind) as caught:
        score_file(str(path), scorer(), tmp_path / "out.root")
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir() if "out" in entry.name] == []


def test_a_wrong_tree_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "data.root", made(9))
    with pytest.raises(TreeMissingError, match="Events"):
        score_file(str(path), scorer(), tree="events2")


def test_a_file_that_breaks_off_midway_leaves_no_output(tmp_path: Path) -> None:
    path = write(tmp_path / "data.root", made(3000))
    with uproot.open(path) as file:
        basket = file["Events"]["MET_pt"].member("fBasketSeek")[2]
    content = bytearray(path.read_bytes())
    content[basket + 100 : basket + 400] = bytes(300)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.root"):
        score_file(str(path), scorer(), tmp_path / "out.root")
    assert os.listdir(tmp_path) == ["data.root"]


def test_outputs_are_not_overwritten_unasked_and_the_input_never_is(tmp_path: Path) -> None:
    path = write(tmp_path / "data.root", made(9))
    first = score_file(str(path), scorer())
    before = first.output.read_bytes()
    with pytest.raises(JobError, match="is there already"):
        score_file(str(path), scorer(2))
    assert first.output.read_bytes() == before
    assert list(read(score_file(str(path), scorer(2), force=True).output)) == ["score_0", "score_1"]
    with pytest.raises(JobError, match="is the input itself"):
        score_file(str(path), scorer(), path, force=True)
    with pytest.raises(JobError, match="no folder"):
        score_file(str(path), scorer(), tmp_path / "none" / "out.root")
    with pytest.raises(JobError, match=r"neither .root nor .parquet"):
        score_file(str(path), scorer(), tmp_path / "out.txt")


def test_an_output_that_cannot_be_written_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "data.root", made(9))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(JobError, match=r"cannot write out\.root: No space left on device"):
        score_file(str(path), scorer(), Path("out.root"))
    assert os.listdir(tmp_path) == ["data.root"]


def test_an_interrupted_scoring_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "data.root", made(3000), clusters=6)
    monkeypatch.setattr(scores, "_PIECE_BYTES", 4000)
    monkeypatch.setattr(scores, "_BASKET", 100)

    def told(done: int, _: int) -> None:
        if done > 1000:
            # what a kill would leave
            assert sorted(os.listdir(tmp_path)) == [f".out.root.{os.getpid()}.unfinished", "data.root"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_file(str(path), scorer(), Path("out.root"), told=told)
    assert os.listdir(tmp_path) == ["data.root"]


def test_models_that_cannot_be_asked_are_told(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "models")
    with pytest.raises(EventError, match=r"no model is named, and .* has 0"):
        published(repository.root, None)
    with pytest.raises(ModelMissingError):
        published(repository.root, "higgs")
