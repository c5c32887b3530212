"""The service as its clients see it: started by ``mlaas serve``, asked over HTTP."""

import base64
import concurrent.futures
import gzip
import io
import json
import shutil
import socket
import subprocess
import threading
import time
from urllib.parse import urlsplit

import httpx
import numpy as np
import pyarrow as pa
import pytest

from mlaas_ray.inference import wire
from tests.inference.test_archives import member, write_tar
from tests.serving import SPEC, WIDTH, expected, write_onnx

EVENT = {"MET_pt": 31.25, "Jet_pt": [52.5, 33.0]}
ROW = [31.25, None, 52.5, 33.0, None]
MODELS = ["toy", "toytf"]


def answer(row):
    return expected(np.array([row], dtype=np.float32))[0].tolist()


def bundle(tmp_path, name, scale=1.0):
    """A tar.gz of an ONNX file."""
    content = write_onnx(tmp_path / f"{name}.onnx", scale=scale).read_bytes()
    return write_tar(tmp_path / f"{name}.tar.gz", member(f"{name}/model.onnx", content), compress=True)


@pytest.fixture(autouse=True)
def still_serving(request):
    """Whatever a test sends, the service answers the next caller, and holds what it held."""
    if "served" not in request.fixturenames:
        yield
        return
    served = request.getfixturevalue("served")
    yield
    # the next caller, with a connection of its own: the one of a body cut short may be closed at any moment
    reply = httpx.post(
        f"{served.url}/json", json={"model": "toy", "event": EVENT}, timeout=60, trust_env=False
    )
    assert reply.json() == pytest.approx(answer(ROW), rel=1e-6)
    assert set(served.repository.names()) == set(MODELS)
    assert not [
        path for path in served.repository.root.iterdir() if path.name.startswith((".draft", ".incoming"))
    ]


# Predictions


@pytest.mark.parametrize("model", MODELS)
def test_an_event_gives_one_answer_whichever_of_three_ways_it_is_sent(served, model):
    ways = [
        {"keys": ["Jet_pt_1", "Jet_pt_0", "MET_pt"], "values": [33.0, 52.5, 31.25]},
        {"values": ROW},
        {"event": EVENT},
    ]
    replies = [served.json({**way, "model": model}) for way in ways]
    assert [reply.status_code for reply in replies] == [200, 200, 200]
    assert {reply.headers["x-model"] for reply in replies} == {f"{model}:1"}
    assert len({reply.text for reply in replies}) == 1
    assert replies[0].json() == pytest.approx(answer(ROW), rel=1e-6)


@pytest.mark.parametrize("path", ["/json", "/predict/json"])
@pytest.mark.parametrize(
    "kind",
    ["application/json", "application/x-www-form-urlencoded", "text/plain", "application/octet-stream"],
)
def test_a_body_is_json_whatever_its_content_type_says(served, path, kind):
    body = json.dumps({"MODEL": "toy", "Values": ROW})
    reply = served.http.post(path, content=body, headers={"Content-Type": kind})
    assert reply.status_code == 200
    assert reply.text == "[3.2075]\n"


@pytest.mark.parametrize("model", MODELS)
def test_many_rows_give_a_list_of_answers_in_their_order(served, model):
    rows = np.random.default_rng(1).normal(size=(1000, WIDTH)).astype(np.float32)
    found = served.json({"model": model, "values": rows.tolist()}).json()
    np.testing.assert_allclose(found, expected(rows), rtol=1e-4, atol=1e-6)
    events = [
        {"MET_pt": float(row[0]), "run": float(row[1]), "Jet_pt": row[2:].tolist()} for row in rows[:20]
    ]
    found = served.json({"model": model, "events": events}).json()
    np.testing.assert_allclose(found, expected(rows[:20]), rtol=1e-4, atol=1e-6)


def test_rows_larger_than_grpcs_own_limit_get_through(served):
    rows = np.ones((250_000, WIDTH), dtype=np.float32)
    found = served.json({"model": "toy", "values": rows.astype(int).tolist()})
    assert found.status_code == 200, found.text
    assert len(found.json()) == len(rows)


def test_every_caller_gets_the_answer_to_its_own_row(served):
    rows = np.random.default_rng(2).normal(size=(400, WIDTH)).astype(np.float32)
    limits = httpx.Limits(max_connections=40)
    with httpx.Client(base_url=served.url, timeout=60, trust_env=False, limits=limits) as http:

        def ask(number):
            model = MODELS[number % 2]
            return http.post("/json", json={"model": model, "values": rows[number].tolist()}).json()

        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            found = list(pool.map(ask, range(len(rows))))
    np.testing.assert_allclose(found, expected(rows), rtol=1e-4, atol=1e-6)


