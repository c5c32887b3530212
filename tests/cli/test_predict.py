import json

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot
from typer.testing import CliRunner

from mlaas_ray.cli.main import app
from mlaas_ray.repository import Repository
from tests.serving import expected, free_port

EVENT = {"MET_pt": 31.25, "Jet_pt": [52.5, 33.0]}
ANSWER = expected(np.array([[31.25, np.nan, 52.5, 33.0, np.nan]], dtype=np.float32))[0].tolist()


def mlaas(*arguments, stdin=None, code=0):
    found = CliRunner().invoke(app, ["predict", *map(str, arguments)], input=stdin)
    assert found.exit_code == code, found.output
    return found


@pytest.mark.parametrize(
    ("options", "stdin"),
    [
        (["--event", json.dumps(EVENT)], None),
        (["--keys", "MET_pt, Jet_pt_0,Jet_pt_1", "--values", "31.25,52.5,33"], None),
        (["--values", "31.25,nan,52.5,33,nan"], None),
        ([], json.dumps(EVENT)),
        ([], json.dumps([EVENT])),
        ([], json.dumps({"Event": EVENT})),
        (["--events", "-"], json.dumps([EVENT])),
    ],
)
def test_an_event_may_be_given_in_every_way(served, options, stdin):
    said = json.loads(mlaas("toy", "--url", served.url, "--json", *options, stdin=stdin).stdout)
    assert said["model"] == "toy"
    assert said["predictions"] == [pytest.approx(ANSWER, rel=1e-6)]


def test_a_file_of_events_gives_a_table(served, tmp_path):
    (tmp_path / "events.json").write_text(json.dumps([EVENT] * 30))
    shown = mlaas("toy:1", "-u", served.url, "--events", tmp_path / "events.json").output
    assert f"{ANSWER[0]:.6g}" in shown
    assert "30 in all" in shown


@pytest.mark.parametrize(
    ("options", "stdin", "said"),
    [
        (["--event", "{"], None, "--event is not JSON"),
        (["--values", "1,x"], None, "--values"),
        (["--keys", "a"], None, "without --values"),
        (["--event", "{}", "--values", "1"], None, "several of"),
        (["--events", "/nowhere.json"], None, "cannot read /nowhere.json"),
        ([], "3", "holds no event"),
        (["--values", "1"], None, "1 values were sent, but the model takes 5"),
        (["--event", '{"Jetpt": 1}'], None, "Did you mean 'Jet_pt'"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(served, options, stdin, said):
    found = mlaas("toy", "--url", served.url, *options, stdin=stdin, code=2)
    assert found.stderr.startswith("error: ")
    assert said in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_service_that_is_not_there_is_one_line():
    found = mlaas("toy", "--url", f"http://127.0.0.1:{free_port()}", "--values", "1", code=2)
    assert "mlaas serve" in found.stderr


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A file of 1,000 events, in the working folder."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(1)
    arrays = {
        "MET_pt": random.exponential(30, 1000).astype(np.float32),
        "run": np.arange(1000, dtype=np.int32),
        "Jet_pt": ak.Array([[float(i), 2.5][: i % 3] for i in range(1000)]),
    }
    with uproot.recreate("data.root") as file:
        types = {name: getattr(values, "type", None) or values.dtype for name, values in arrays.items()}
        file.mktree("Events", types).extend(arrays)
        file.mktree("Runs", {"run": np.int32})
    ak.to_parquet(ak.Array(arrays), "data.parquet")
    rows = np.full((1000, 5), np.nan, np.float32)
    rows[:, 0], rows[:, 1] = arrays["MET_pt"], arrays["run"]
    rows[:, 2:4] = ak.to_numpy(ak.fill_none(ak.pad_none(arrays["Jet_pt"], 2, clip=True), np.nan))
    return expected(rows)[:, 0]


def test_a_file_of_events_is_scored_entry_by_entry(served, data):
    shown = mlaas("toy", "--url", served.url, "--events", "data.root").output
    assert "toy:1: 1,000 events in" in shown
    assert "events/s)" in shown
    assert "data_toy_scores.root, tree scores: score" in shown
    with uproot.open("data_toy_scores.root") as file:
        np.testing.assert_allclose(file["scores"]["score"].array(), data, rtol=1e-5)
    options = ["--events", "data.parquet", "-o", "out.parquet", "--json"]
    said = json.loads(mlaas("toytf", "--url", served.url, *options).stdout)
    assert said.pop("events_per_s") > 0
    assert said == {
        "model": "toytf:1",
        "events": 1000,
        "selected": 1000,
        "output": "out.parquet",
        "tree": None,
        "branches": ["score"],
    }
    np.testing.assert_allclose(pq.read_table("out.parquet")["score"], data, rtol=1e-5)


def test_a_model_of_a_folder_needs_no_service(onnx_package, data, tmp_path):
    repository = Repository(tmp_path / "models")
    repository.publish(onnx_package)
    options = ["--events", "data.root:Events", "--repository", repository.root]
    assert "toy:1: 1,000 events" in mlaas("--url", "http://127.0.0.1:1", *options).output
    with uproot.open("data_toy_scores.root") as file:
        np.testing.assert_allclose(file["scores"]["score"].array(), data, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--events", "none.root"], "no such file: none.root"),
        (["--events", "data.root", "--tree", "Event"], "Events"),
        (["--events", "data.root", "--tree", "Runs"], "tree 'Runs': toy:1 needs 'Jet_pt', 'MET_pt', which"),
        (["--events", "text.root"], "it is not a ROOT file"),
        (["--events", "cut.root"], "cut.root"),
        (["--events", "bytes"], "is no text. Give JSON, .root"),
        (["--events", "named-otherwise"], "tree 'Events'"),
        (["--events", "data.root", "--output", "data.root", "--force"], "is the input itself"),
        (["--events", "data.root", "--values", "1"], "Give --events alone"),
        (["--values", "1", "--output", "x.root"], "are for files of events"),
        (["--events", "data.root", "--repository", "nowhere"], "nowhere"),
    ],
)
def test_a_file_that_cannot_be_scored_is_one_line_and_status_2(served, data, tmp_path, options, said):
    (tmp_path / "text.root").write_text("no events, but more than a header has " * 20)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    content = (tmp_path / "data.root").read_bytes()
    (tmp_path / "cut.root").write_bytes(content[:-3000])
    with uproot.recreate("named-otherwise") as file:
        file.mktree("Events", {"MET_pt": np.float32})
    before = sorted(path.name for path in tmp_path.iterdir())
    found = mlaas("toy", "--url", served.url, *options, code=2)
    assert found.stderr.startswith("error: ")
    assert said in found.stderr
    assert found.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "data.root").read_bytes() == content
