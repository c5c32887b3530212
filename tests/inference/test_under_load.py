"""Many callers at once, however their bytes come, and processes that die or are replaced under them."""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
import time
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest

from mlaas_ray.repository import Repository
from tests.serving import SPEC, WIDTH, expected, free_port, start_serving

CALLERS = 200


def head(length: int | None, *more: str) -> bytes:
    lines = ["POST /json HTTP/1.1", "Host: x", "Content-Type: application/json", *more]
    lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def body(row: np.ndarray, model: str, dice: random.Random) -> bytes:
    """A row as programs send it: with its keys in any order, or without, NaN as null or left out."""
    values = [None if np.isnan(value) else float(value) for value in row]
    if dice.random() < 0.5:
        return json.dumps({"model": model, "values": values}).encode()
    named = [(key, value) for key, value in zip(SPEC.columns, values, strict=True) if value is not None]
    dice.shuffle(named)
    keys, given = zip(*named, strict=True)
    return json.dumps({"keys": keys, "values": given, "model": model}).encode()


async def replies(reader: asyncio.StreamReader, count: int) -> list[list[float]]:
    found = []
    for _ in range(count):
        start = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        assert start.startswith(b"HTTP/1.1 200 "), start
        lengths = [line for line in start.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        assert len(lengths) == 1, start
        found.append(json.loads(await reader.readexactly(int(lengths[0].split(b":")[1]))))
    return found


async def ask(writer: asyncio.StreamWriter, reader: asyncio.StreamReader, bodies: list[bytes], way: str):
    """Send some requests one of several ways, and return the answers in their order."""
    if way == "pipelined":
        writer.write(b"".join(head(len(one)) + one for one in bodies))
        return await replies(reader, len(bodies))
    answers = []
    for one in bodies:
        if way == "chunked":
            cut = len(one) // 3
            writer.write(head(None))
            for part in (one[:cut], one[cut:]):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        elif way == "whole":
            writer.write(head(len(one)) + one)
        else:
            request = head(len(one)) + one
            size = 1 if way == "bytes" else 1 + len(request) // 4
            for start in range(0, len(request), size):
                writer.write(request[start : start + size])
                await asyncio.sleep(0)
        answers += await replies(reader, 1)
    return answers


async def caller(place, rows: np.ndarray, number: int, found: np.ndarray, models: list[str]) -> None:
    """Send every 200th row, some together, on one connection."""
    dice = random.Random(number)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    # nothing is to wait for more to come
    mine = list(range(number, len(rows), CALLERS))
    while mine:
        now = [mine.pop() for _ in range(min(len(mine), dice.choice([1, 1, 1, 5])))]
        ways = ["pipelined"] if len(now) > 1 else ["whole"] * 6 + ["split", "split", "chunked"]
        if dice.random() < 0.01:
            ways = ["bytes"]
        bodies = [body(rows[position], dice.choice(models), dice) for position in now]
        for position, answer in zip(now, await ask(writer, reader, bodies, dice.choice(ways)), strict=True):
            found[position] = answer[0]
    writer.close()
    await writer.wait_closed()


def distinct_rows(count: int) -> np.ndarray:
    rows = np.random.default_rng(7).normal(size=(count, WIDTH)).astype(np.float32)
    rows[np.random.default_rng(8).random(rows.shape) < 0.1] = np.nan
    rows[:, 0] = np.arange(count) % 1000
    return rows


def test_each_of_20000_rows_of_200_callers_gets_its_own_answer_however_its_bytes_come(served):
    rows = distinct_rows(20_000)
    found = np.full(len(rows), np.nan)
    place = urlsplit(served.url)

    async def everybody() -> None:
        callers = (caller(place, rows, number, found, ["toy", "toytf"]) for number in range(CALLERS))
        await asyncio.gather(*callers)

    asyncio.run(everybody())
    np.testing.assert_allclose(found, expected(rows)[:, 0], rtol=1e-5, atol=1e-5)
    assert served.http.get("/status").json()["path"] == "coalesced"


@pytest.fixture
def bench():
    """Starts a load with the answers checked."""
    asking = []

    def start(url: str, seconds: float, *options: str) -> subprocess.Popen[str]:
        asking.append(_bench(url, seconds, *options))
        return asking[-1]

    yield start
    for process in asking:
        process.kill()
        process.wait()
        process.stdout.close()


def _bench(url: str, seconds: float, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlaas_ray.cli.main", "bench", "--url", url, "--json", "--check"]
    command += ["--concurrency", "50", "--warmup", "0", "--seconds", str(seconds), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def report(process: subprocess.Popen[str]) -> dict:
    said, _ = process.communicate(timeout=900)
    return json.loads(said)


def replicas(pid: int, kind: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if f"ServeReplica:mlaas:{kind}" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def service(onnx_package, tmp_path):
    """Starts services of ``toy`` with options of their own, and stops them."""
    repository = Repository(tmp_path / "models")
    repository.publish(onnx_package)
    running = []

    def start(*options: str) -> tuple[str, int]:
        process, ready = start_serving(repository.root, free_port(), *options)
        running.append(process)
        return ready["url"], ready["pid"]

    yield start
    for process in running:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()


@pytest.mark.soak
@pytest.mark.parametrize("where", ["auto", "replicas"])
def test_no_caller_notices_that_replicas_and_gateways_are_killed(service, bench, where):
    url, pid = service("--replicas", "2", "--gateways", "2", "--predict-in", where)
    asking = bench(url, 60)
    time.sleep(3)
    counted = httpx.get(f"{url}/metrics", trust_env=False).text
    assert len(re.findall(r"^mlaas_calls_total\{", counted, re.MULTILINE)) == 2
    for number in range(10):
        found = replicas(pid, ("ModelReplica", "Gateway")[number % 2])
        # one that is being replaced still is no reason to take the last one too
        if len(found) == 2:
            found[number % 4 // 2].kill()
        time.sleep(5)
    said = report(asking)
    assert said["check"]["wrong"] == 0
    assert sum(said["errors"].values()) <= said["requests"] / 1000, said["errors"]
    assert said["requests"] > 10_000


@pytest.mark.soak
def test_gateways_follow_the_load_up_and_down_and_nobody_is_refused_for_it(service, bench):
    url, pid = service("--gateways", "1:3")
    assert len(replicas(pid, "Gateway")) == 1
    asking = bench(url, 30, "--concurrency", "200")
    start = time.monotonic()
    while len(replicas(pid, "Gateway")) < 2:
        assert time.monotonic() - start < 15
        time.sleep(0.2)
    said = report(asking)
    assert said["errors"] == {}
    assert said["check"]["wrong"] == 0
    deadline = time.monotonic() + 60
    while len(replicas(pid, "Gateway")) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert httpx.get(f"{url}/health", trust_env=False).status_code == 200


@pytest.mark.slow
def test_a_model_has_replicas_of_its_own_from_none_to_some_and_back(service):
    url, _ = service()
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
        wish = {"replicas": "0:2"}
        http.put("/deployments/toy", json=wish).raise_for_status()
        [listed] = http.get("/deployments").json()
        assert listed["wanted"]["replicas"] == {"fewest": 0, "most": 2}
        deadline = time.monotonic() + 90
        while http.get("/deployments").json()[0]["replicas"]:  # nobody asks
            assert time.monotonic() < deadline
            time.sleep(0.5)
        row = {"values": [100, 0, 0, 0, 0]}
        reply = http.post("/json", json=row)
        assert reply.json() == pytest.approx([1.0]), reply.text
        assert http.get("/deployments").json()[0]["replicas"] == 1
        assert http.delete("/deployments/toy").json() == {"withdrawn": "toy"}
        assert http.post("/json", json=row).json() == pytest.approx([1.0])
        assert http.delete("/deployments/toy").status_code == 404
        assert http.put("/deployments/none", json={}).status_code == 404
        assert http.put("/deployments/toy", json={"replicas": "4:2"}).status_code == 400


@pytest.mark.soak
def test_replicas_of_a_models_own_are_there_again_after_a_restart(onnx_package, tmp_path):
    repository = Repository(tmp_path / "models")
    repository.publish(onnx_package)
    for begun in range(2):
        process, ready = start_serving(repository.root, free_port())
        with httpx.Client(base_url=ready["url"], timeout=120, trust_env=False) as http:
            if not begun:
                http.put("/deployments/toy", json={"replicas": 1}).raise_for_status()
            deadline = time.monotonic() + 60
            while [listed["replicas"] for listed in http.get("/deployments").json()] != [1]:
                assert time.monotonic() < deadline
                time.sleep(0.5)
            reply = http.post("/json", json={"values": [100, 0, 0, 0, 0]})
            assert reply.json() == pytest.approx([1.0]), reply.text
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()