def test_curl_gets_an_answer_without_saying_what_it_sends(served):
    body = json.dumps({"model": "toy", "event": EVENT})
    said = subprocess.run(
        ["curl", "-sS", f"{served.url}/json", "-d", body], check=True, capture_output=True, timeout=60
    )
    assert json.loads(said.stdout) == pytest.approx(answer(ROW), rel=1e-6)


def test_a_body_that_comes_in_pieces_is_waited_for(served):
    body = json.dumps({"model": "toy", "event": EVENT}).encode()
    head = (
        f"POST /json HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    )
    place = urlsplit(served.url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        for piece in (head[:20], head[20:], body[:7], body[7:]):
            connection.sendall(piece)
            time.sleep(0.05)
        reply = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b" 200 " in reply.splitlines()[0]


# Other formats; all that is in them is in test_wire and test_formats.


@pytest.mark.parametrize("model", MODELS)
def test_tfaas_messages_are_answered_with_messages(served, model):
    row = wire.Row(key=["Jet_pt_1", "Jet_pt_0", "MET_pt"], value=[33.0, 52.5, 31.25], model=model)
    reply = served.http.post("/proto", content=row.SerializeToString())
    found = wire.Predictions.FromString(reply.content).prediction
    assert reply.headers["x-model"] == f"{model}:1"
    assert [entry.label for entry in found] == (["signal"] if model == "toy" else [""])
    assert [entry.probability for entry in found] == pytest.approx(answer(ROW), rel=1e-6)
    rows = [wire.Row(value=[number] * WIDTH, model=model) for number in range(300)]
    reply = served.http.post("/predict/proto", content=wire.DataFrame(row=rows).SerializeToString())
    found = wire.PredictionsList.FromString(reply.content).predictions
    assert [row.prediction[0].probability for row in found] == pytest.approx([0.15 * n for n in range(300)])


@pytest.mark.parametrize("kind", ["raw", "npy", "arrow"])
def test_many_rows_come_and_go_as_numbers_in_memory(served, kind):
    rows = np.random.default_rng(5).normal(size=(20_000, WIDTH)).astype(np.float32)
    if kind == "raw":
        media, body = "application/octet-stream", rows.tobytes()
    elif kind == "npy":
        file = io.BytesIO()
        np.save(file, rows)
        media, body = "application/x-npy", file.getvalue()
    else:
        table = pa.table({name: rows[:, i] for i, name in enumerate(SPEC.columns)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        media, body = "application/vnd.apache.arrow.stream", sink.getvalue().to_pybytes()
    reply = served.http.post("/models/toy/predict", content=body, headers={"Content-Type": media})
    assert reply.headers["content-type"] == media, reply.text
    if kind == "arrow":
        found = pa.ipc.open_stream(reply.content).read_all().column("prediction").to_numpy()
    elif kind == "npy":
        found = np.load(io.BytesIO(reply.content))[:, 0]
    else:
        found = np.frombuffer(reply.content, "<f4")
    np.testing.assert_allclose(found, expected(rows)[:, 0], rtol=1e-4, atol=1e-6)


# What cannot be


@pytest.mark.parametrize(
    ("document", "status", "said"),
    [
        (b"{", 400, "not JSON"),
        (b"", 400, "not JSON"),
        (b"[" * 10_000, 400, "not JSON"),
        (b"\x00\xff", 400, "not JSON"),
        (b"[1]", 400, "a JSON list"),
        ({"model": "toy", "values": [1, 2]}, 400, "2 values were sent, but the model takes 5"),
        ({"model": "toy", "keys": ["Jet_pt_9"], "values": [1]}, 400, "Did you mean 'Jet_pt_"),
        ({"model": "toy", "event": {"Jetpt": [1]}}, 400, "Did you mean 'Jet_pt'"),
        ({"model": "toy", "event": {"Jet_pt": ["x"]}}, 400, "not a number"),
        ({"model": "toy", "values": ["x", 2, 3, 4, 5]}, 400, "not a number"),
        ({"model": "toy", "values": [1e300, 2, 3, 4, 5]}, 400, "too large for float32"),
        ({"model": "toy"}, 400, "no values and no event"),
        ({"model": 3, "values": [1]}, 400, "model is a number"),
        ({"model": "tory", "values": ROW}, 404, "Did you mean 'toy'"),
        ({"model": "toy:9", "values": ROW}, 404, "no version 9"),
        ({"model": "toy:0x", "values": ROW}, 400, "names no version"),
        ({"model": "toy:x", "values": ROW}, 404, "toy"),
        ({"model": "../toy", "values": ROW}, 400, "cannot be a model's name"),
        ({"values": ROW}, 400, "no model is named, and there are 2: toy, toytf"),
    ],
)
def test_a_request_that_cannot_be_answered_gets_its_reason(served, document, status, said):
    reply = served.json(document)
    assert reply.status_code == status
    assert set(reply.json()) == {"error"}
    assert said in reply.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/", 404),
        ("GET", "/json", 405),
        ("POST", "/models", 405),
        ("POST", "/json/", 404),
        ("GET", "/params/none", 404),
        ("GET", "/params/..%2Ftoy", 404),
        ("DELETE", "/delete/none", 404),
        ("DELETE", "/delete/toy:7", 404),
        ("DELETE", "/delete/.deleted", 400),
        ("DELETE", "/delete/..%2F..%2Fetc", 404),
        ("DELETE", "/delete", 400),
        ("POST", "/upload", 400),
    ],
)
def test_every_refusal_is_json(served, method, path, status):
    reply = served.http.request(method, path)
    assert (reply.status_code, list(reply.json())) == (status, ["error"]), reply.text


def test_a_body_that_says_it_is_too_large_is_refused_at_once(served):
    place = urlsplit(served.url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        connection.sendall(b"POST /json HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{")
        assert b" 413 " in connection.recv(4096).splitlines()[0]


@pytest.mark.parametrize("path", ["/json", "/upload"])
def test_a_body_that_turns_out_too_large_is_refused(served, path):
    reply = served.http.post(path, content=(bytes(1 << 20) for _ in range(9)))
    assert reply.status_code == 413
    assert "more than 8388608 bytes" in reply.json()["error"]


# Browsers; all that is in them is in test_origins


def test_a_page_of_another_site_changes_nothing_and_reads_nothing(served, tmp_path):
    body = bundle(tmp_path, "evil").read_bytes()
    host = urlsplit(served.url).netloc
    rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
    for marks in ({"Origin": "http://evil.example"}, {"Origin": "null"}, rebound, {"Host": "evil.example"}):
        requests = [
            ("POST", "/upload", body),
            ("DELETE", "/delete/toy", b""),
            ("PUT", "/deployments/toy", b""),
        ]
        for method, path, content in requests:
            reply = served.http.request(method, path, content=content, headers=marks)
            assert (reply.status_code, list(reply.json())) == (403, ["error"]), reply.text
    row = json.dumps({"model": "toy", "values": ROW})
    for _ in range(2):
        assert served.http.post("/json", content=row, headers=rebound).status_code == 403
    # its own page; and a program that knows it by another name, which changes nothing
    for headers in ({"Origin": f"http://{host}"}, {"Host": "mlaas.example"}):
        assert served.http.post("/json", content=row, headers=headers).status_code == 200
    assert served.http.delete("/delete/none", headers={"Origin": f"http://{host}"}).status_code == 404


def test_compressed_bodies_are_read(served, tmp_path):
    packed = {"Content-Encoding": "gzip"}
    body = gzip.compress(json.dumps({"model": "toy", "values": ROW}).encode())
    for _ in range(2):
        reply = served.http.post("/json", content=body, headers=packed)
        assert reply.json() == pytest.approx(answer(ROW), rel=1e-6)
    content = write_onnx(tmp_path / "model.onnx").read_bytes()
    form = httpx.Request("POST", served.url, files={"name": (None, "packed"), "model": ("m", content)})
    headers = {"Content-Type": form.headers["content-type"], **packed}
    reply = served.http.post("/upload", content=gzip.compress(form.read()), headers=headers)
    assert reply.json() == {"name": "packed", "version": 1}, reply.text
    served.http.delete("/delete/packed").raise_for_status()


# Models


def test_models_are_described_in_tfaas_keys(served):
    models = served.http.get("/models").json()
    assert [model["name"] for model in models] == MODELS
    tfaas = "name model labels op input_name output_name img_channels options input_node output_node"
    assert {*tfaas.split(), "description", "timestamp"} <= set(models[0])
    assert models[0]["version"] == 1
    params = served.http.get("/params/toy").json()
    assert params["columns"] == list(SPEC.columns)
    assert params["input_node"] == "x"
    assert params["classes"] == ["background", "signal"]
    assert served.http.get("/params/toy:1").json() == params


def test_a_damaged_package_is_listed_with_its_error_and_hides_no_other(served):
    broken = served.repository.root / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "package.json").write_text("{")
    try:
        models = {model["name"]: model for model in served.http.get("/models").json()}
        assert "damaged" in models["broken"]["error"]
        assert "error" not in models["toy"]
        reply = served.json({"model": "broken", "values": [1]})
        assert reply.status_code == 400
        assert "damaged" in reply.json()["error"]
    finally:
        served.repository.delete("broken")


def test_status_and_health_are_those_of_a_service_that_answers(served):
    assert served.http.get("/health").json() == {"status": "ok"}
    status = served.http.get("/status").json()
    assert {"CPU", "Load", "Memory", "NGo", "Uptime", "getRequests", "postRequests"} <= set(status)
    assert status["Memory"]["Virtual"]["total"] > 0
    assert status["errors"] == 0


# Uploads and deletes


def test_a_bundle_is_served_at_once_and_its_next_version_too(served, tmp_path):
    for version, scale in ((1, 1.0), (2, 10.0)):
        body = bundle(tmp_path, "up-1.2", scale).read_bytes()
        reply = served.http.post("/upload", content=body, headers={"Content-Encoding": "gzip"})
        assert reply.json() == {"name": "up-1.2", "version": version}, reply.text
        found = served.json({"model": "up-1.2", "values": [100, 0, 0, 0, 0]})
        assert found.json() == pytest.approx([scale])
        assert found.headers["x-model"] == f"up-1.2:{version}"
    assert served.json({"model": "up-1.2:1", "values": [100, 0, 0, 0, 0]}).json() == pytest.approx([1.0])
    assert served.http.get("/params/up-1.2").json()["versions"] == [1, 2]
    assert served.http.delete("/delete/up-1.2:2").json() == {"deleted": ["up-1.2:2"]}
    assert served.json({"model": "up-1.2", "values": [100, 0, 0, 0, 0]}).json() == pytest.approx([1.0])
    # as the original's client does: a form in the body of a DELETE
    reply = served.http.request("DELETE", "/delete", files={"model": (None, "up-1.2")})
    assert reply.json() == {"deleted": ["up-1.2:1"]}
    assert served.json({"model": "up-1.2", "values": [1, 0, 0, 0, 0]}).status_code == 404


def test_what_a_killed_process_left_is_removed_when_a_service_starts(served):
    deadline = time.monotonic() + 60
    while (served.repository.root / ".deleting-half").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_damaged_version_never_replaces_one_that_works_and_is_told(served, tmp_path):
    body = bundle(tmp_path, "beside").read_bytes()
    assert served.http.post("/upload", content=body).json()["version"] == 1
    row = {"model": "beside", "values": [100, 0, 0, 0, 0]}
    folder = served.repository.root / "beside"
    shutil.copytree(folder / "1", tmp_path / "2")
    (tmp_path / "2" / "model.onnx").write_bytes(b"")
    (tmp_path / "2").rename(folder / "2")
    for _ in range(3):
        reply = served.json(row)
        assert (reply.headers["x-model"], reply.json()) == ("beside:1", pytest.approx([1.0]))
    described = served.http.get("/params/beside").json()
    assert described["version"] == 1
    assert "changed after it was written" in described["failed"]["2"]
    assert described["runtime"]["chosen"] == "onnxruntime"
    # the next one that works does
    assert served.http.post("/upload", content=body).json()["version"] == 3
    assert served.json(row).headers["x-model"] == "beside:3"
    served.http.delete("/delete/beside").raise_for_status()


def test_the_originals_client_may_upload_a_form_in_base64_without_op(served, tmp_path):
    content = write_onnx(tmp_path / "model.onnx").read_bytes()
    params = {
        "name": "form",
        "model": "model.onnx",
        "labels": "labels.txt",
        "inputNode": "in",
        "options": None,
    }
    files = {
        "name": (None, "form"),
        "params": ("/home/me/params.json", json.dumps(params), "application/json"),
        "model": ("/home/me/model.onnx", base64.encodebytes(content) + b"\n", "application/octet-stream"),
        "labels": ("/home/me/labels.txt", "background\nsignal\n", "text/plain"),
    }
    reply = served.http.post("/upload", files=files, headers={"Content-Encoding": "base64"})
    assert reply.json() == {"name": "form", "version": 1}, reply.text
    described = served.http.get("/params/form").json()
    assert (described["input_node"], described["labels"], described["name"]) == ("in", "labels.txt", "form")
    assert described["classes"] == ["background", "signal"]
    # a model that knows no columns: keys are ignored, values are all there
    reply = served.json({"model": "form", "keys": ["any"], "values": [100, 0, 0, 0, 0]})
    assert reply.json() == pytest.approx([1.0])
    assert served.json({"model": "form", "event": EVENT}).status_code == 400
    served.http.delete("/delete/form").raise_for_status()


def test_a_saved_model_without_assets_is_served_from_a_bundle(served, tmp_path, saved_model):
    files = [path for path in saved_model.rglob("*") if path.is_file()]
    body = write_tar(
        tmp_path / "b",
        *(member(f"./tfup/{path.relative_to(saved_model)}", path.read_bytes()) for path in files),
        member("tfup/features.json", SPEC.to_json().encode()),
    )
    reply = served.http.post("/upload", content=body.read_bytes())
    assert reply.json() == {"name": "tfup", "version": 1}, reply.text
    assert served.json({"model": "tfup", "event": EVENT}).json() == pytest.approx(answer(ROW), rel=1e-6)
    served.http.delete("/delete/tfup").raise_for_status()


def test_concurrent_uploads_of_one_name_do_not_mix(served, tmp_path):
    bodies = {}
    for number in range(1, 5):
        folder = tmp_path / str(number)
        folder.mkdir()
        bodies[number] = bundle(folder, "many", float(number)).read_bytes()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        replies = list(
            pool.map(lambda body: served.http.post("/upload", content=body).json(), bodies.values())
        )
    assert sorted(reply["version"] for reply in replies) == [1, 2, 3, 4]
    for number, reply in zip(bodies, replies, strict=True):
        found = served.json({"model": f"many:{reply['version']}", "values": [100, 0, 0, 0, 0]})
        assert found.json() == pytest.approx([float(number)])
    served.http.delete("/delete/many").raise_for_status()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bad/model.onnx", b"\x08\x07 junk", "not an ONNX file"),
        ("bad/saved_model.pb", b"\x08\x01 junk", "cannot load the SavedModel"),
        ("bad/graph.pb", b"\x0a\x01", "frozen TensorFlow graph"),
        ("bad/readme", b"x", "no model"),
        ("../bad/model.onnx", b"x", "leads out"),
        ("/bad/model.onnx", b"x", "leads out"),
    ],
)
def test_a_bundle_that_cannot_be_served_is_refused_and_leaves_nothing(served, tmp_path, name, content, said):
    body = write_tar(tmp_path / "b", member(name, content)).read_bytes()
    reply = served.http.post("/upload", content=body)
    assert reply.status_code == 400
    assert said in reply.json()["error"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"name": (None, "bad")}, "no file part model"),
        ({"name": (None, "../bad"), "model": ("m", b"\x08\x07")}, "cannot be a model's name"),
        ({"name": (None, "bad"), "model": ("m", b"\x0a\x07")}, "frozen TensorFlow graph"),
        ({"model": ("m", b"\x08\x07")}, "names no model"),
        ({"name": (None, "bad"), "model": ("m", b"\x08\x07"), "params": ("p", b"{")}, "not JSON"),
        (
            {"name": (None, "bad"), "model": ("m", b"\x08\x07"), "params": ("p", b'{"name": "b"}')},
            "its params b",
        ),
    ],
)
def test_a_form_that_cannot_be_served_is_refused_and_leaves_nothing(served, files, said):
    reply = served.http.post("/upload", files=files)
    assert reply.status_code == 400
    assert said in reply.json()["error"]


