"""What the service does under other loads: many rows a request, many models, a slow model beside a fast one.

- ``--rows 1000 --protocol raw|arrow|npy|json``: rows a second, of requests with so many distinct rows;
- ``--models 100``: requests to so many models in turn (``mlaas bench``), CPU time against requests to one;
- ``--slow``: p99 of the fast model alone, and while four callers keep a model busy that takes 200 ms a batch.

All three without options. Each is measured in a service of its own, checked as in ``serving.py``.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import httpx
import numpy as np
import psutil
import pyarrow as pa
import serving
from serving import load, model

from mlaas_ray.client.load import Load, LoadSettings, draw_rows, json_call
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.inference.environment import free_ports
from mlaas_ray.repository import Repository

TYPES = {
    "raw": "application/octet-stream",
    "arrow": "application/vnd.apache.arrow.stream",
    "npy": "application/x-npy",
    "json": "application/json",
}
SLOW_S, SLOW_CALLERS = 0.2, 4
# Different requests, whichever the models.
DISTINCT = 1000


@contextmanager
def service(folder: Path, packages: dict[str, Path], further: str) -> Iterator[tuple[str, psutil.Process]]:
    """Serve packages under these names; gives the URL and the process."""
    repository = Repository(folder / "models")
    for name, package in packages.items():
        repository.publish(ModelPackage(package), name)
    (port,) = free_ports(1)
    command = [*serving.serve_command(repository.root, further), "--port", str(port)]
    with load.running(command, folder) as process:
        yield f"http://127.0.0.1:{port}", process


def write_rows(rows: np.ndarray, protocol: str) -> bytes:
    """Return a body with many rows."""
    if protocol == "json":
        return json.dumps({"model": model.NAME, "keys": model.COLUMNS, "values": rows.tolist()}).encode()
    if protocol == "raw":
        return rows.astype("<f4").tobytes()
    if protocol == "npy":
        file = io.BytesIO()
        np.save(file, rows)
        return file.getvalue()
    table = pa.table(dict(zip(model.COLUMNS, rows.T, strict=True)))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def read_answers(body: bytes, protocol: str) -> np.ndarray:
    """Return the predictions ``(rows,)`` of a reply."""
    if protocol == "json":
        return np.array(json.loads(body))[:, 0]
    if protocol == "raw":
        return np.frombuffer(body, "<f4")
    if protocol == "npy":
        return np.load(io.BytesIO(body))[:, 0]
    column = pa.ipc.open_stream(body).read_all().column("prediction").combine_chunks()
    return np.asarray(column.flatten() if pa.types.is_nested(column.type) else column)


def many_rows(folder: Path, package: Path, options: argparse.Namespace, protocol: str) -> dict[str, Any]:
    """Ask with many rows at once."""
    rows = model.rows(options.rows, seed=3)
    content, body = write_rows(rows, protocol), folder / "body"
    body.write_bytes(content)
    path = "/json" if protocol == "json" else f"/models/{model.NAME}/predict"
    with service(folder, {model.NAME: package}, options.serve_options) as (url, process):
        # of what asks for an answer in JSON only it gets that; hey sends no Accept
        headers = {"Content-Type": TYPES[protocol], "Accept": "*/*"}
        reply = httpx.post(url + path, content=content, headers=headers, timeout=60, trust_env=False)
        if reply.status_code in (404, 405, 415):
            return {"skipped": f"{path} answers {reply.status_code} to {TYPES[protocol]}"}
        reply.raise_for_status()
        largest = float(np.abs(read_answers(reply.content, protocol) - model.answers(rows)[:, 0]).max())
        if not largest <= serving.TOLERANCE:
            raise load.LoadError(f"{protocol}: the service answers {largest:g} beside the model")
        callers = min(options.callers, 8)
        load.ask(url + path, body, process, callers=callers, seconds=1, content_type=TYPES[protocol])
        runs = []
        for _ in range(options.rounds):
            report = load.ask(
                url + path,
                body,
                process,
                callers=callers,
                seconds=options.seconds,
                content_type=TYPES[protocol],
            )
            figures = report.figures()
            figures["rows_s"] = figures["req_s"] * options.rows
            figures["cpu_us_a_row"] = figures["cpu_us"] / options.rows
            runs.append(figures)
    return serving.median(runs)


def many_models(folder: Path, package: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Ask one model, and all in turn."""
    names = [f"{model.NAME}{number:03d}" for number in range(options.models)]
    runs: dict[str, list[dict[str, float]]] = {"one": [], "all": []}
    with service(folder, dict.fromkeys(names, package), options.serve_options) as (url, process):
        # loads them: none is waited for in what is measured
        bench(url, process, names, options)
        for _ in range(options.rounds):
            runs["one"].append(bench(url, process, names[:1], options))
            runs["all"].append(bench(url, process, names, options))
    result: dict[str, Any] = {which: serving.median(own) for which, own in runs.items()}
    return result | {"cpu_all_over_one": result["all"]["cpu_us"] / result["one"]["cpu_us"]}


