"""What a prediction costs over HTTP: the service, and what else one would answer with, driven by ``hey``.

Each answers JSON of one row of 42 values with the same network (42x128x128x128x64x64x1x1):

- ours: ``mlaas serve``, as a user starts it;
- bare: uvicorn and Starlette, the same runtime behind a micro-batcher in one process, no Ray: the bound;
- naive: FastAPI, one TensorFlow call a request: what one writes first;
- triton: the server in PyPI's nvidia-pytriton 0.7.0, python backend, dynamic batching, its own JSON.

Servers and the load generator share the machine's cores. In each round every server is started, checked
(replies to 64 distinct rows asked at once, against numpy), warmed up, timed and stopped before the next is
started: a Ray that idles beside the others would take a tenth of a core from them. The rounds interleave the
servers, so that a disturbance of the machine meets all of them, and the medians are of all rounds.

``cpu_us`` is the CPU time of the server's whole process tree for each reply, ``load_cpu_us`` that of ``hey``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "servers"))

import httpx
import load
import model
import numpy as np
import triton
from rich.console import Console
from rich.table import Table

from mlaas_ray.core.package import MODEL_PATHS, ModelPackage
from mlaas_ray.inference.environment import free_ports
from mlaas_ray.repository import Repository

TOLERANCE = 1e-5
FIGURES = ("req_s", "p50_ms", "p99_ms", "cpu_us", "errors", "load_cpu_us")

Numbers = dict[str, float]


@dataclass(frozen=True)
class Server:
    """One of those compared.

    Attributes:
        command: Starts it, but for ``--port``.
        path: Where it predicts.
        body: Writes a row as it wants it.
        answer: Finds the prediction in its reply.
    """

    command: list[str]
    path: str
    body: Callable[[np.ndarray], bytes]
    answer: Callable[[Any], float]


def tfaas_body(row: np.ndarray, name: str = model.NAME) -> bytes:
    """Return a row as TFaaS's clients send it."""
    return json.dumps({"model": name, "keys": model.COLUMNS, "values": row.tolist()}).encode()