def test_a_form_that_is_no_form_is_refused(served):
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    reply = served.http.post("/upload", content=b"no form", headers=kind)
    assert (reply.status_code, list(reply.json())) == (400, ["error"])
    reply = served.http.post("/upload", content=b"", headers={"Content-Type": "multipart/form-data"})
    assert (reply.status_code, list(reply.json())) == (400, ["error"])
    encoded = {"Content-Encoding": "base64"}
    reply = served.http.post(
        "/upload", files={"model": ("m", b"\x08!!"), "name": (None, "b")}, headers=encoded
    )
    assert "not base64" in reply.json()["error"]


def test_a_bundle_that_unpacks_to_more_than_the_limit_is_refused(served):
    body = gzip.compress(bytes(80 << 20), compresslevel=1)
    reply = served.http.post("/upload", content=body)
    assert reply.status_code == 413
    assert "once unpacked" in reply.json()["error"]


def test_predictions_go_on_while_a_model_is_uploaded(served, tmp_path):
    body = bundle(tmp_path, "slow").read_bytes()
    served.json({"model": "toy", "values": ROW})
    codes, done = [], threading.Event()

    def ask():
        while not done.is_set():
            codes.append(served.json({"model": "toy", "values": ROW}).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    before = len(codes)
    try:
        served.http.post("/upload", content=body).raise_for_status()
        during = len(codes) - before
        served.http.delete("/delete/slow").raise_for_status()
    finally:
        done.set()
        asking.join()
    assert set(codes) == {200}
    assert during > 0
