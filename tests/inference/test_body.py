"""Bodies that come compressed."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from tests.inference.face import Face
from tests.serving import WIDTH, expected

ROWS = np.arange(10 * WIDTH, dtype=np.float32).reshape(10, WIDTH)
GZIP = {"Content-Encoding": "gzip"}
# of tests/inference/face.py
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def face(tmp_path_factory, onnx_package) -> Face:
    return Face(tmp_path_factory.mktemp("face"), onnx_package)


def document(**more) -> bytes:
    return json.dumps({"model": "toy", "values": ROWS.tolist()} | more).encode()


def pieces(data: bytes, size: int):
    async def parts():
        for start in range(0, len(data), size):
            yield data[start : start + size]

    return parts()


@pytest.mark.parametrize("path", ["/json", "/models/toy/predict"])
@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "identity"])
def test_a_compressed_body_is_unpacked(face, path, encoding):
    body = document() if encoding == "identity" else gzip.compress(document())
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    reply = face.post(path, content=body, headers=headers)
    assert reply.status_code == 200, reply.text
    np.testing.assert_allclose(reply.json(), expected(ROWS), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("members", [1, 3])
def test_it_may_come_in_pieces_and_in_several_gzip_members(face, size, members):
    plain = document()
    step = len(plain) // members + 1
    body = b"".join(gzip.compress(plain[start : start + step]) for start in range(0, len(plain), step))
    reply = face.post("/json", content=pieces(body, size), headers=GZIP)
    np.testing.assert_allclose(reply.json(), expected(ROWS), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_fills_pieces_to_the_byte_comes_out_whole(face, count):
    plain = document(more="")
    plain = document(more="x" * (count * (1 << 18) - len(plain)))
    assert len(plain) == count * (1 << 18)
    reply = face.post("/json", content=gzip.compress(plain), headers=GZIP)
    np.testing.assert_allclose(reply.json(), expected(ROWS), rtol=1e-6)


def test_a_body_of_no_more_than_the_limit_passes_and_a_bomb_does_not(face):
    plain = document(more="")
    fits = document(more="x" * (LIMIT - len(plain)))
    assert face.post("/json", content=gzip.compress(fits), headers=GZIP).status_code == 200
    for bomb in (gzip.compress(fits + b" "), gzip.compress(bytes(1 << 28), 9)):
        assert len(bomb) < LIMIT
        reply = face.post("/json", content=bomb, headers=GZIP)
        assert (reply.status_code, list(reply.json())) == (413, ["error"])
        assert f"more than {LIMIT} bytes once unpacked" in reply.json()["error"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "end too early"),
        (gzip.compress(document())[:-5], "end too early"),
        (document(), "no gzip data"),
        (gzip.compress(document()) + b"more", "no gzip data"),
        (gzip.compress(document())[:-8] + bytes(8), "no gzip data"),
    ],
)
def test_a_damaged_one_is_refused(face, body, said):
    reply = face.post("/json", content=body, headers=GZIP)
    assert reply.status_code == 400
    assert said in reply.json()["error"]


@pytest.mark.parametrize("encoding", ["deflate", "br", "zstd", "base64", "gzip, gzip", "gzip, br", "x"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/json"), ("POST", "/upload"), ("DELETE", "/delete")])
def test_another_encoding_is_not_read(face, method, path, encoding):
    reply = face.request(method, path, content=b"x", headers={"Content-Encoding": encoding})
    assert reply.status_code == 415
    assert f"Content-Encoding '{encoding}' is not read" in reply.json()["error"]
    assert "gzip" in reply.json()["error"]
