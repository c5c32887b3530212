"""Requests that a page of another site has a browser send."""

from __future__ import annotations

import socket

import pytest

from mlaas_ray.inference.catalog import Catalog
from mlaas_ray.inference.http import HttpFace
from mlaas_ray.inference.settings import ServiceSettings
from mlaas_ray.inference.status import Status
from tests.inference.face import Face
from tests.serving import WIDTH

HOST = "127.0.0.1:8083"
EVIL = "http://evil.example:8083"
CHANGES = [
    ("POST", "/upload"),
    ("DELETE", "/delete"),
    ("DELETE", "/delete/toy"),
    ("PUT", "/deployments/toy"),
    ("DELETE", "/deployments/toy"),
]


@pytest.fixture
def face(tmp_path, onnx_package) -> Face:
    return Face(tmp_path, onnx_package)


def allowing(face: Face, *names: str) -> Face:
    settings = ServiceSettings(repository=face.backend.catalog.repository.root, allowed_hosts=names)
    catalog = Catalog(face.backend.catalog.repository)
    face.app = HttpFace(settings, catalog, face.backend, Status()).app()
    return face


def delete(face: Face, host: str, **marks: str) -> int:
    headers = {"Host": host} | {name.replace("_", "-"): value for name, value in marks.items()}
    return face.request("DELETE", "/delete/none", headers=headers).status_code


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize(
    ("host", "marks"),
    [
        (HOST, {"Origin": EVIL}),
        (HOST, {"Origin": "null"}),
        (HOST, {"Origin": ""}),
        (HOST, {"Origin": "http://127.0.0.1:3000"}),
        (HOST, {"Origin": "http://127.0.0.1"}),
        (HOST, {"Origin": "http://127.0.0.1:8083.evil.example"}),
        (HOST, {"Origin": "http://127.0.0.1:port"}),
        (HOST, {"Sec-Fetch-Site": "cross-site"}),
        (HOST, {"Sec-Fetch-Site": "same-site"}),
        # its name was made to stand for 127.0.0.1
        ("evil.example:8083", {"Origin": EVIL}),
        ("evil.example:8083", {"Sec-Fetch-Site": "same-origin"}),
        ("127.0.0.1.evil.example", {"Origin": "http://127.0.0.1.evil.example"}),
        ("notlocalhost", {"Origin": "http://notlocalhost"}),
        ("", {"Origin": "http://"}),
        ("evil.example:8083", {}),
    ],
)
def test_nothing_is_changed_for_the_page_of_another_site(face, method, path, host, marks):
    reply = face.request(method, path, headers={"Host": host, **marks})
    assert reply.status_code == 403, reply.text
    assert list(reply.json()) == ["error"]
    assert "--allow-host NAME" in reply.json()["error"]
    # what is still to come of an upload is not read
    assert reply.headers["connection"] == "close"
    assert face.backend.catalog.repository.names() == ["bare", "toy"]


@pytest.mark.parametrize("marks", [{}, {"sec_fetch_mode": "cors"}])  # Node's fetch, a program
def test_a_program_sends_no_marks(face, marks):
    assert delete(face, HOST, **marks) == 404


@pytest.mark.parametrize("host", ["mlaas.physics.svc.cluster.local", "evil.example:8083", ""])
def test_a_program_may_know_the_service_by_any_name_but_to_change_something(face, host):
    row = {"model": "toy", "values": [1.0] * WIDTH}
    assert face.post("/json", json=row, headers={"Host": host}).status_code == 200
    assert delete(face, host) == 403
    if host:
        allowing(face, host.partition(":")[0])
        assert delete(face, host) == 404


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (HOST, f"http://{HOST}"),
        ("localhost:8083", "http://localhost:8083"),
        ("LOCALHOST:8083", "http://localhost:8083"),
        ("[::1]:8083", "http://[::1]:8083"),
        ("137.138.4.5", "http://137.138.4.5"),
        ("137.138.4.5:443", "https://137.138.4.5"),
        (f"{socket.gethostname()}:8083", f"http://{socket.gethostname().lower()}:8083"),
    ],
)
def test_a_page_of_the_service_itself_may_change_something(face, host, origin):
    assert delete(face, host, origin=origin) == 404
    assert delete(face, host, sec_fetch_site="same-origin") == 404


def test_a_name_of_the_settings_is_one_of_the_service(face):
    name = "ml.example.org"
    assert delete(face, name, origin=f"https://{name}") == 403
    allowing(face, "other.example.org", "ML.example.org")
    assert delete(face, name, origin=f"https://{name}") == 404
    # a proxy that puts its own idea of the host in place of the browser's
    assert delete(face, HOST, origin=f"https://{name}") == 404
    assert delete(face, HOST, origin="https://example.org") == 403
    assert delete(face, name, origin=EVIL) == 403


@pytest.mark.parametrize("path", ["/json", "/predict/json"])
def test_a_prediction_is_for_other_pages_too_unless_they_could_read_it(face, path):
    row = {"model": "toy", "values": [1.0] * WIDTH}
    reply = face.post(path, json=row, headers={"Host": HOST, "Origin": EVIL})
    assert reply.status_code == 200
    # without this the browser does not show it to the page
    assert "access-control-allow-origin" not in reply.headers
    reply = face.post(path, json=row, headers={"Host": "evil.example:8083", "Origin": EVIL})
    assert reply.status_code == 403


def test_looking_something_up_changes_nothing(face):
    reply = face.request("GET", "/models", headers={"Host": HOST, "Sec-Fetch-Site": "cross-site"})
    assert reply.status_code == 200