def triton_body(row: np.ndarray) -> bytes:
    """Return a row as Triton wants it."""
    tensor = {"name": "x", "shape": [1, len(row)], "datatype": "FP32", "data": row.tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def serve_command(repository: Path, further: str) -> list[str]:
    """Return the command of a user who wants a service."""
    command = [sys.executable, "-m", "mlaas_ray.cli.main", "serve", "--json", "--repository", str(repository)]
    return [*command, *shlex.split(further)]


def servers(package: Path, repository: Path, options: argparse.Namespace) -> dict[str, Server | str]:
    """Return the servers, or why one cannot be measured here."""

    def program(name: str, *further: str) -> list[str]:
        return [sys.executable, str(load.HERE / f"{name}.py"), "--model", str(package), *further]

    def tfaas(command: list[str]) -> Server:
        return Server(command, "/json", tfaas_body, lambda reply: reply[0])

    every: dict[str, Server | str] = {
        "ours": tfaas(serve_command(repository, options.serve_options)),
        "bare": tfaas(program("bare")),
        "naive": tfaas(program("naive")),
    }
    if options.format != "savedmodel":
        every["naive"] = f"it calls TensorFlow, and the model is in the format {options.format}"
    try:
        found = triton.find_server(options.triton)
    except FileNotFoundError as error:
        every["triton"] = str(error)
    else:
        command = program("triton", "--triton", str(found))
        path = f"/v2/models/{triton.NAME}/infer"
        every["triton"] = Server(command, path, triton_body, lambda reply: reply["outputs"][0]["data"][0])
    return {name: every[name] for name in options.only}


def check(server: Server, url: str, expected: Path) -> None:
    """Ask for distinct rows at once, and compare the replies with numpy's answers.

    Raises:
        LoadError: When one differs.
    """
    with np.load(expected) as known:
        x, answers = known["x"], known["answers"][:, 0]
    headers = {"Content-Type": "application/json"}
    with (
        httpx.Client(timeout=60, trust_env=False, headers=headers) as http,
        ThreadPoolExecutor(16) as threads,
    ):
        replies = list(threads.map(lambda row: http.post(url, content=server.body(row)), x))
    bad = next((reply for reply in replies if reply.status_code != 200), None)
    if bad is not None:
        raise load.LoadError(f"{url} answered {bad.status_code}: {bad.text[:300]}")
    largest = float(np.abs(np.array([server.answer(reply.json()) for reply in replies]) - answers).max())
    if not largest <= TOLERANCE:
        raise load.LoadError(f"{url} answers {largest:g} beside the model")


def once(server: Server, folder: Path, callers: int, seconds: float) -> Numbers:
    """Start a server, check it, time it, and stop it."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}{server.path}"
    body = folder / "body.json"
    body.write_bytes(server.body(model.rows(1, seed=2)[0]))
    with load.running([*server.command, "--port", str(port)], folder) as process:
        check(server, url, folder / "answers.npz")
        load.ask(url, body, process, callers=callers, seconds=min(2, seconds))
        return load.ask(url, body, process, callers=callers, seconds=seconds).figures()


def median(runs: list[Numbers]) -> Numbers:
    """Return the median of each figure, and the errors of all runs."""
    result = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return result | {"errors": sum(run["errors"] for run in runs)}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all servers in turn, and return medians and their ratios."""
    with tempfile.TemporaryDirectory(prefix="mlaas-bench-") as name:
        folder = Path(name)
        package = load.build_model(folder / "built", "--format", options.format)
        (folder / "built" / "answers.npz").rename(folder / "answers.npz")
        repository = folder / "models"
        Repository(repository).publish(ModelPackage(package))
        every = servers(package, repository, options)
        runs: dict[str, list[Numbers]] = {}
        for number in range(options.rounds):
            for which, server in every.items():
                if isinstance(server, str):
                    continue
                result = once(server, folder, options.callers, options.seconds)
                runs.setdefault(which, []).append(result)
                print(f"{number + 1}/{options.rounds} {which}: {rounded(result)}", file=sys.stderr)
    result = {
        which: {"skipped": server} if isinstance(server, str) else median(runs[which])
        for which, server in every.items()
    }
    for other in ("bare", "naive", "triton"):
        if "ours" in runs and other in runs:
            result[f"ours_over_{other}"] = result["ours"]["req_s"] / result[other]["req_s"]
            result[f"cpu_ours_over_{other}"] = result["ours"]["cpu_us"] / result[other]["cpu_us"]
    return result


def rounded(numbers: Numbers) -> Numbers:
    """Return figures as one reads them."""
    return {name: round(value, 1) for name, value in numbers.items()}


def show(result: dict[str, Any]) -> None:
    """Print the medians as a table."""
    table = Table("", "req/s", "p50 ms", "p99 ms", "CPU us/request", "errors", "hey: CPU us/request")
    for which, numbers in result.items():
        if not isinstance(numbers, dict):
            continue
        if "skipped" in numbers:
            print(f"{which} skipped: {numbers['skipped']}")
            continue
        table.add_row(which, *(f"{numbers[name]:,.0f}" for name in FIGURES))
    Console().print(table)
    for name, value in result.items():
        if not isinstance(value, dict):
            print(f"{name}: {value:.3f}")


def arguments(description: str, *, rounds: int = 5, callers: int = 200) -> argparse.ArgumentParser:
    """Return what ``serving_load.py`` takes, too."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="medians of so many")
    parser.add_argument("--seconds", type=float, default=4, help="that each is asked for, in each round")
    parser.add_argument("--callers", type=int, default=callers, help="requests under way at once")
    parser.add_argument("--format", choices=MODEL_PATHS, default="savedmodel", help="of the model")
    parser.add_argument("--serve-options", default="", help='further ones of mlaas serve: "--replicas 2"')
    parser.add_argument("--json", action="store_true")
    return parser


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=["ours", "bare", "naive", "triton"]
    )
    parser.add_argument("--triton", type=Path, help="virtual environment with nvidia-pytriton")
    options = parser.parse_args()
    unknown = set(options.only) - {"ours", "bare", "naive", "triton"}
    if unknown:
        parser.error(f"no server {min(unknown)}: there are ours, bare, naive, triton")
    if shutil.which("hey") is None:
        print(f"skipped: {load.INSTALL}", file=sys.stderr)
        return
    try:
        result = compare(options)
    except load.LoadError as error:
        sys.exit(str(error))
    print(json.dumps(result)) if options.json else show(result)


if __name__ == "__main__":
    main()
