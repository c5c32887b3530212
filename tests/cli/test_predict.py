import json

import numpy as np
import pytest
from typer.testing import CliRunner

from mlaas_ray.cli.main import app
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
