"""Slow work that does not hold up other work."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import httpx
import numpy as np
import pytest

from mlaas_ray.core.errors import ModelError
from mlaas_ray.inference import http as face_module
from mlaas_ray.inference.busy import BusyError
from mlaas_ray.inference.catalog import Catalog
from mlaas_ray.inference.http import LONG_BYTES
from mlaas_ray.inference.routes import Routes
from mlaas_ray.inference.threads import Threads
from tests.inference.face import Answering, Face
from tests.serving import WIDTH, expected

SLOW_UPLOADS = 8


class Slow(Answering):
    """Examines uploads until it is let, and refuses them then."""

    let: threading.Event
    examined: int

    @property
    def inspect(self):
        def inspect(path, model_format):
            self.examined += 1
            assert self.let.wait(120)
            raise ModelError("it was examined for long")

        return inspect

    @property
    def deployments(self):
        return self

    async def withdraw(self, name):
        return None


@pytest.fixture
def face(tmp_path, onnx_package):
    made = Face(tmp_path, onnx_package)
    made.backend.__class__ = Slow
    made.backend.let, made.backend.examined = threading.Event(), 0
    yield made
    made.backend.let.set()


async def uploads(http, count):
    """Uploads under way; those after the first have their bodies read already."""
    files = {"name": (None, "slow"), "model": ("m", b"\x08\x07 model")}
    tasks = [asyncio.create_task(http.post("/upload", files=files)) for _ in range(count)]
    await asyncio.sleep(0.5)
    return tasks


def test_slow_uploads_hold_up_nothing_else(face):
    async def main():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(face.app), base_url="http://127.0.0.1", timeout=120
        ) as http:
            slow = await uploads(http, SLOW_UPLOADS)
            while not face.backend.examined:
                await asyncio.sleep(0.01)
            rows = np.ones((LONG_BYTES // (4 * WIDTH), WIDTH))
            long = json.dumps({"model": "toy", "values": rows.tolist()})
            assert len(long) > LONG_BYTES
            async with asyncio.timeout(60):
                answers = (await http.post("/json", content=long)).json()
                np.testing.assert_allclose(answers, expected(rows.astype(np.float32)), rtol=1e-5)
                assert len((await http.get("/models")).json()) == 2
                assert (await http.get("/params/toy")).status_code == 200
                assert (await http.request("DELETE", "/delete/bare")).json() == {"deleted": ["bare:1"]}
            assert not any(task.done() for task in slow)
            face.backend.let.set()
            assert {(await task).status_code for task in slow} == {400}
            assert face.backend.examined == SLOW_UPLOADS

    asyncio.run(main())


def test_more_uploads_than_there_is_room_for_are_told_to_come_again(face, monkeypatch):
    monkeypatch.setattr(face_module, "MOST_UPLOADS", 3)

    async def main():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(face.app), base_url="http://127.0.0.1", timeout=120
        ) as http:
            slow = await uploads(http, 3)
            reply = await http.post("/upload", content=b"x")
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
            assert "3 uploads are under way" in reply.json()["error"]
            face.backend.let.set()
            assert {(await task).status_code for task in slow} == {400}
            # there is room again
            assert (await http.post("/upload", content=b"x")).status_code == 400

    asyncio.run(main())


def test_a_version_is_found_while_the_event_loops_own_threads_are_busy(tmp_path, onnx_package):
    async def main():
        catalog = Catalog(Face(tmp_path, onnx_package).backend.catalog.repository)
        routes = Routes(catalog, lambda _entry: asyncio.sleep(0), 10.0)
        let = threading.Event()
        busy = [asyncio.create_task(asyncio.to_thread(let.wait, 120)) for _ in range(64)]
        try:
            async with asyncio.timeout(60):
                assert (await routes.find("toy")).version.version == 1
        finally:
            let.set()
            await asyncio.gather(*busy)

    asyncio.run(main())


def test_work_beyond_what_may_wait_is_refused_and_room_comes_back():
    async def main():
        let = threading.Event()
        threads = Threads("small things", threads=1, most=2)
        first, second = (asyncio.create_task(threads.run(let.wait, 60)) for _ in range(2))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="2 small things are under way"):
            await threads.run(len, "")
        # who goes away leaves its thread busy, and the place of what has not begun
        second.cancel()
        await asyncio.sleep(0.01)
        third = asyncio.create_task(threads.run(len, "abc"))
        let.set()
        assert (await first, await third) == (True, 3)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                assert await threads.run(len, "ab") == 2
                break
            except BusyError:
                await asyncio.sleep(0.01)
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 / 0)

    asyncio.run(main())
