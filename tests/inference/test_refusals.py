"""What a client is told when the service's machine is in trouble, and what it is never told."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest

from mlaas_ray.core.errors import ModelError, PackageError, RepositoryError
from mlaas_ray.inference.inspection import inspect_model
from mlaas_ray.inference.private import hide, without_paths
from tests.inference.face import Answering, Face
from tests.serving import WIDTH, write_onnx

ROW = {"model": "toy", "values": [1.0] * WIDTH}


class Inspecting(Answering):
    inspect = staticmethod(inspect_model)  # type: ignore[assignment]
    deployments = property(lambda self: self)  # type: ignore[assignment]

    async def withdraw(self, name: str) -> None:
        return None


@pytest.fixture
def face(tmp_path, onnx_package) -> Face:
    return faced(tmp_path, onnx_package)


def faced(folder: Path, package) -> Face:
    made = Face(folder, package)
    made.backend.__class__ = Inspecting
    return made


@pytest.fixture
def upload(tmp_path):
    content = write_onnx(tmp_path / "up.onnx").read_bytes()

    def send(face: Face, more: bytes = b""):
        # what follows the model makes it as large as is wanted: an unknown field of protobuf, 127
        padding = b"\xfa\x07" + _varint(len(more)) + more if more else b""
        return face.post("/upload", files={"name": (None, "up"), "model": ("m.onnx", content + padding)})

    return send


def _varint(number: int) -> bytes:
    data = b""
    while number > 127:
        data += bytes([number & 127 | 128])
        number >>= 7
    return data + bytes([number])


def fill_up(disk: Path, but: int) -> None:
    (disk / "junk").write_bytes(bytes(shutil.disk_usage(disk).free - but))


def said(reply, *folders: Path) -> str:
    """The error of a reply that names none of these folders."""
    assert list(reply.json()) == ["error"]
    for folder in (*folders, Path(tempfile.gettempdir())):
        assert str(folder) not in reply.text
    return reply.json()["error"]


def test_a_full_repository_is_507_and_predictions_and_deletes_go_on(small_disk, onnx_package, upload):
    face = faced(small_disk, onnx_package)
    fill_up(small_disk, 200_000)
    reply = upload(face, bytes(1_000_000))
    assert reply.status_code == 507, reply.text
    wanted = "cannot write to the repository: No space left on device. Free some space, or delete"
    assert wanted in said(reply, small_disk)
    assert face.post("/json", json=ROW).status_code == 200
    assert face.request("DELETE", "/delete/bare").status_code == 200
    assert upload(face).json() == {"name": "up", "version": 1}
    names = os.listdir(face.backend.catalog.repository.root)
    assert not [name for name in names if name.startswith((".draft", ".incoming"))]


def test_no_room_for_what_is_uploaded_is_507(small_disk, face, upload, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    fill_up(small_disk, 2_000_000)
    for send in (
        partial(upload, more=bytes(3_000_000)),
        partial(Face.post, path="/upload", content=bytes(3_000_000)),
    ):
        reply = send(face)
        assert reply.status_code == 507, reply.text
        assert "No space left on device" in said(reply, small_disk)
    assert os.listdir(small_disk) == ["junk"]


def test_a_read_only_repository_is_named_as_such(small_disk, onnx_package, upload):
    face = faced(small_disk, onnx_package)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for reply in (upload(face), face.request("DELETE", "/delete/toy")):
        assert reply.status_code == 500
        assert "cannot write to the repository: Read-only file system. Mount it" in said(reply, small_disk)
    assert face.post("/json", json=ROW).status_code == 200


def test_a_repository_that_is_a_link_to_nothing_is_named_as_such(face, upload):
    root = face.backend.catalog.repository.root
    shutil.rmtree(root)
    root.symlink_to(root.with_name("gone"))
    reply = upload(face)
    assert reply.status_code == 500
    assert "the repository is a link that leads nowhere" in said(reply, root)


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EROFS, 500), (errno.EACCES, 500), (errno.EMFILE, 503)],
)
def test_what_the_machine_refuses_is_told_by_its_cause(face, number, status):
    face.backend.error = OSError(number, os.strerror(number), "/data/secret/file")
    reply = face.post("/json", json=ROW)
    assert reply.status_code == status
    assert os.strerror(number) in said(reply)
    assert ("retry-after" in reply.headers) == (status == 503)
    assert "secret" not in reply.text


def test_an_error_names_no_path_of_the_machine(face):
    root = face.backend.catalog.repository.root
    home, installed = Path.home(), sys.prefix
    for text, shown in [
        (f"{root}/toy/1: model.onnx is missing", "toy/1: model.onnx is missing"),
        (f"cannot write to the repository {root}: full", "cannot write to the repository: full"),
        (f"no model 'x' in {root}", "no model 'x' in the repository"),
        (f"{root}/.draft-1/content/up/model.onnx is damaged", "content/up/model.onnx is damaged"),
        (f"{root}/.draft-1/content/.incoming-2: package schema 2", "the model: package schema 2"),
        (f"Load of {root.resolve()}/toy/1/model.onnx failed", "Load of toy/1/model.onnx failed"),
        ("/tmp/mlaas-upload-1/content/bundle-2: package schema 2", "the model: package schema 2"),
        ("of /tmp/mlaas-upload-1/content/model.onnx.", "of model.onnx."),
        (f'File "{installed}/lib/site.py", line 3', 'File "site.py", line 3'),
        (f"in {home}/.cache/x/frozen.pb", "in frozen.pb"),
        ("DELETE /delete/NAME, 3/4, /modelsx, a/tmp/b", "DELETE /delete/NAME, 3/4, /modelsx, a/tmp/b"),
    ]:
        assert without_paths(text) == shown
        face.backend.error = PackageError(text, "Mend it")
        assert face.post("/json", json=ROW).json() == {"error": f"{shown.removesuffix('.')}. Mend it."}


def test_descriptions_name_no_path_of_the_machine(face, monkeypatch):
    root = face.backend.catalog.repository.root
    face.backend.failed = {2: f"{root}/toy/2: model.onnx was changed after it was written."}
    reason = f"{Path.home()}/.cache/mlaas/frozen.pb: no such file"
    monkeypatch.setattr(
        Answering, "facts", lambda *_: {"candidates": [{"name": "frozen", "reason": reason}], "threads": 1}
    )
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "1" / "package.json").write_text("{")
    (root / "later" / "1").mkdir(parents=True)
    (root / "later" / "1" / "package.json").write_text('{"schema_version": 2}')
    for path in ("/models", "/params/toy", "/params/broken", "/params/later", "/params/none"):
        reply = face.get(path)
        assert str(root) not in reply.text
        assert str(Path.home()) not in reply.text
    toy = face.get("/params/toy").json()
    assert toy["failed"] == {"2": "toy/2: model.onnx was changed after it was written."}
    assert toy["runtime"] == {
        "candidates": [{"name": "frozen", "reason": "frozen.pb: no such file"}],
        "threads": 1,
    }


def test_a_client_own_words_come_back_as_they_were(face):
    reply = face.post("/json", content=json.dumps({"model": "/etc/passwd", "values": [1]}))
    assert "'/etc/passwd' cannot be a model's name" in reply.json()["error"]


def test_a_repository_at_the_root_of_the_disk_hides_nothing_else():
    hide(Path("/"))
    assert without_paths("send /json, see /models") == "send /json, see /models"


@pytest.mark.parametrize("kind", [RepositoryError, ModelError])
def test_errors_that_are_not_the_clients_are_in_the_log(face, kind, caplog):
    face.backend.error = kind("it failed", "Look")
    with caplog.at_level("ERROR", "ray.serve"):
        status = face.post("/json", json=ROW).status_code
    assert (status, "it failed" in caplog.text) == ((500, True) if kind is RepositoryError else (400, False))