def bench(
    url: str, process: psutil.Process, names: list[str], options: argparse.Namespace
) -> dict[str, float]:
    """Ask models in turn as ``mlaas bench`` does: hey asks one URL with one body."""
    calls = [
        json_call(names[number % len(names)], model.COLUMNS, draw_rows(1, len(model.COLUMNS), number))
        for number in range(DISTINCT)
    ]
    settings = LoadSettings(concurrency=options.callers, seconds=options.seconds, warmup=0.0)
    before = load.tree_seconds(process)
    report = Load(url, calls, settings).run()
    used = load.tree_seconds(process) - before
    return {
        "req_s": report.req_s,
        "p50_ms": report.p50_ms,
        "p99_ms": report.p99_ms,
        "cpu_us": used / max(1, report.requests) * 1e6,
        "errors": sum(report.errors.values()),
    }


def beside_slow(folder: Path, package: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Ask the fast model alone, and beside a slow one."""
    slow = load.build_model(folder / "slow", "--slow", str(SLOW_S))
    row = model.rows(1, seed=2)[0]
    bodies = {}
    for name in (model.NAME, model.SLOW):
        bodies[name] = folder / f"{name}.json"
        bodies[name].write_bytes(serving.tfaas_body(row, name))
    runs: dict[str, list[dict[str, float]]] = {"alone": [], "beside": []}
    with service(folder, {model.NAME: package, model.SLOW: slow}, options.serve_options) as (url, process):

        def ask(seconds: float) -> dict[str, float]:
            report = load.ask(
                f"{url}/json", bodies[model.NAME], process, callers=options.callers, seconds=seconds
            )
            return report.figures()

        for name in bodies:
            load.ask(f"{url}/json", bodies[name], process, callers=4, seconds=1)
        for _ in range(options.rounds):
            runs["alone"].append(ask(options.seconds))
            command = load.hey_command(
                f"{url}/json", bodies[model.SLOW], SLOW_CALLERS, options.seconds + 1, TYPES["json"]
            )
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
                beside = ask(options.seconds)
                told = load.Report.parse(other.communicate()[0])
            runs["beside"].append(
                beside | {"slow_p50_ms": told.p50_ms or 0.0, "slow_req_s": told.answered / told.seconds}
            )
    result: dict[str, Any] = {which: serving.median(own) for which, own in runs.items()}
    return result | {"p99_beside_over_alone": result["beside"]["p99_ms"] / result["alone"]["p99_ms"]}


def main() -> None:
    """Measure and print."""
    parser = serving.arguments(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--rows", type=int, help="in each request")
    parser.add_argument("--protocol", choices=TYPES, help="of --rows; all by default")
    parser.add_argument("--models", type=int)
    parser.add_argument("--slow", action="store_true")
    options = parser.parse_args()
    if shutil.which("hey") is None:
        print(f"skipped: {load.INSTALL}", file=sys.stderr)
        return
    everything = not (options.rows or options.protocol or options.models or options.slow)
    if everything or options.protocol:
        options.rows = options.rows or 1000
    if everything:
        options.models, options.slow = 20, True
    try:
        result = measure(options)
    except load.LoadError as error:
        sys.exit(str(error))
    print(json.dumps(result) if options.json else json.dumps(rounded(result), indent=1))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mlaas-bench-") as name:
        package = load.build_model(Path(name, "built"), "--format", options.format)

        def own(which: str) -> Path:
            folder = Path(name, which)
            folder.mkdir()
            return folder

        if options.rows:
            for protocol in [options.protocol] if options.protocol else TYPES:
                result[f"rows_{protocol}"] = many_rows(own(protocol), package, options, protocol)
        if options.models:
            result["models"] = many_models(own("many"), package, options)
        if options.slow:
            result["slow"] = beside_slow(own("beside"), package, options)
    return result


def rounded(result: Any) -> Any:
    """Return figures as one reads them."""
    if isinstance(result, dict):
        return {name: rounded(value) for name, value in result.items()}
    return float(f"{result:.4g}") if isinstance(result, float) else result


if __name__ == "__main__":
    main()
