import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from mlaas_ray.cli.bench import arrow_call
from mlaas_ray.cli.main import app
from tests.serving import WIDTH, free_port

PARAMS = {
    "known": {"name": "known", "width": 2, "columns": ["MET_pt", "Jet_pt_0"]},
    "unknown": {"name": "unknown", "width": 3, "columns": None},
    "odd": {"name": "odd", "width": None, "columns": None},
    "whole": {"name": "whole", "width": 3, "columns": None, "dtype": "uint8"},
}
ASKED = {"url", "models", "protocol", "concurrency", "rate", "seconds", "rows_per_request"}
MEASURED = {"requests", "errors", "statuses", "refused", "req_s", "rows_s", "client_cpu_us"}
MEASURED |= {"p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"}


class Handler(BaseHTTPRequestHandler):
    """Describes models as our service does, and answers what it is told to."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        if self.path == "/models":
            self.reply(200, [PARAMS[name] for name in self.server.listed])
        elif name in PARAMS:
            self.reply(200, PARAMS[name])
        else:
            self.reply(404, {"error": f"no model {name!r}. Did you mean 'known'?"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers["Content-Type"], body))
        self.reply(*self.server.answer(len(self.server.seen) - 1, body))

    def reply(self, status, content, headers=()):
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def service():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.listed = [], ["known"]
    server.answer = lambda number, body: (200, [0.5])
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


def mlaas(url, *arguments, code=0):
    options = ["--url", url, "--concurrency", 2, "--seconds", 0.2, "--warmup", 0.05, *arguments]
    found = CliRunner().invoke(app, ["bench", *map(str, options)])
    assert found.exit_code == code, found.output
    return found


def measured(url, *arguments, code=0):
    return json.loads(mlaas(url, "--json", *arguments, code=code).stdout)


def test_one_json_line_has_what_was_asked_and_what_was_measured(service):
    said = measured(service.url, "--model", "known")
    assert set(said) >= ASKED | MEASURED
    assert (said["url"], said["models"], said["protocol"]) == (service.url, ["known"], "json")
    assert (said["concurrency"], said["rate"], said["rows_per_request"]) == (2, None, 1)
    assert said["requests"] == said["rows"] == said["statuses"]["200"] > 5
    assert (said["errors"], said["refused"], said["check"]) == ({}, 0, None)
    assert 0 < said["p50_ms"] <= said["p90_ms"] <= said["p99_ms"] <= said["p999_ms"] <= said["max_ms"]


def test_people_get_a_table(service):
    shown = mlaas(service.url, "--rate", 50).output
    for word in ("req/s", "p99.9", "latency", "behind schedule", "200:", "µs CPU"):
        assert word in shown


def test_the_only_model_is_asked_when_none_is_named(service):
    assert measured(service.url)["models"] == ["known"]
    assert json.loads(service.seen[0][2])["model"] == "known"
    service.listed = ["known", "unknown"]
    assert "Name one with --model: known, unknown" in mlaas(service.url, code=2).stderr
    service.listed = []
    assert "has 0 models" in mlaas(service.url, code=2).stderr


def test_rows_are_different_and_have_the_models_columns(service):
    measured(service.url, "--model", "known")
    documents = [json.loads(body) for _, _, body in service.seen]
    assert {tuple(document["keys"]) for document in documents} == {("MET_pt", "Jet_pt_0")}
    assert len({tuple(document["values"]) for document in documents}) == min(1000, len(documents))


def test_a_model_of_integers_is_sent_integers(service):
    measured(service.url, "--model", "whole")
    values = [json.loads(body)["values"] for _, _, body in service.seen]
    assert set(np.ravel(values)) == {0, 1}


def test_several_models_are_asked_in_turn(service):
    said = measured(service.url, "-m", "known", "-m", "unknown", "--concurrency", 1, "--rows", 3)
    assert said["models"] == ["known", "unknown"]
    documents = [json.loads(body) for _, _, body in service.seen[:4]]
    assert [document["model"] for document in documents] == ["known", "unknown"] * 2
    assert documents[1]["keys"] == ["f0", "f1", "f2"]
    assert np.shape(documents[1]["values"]) == (3, 3)
    assert said["rows"] == 3 * said["requests"]


@pytest.mark.parametrize(
    ("protocol", "path", "kind"),
    [
        ("proto", "/proto", "application/x-protobuf"),
        ("raw", "/models/known/predict", "application/octet-stream"),
        ("arrow", "/models/known/predict", "application/vnd.apache.arrow.stream"),
    ],
)
def test_rows_are_sent_in_every_form(service, protocol, path, kind):
    said = measured(service.url, "-m", "known", "--protocol", protocol, "--rows", 4)
    assert said["protocol"] == protocol
    assert {seen[:2] for seen in service.seen} == {(path, kind)}
    if protocol == "raw":
        assert {len(body) for *_, body in service.seen} == {4 * 2 * 4}


def test_arrow_has_a_column_for_each_of_the_models_or_one_of_lists():
    rows = [[1.5, 2.0], [3.0, 4.0], [5.0, 6.0]]
    named = pa.ipc.open_stream(arrow_call("m:1", ["a", "b"], rows).body).read_all()
    assert named.schema == pa.schema({"a": pa.float32(), "b": pa.float32()})
    assert named.to_pydict() == {"a": [1.5, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}
    listed = pa.ipc.open_stream(arrow_call("m", None, rows).body).read_all()
    assert listed.schema == pa.schema({"x": pa.list_(pa.float32(), 2)})
    assert listed["x"].to_pylist() == rows


def test_large_requests_are_fewer(service, monkeypatch):
    monkeypatch.setattr("mlaas_ray.cli.bench._BYTES", 1000)
    measured(service.url, "-m", "known", "--protocol", "raw", "--rows", 30)
    bodies = [body for *_, body in service.seen]
    assert {len(body) for body in bodies} == {30 * 2 * 4}
    assert len(set(bodies)) == 4


def test_errors_are_status_1_and_refusals_are_not(service):
    service.answer = lambda number, body: (500, {"error": "no"}) if number % 3 == 0 else (200, [0.5])
    said = measured(service.url, code=1)
    assert said["errors"]["http_500"] > 0
    assert "http_500" in mlaas(service.url, code=1).stdout
    service.answer = lambda number, body: (503, {"error": "busy"}, [("Retry-After", "1")])
    said = measured(service.url)
    assert (said["errors"], said["statuses"]) == ({}, {"503": said["refused"]})
    assert (said["req_s"], said["p99_ms"]) == (0.0, None)
    mlaas(service.url)


def test_an_overload_is_said(service):
    gate = threading.Event()
    service.answer = lambda number, body: (gate.wait(0.05), (200, [0.5]))[1]
    found = mlaas(service.url, "--rate", 1000)
    assert "due and never sent" in found.stderr


def test_a_wrong_answer_is_status_1(service):
    service.answer = lambda number, body: (200, [sum(json.loads(body)["values"])])
    said = measured(service.url, "--check")
    assert said["check"]["answers"] >= said["requests"] > 5
    assert (said["check"]["wrong"], said["check"]["largest_difference"]) == (0, 0.0)
    assert said["check"]["distinct"] > 190
    # as if each caller had the answer of the one before
    last = [0.0]

    def belated(number, body):
        answer, last[0] = last[0], sum(json.loads(body)["values"])
        return 200, [answer if number > 450 else last[0]]

    service.seen.clear()
    service.answer = belated
    said = measured(service.url, "--check", "--seconds", 1, code=1)
    assert said["check"]["wrong"] > 5
    assert said["errors"] == {}
    assert "largest difference" in mlaas(service.url, "--check", code=1).stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "knowm"], "Did you mean 'known'"),
        (["--model", "odd"], "how many values"),
        (["--check", "--rows", 2], "single rows"),
        (["--check", "--protocol", "raw"], "single rows"),
        (["--rate", 0], "rate: Input should be greater than 0"),
        (["--seconds", -1], "seconds: Input should be greater than 0"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(service, options, said):
    found = mlaas(service.url, *options, code=2)
    assert found.stderr.startswith("error: ")
    assert said in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_service_that_is_not_there_is_one_line():
    found = mlaas(f"http://127.0.0.1:{free_port()}", "--model", "toy", code=2)
    assert "mlaas serve" in found.stderr
    assert found.stderr.count("\n") == 1


def test_ctrl_c_prints_what_was_measured(service):
    command = [sys.executable, "-m", "mlaas_ray.cli.main", "bench", "--url", service.url, "--json"]
    process = subprocess.Popen(
        [*command, "--seconds", "60", "--warmup", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if len(service.seen) > 20 or process.poll() is not None:
            break
        threading.Event().wait(0.05)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    said = json.loads(stdout)
    assert said["requests"] > 0
    assert said["seconds"] < 50


def test_the_real_service_gives_every_caller_its_own_answer(served):
    said = measured(served.url, "--model", "toy", "--check", "--concurrency", 20, "--seconds", 1)
    assert said["errors"] == {}
    assert said["check"]["wrong"] == 0
    assert said["check"]["distinct"] > 150
    assert said["check"]["answers"] >= said["requests"] > 20
    assert WIDTH == 5
