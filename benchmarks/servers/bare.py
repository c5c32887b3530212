"""What serving costs without Ray: uvicorn, Starlette, the same runtime and micro-batcher, in one process.

``python bare.py --model PACKAGE --port N`` prints a line when it answers TFaaS's ``/json``.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import uvicorn
from announcing import Announcing
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlaas_ray.core.package import ModelPackage
from mlaas_ray.inference.batcher import Batcher, Group, Lane
from mlaas_ray.inference.runtimes import load_runtime, predict


def batched(run: Callable[[np.ndarray], np.ndarray]) -> Callable[[list[float]], Awaitable[list[float]]]:
    """Return what predicts one row, through the service's own micro-batcher and one thread.

    Args:
        run: Predicts ``(rows, columns)`` float32.
    """
    thread = ThreadPoolExecutor(1)

    async def dispatch(_lane: Hashable, groups: list[Group[str]], _waited_s: float) -> list[np.ndarray]:
        loop = asyncio.get_running_loop()
        return [await loop.run_in_executor(thread, run, group.rows) for group in groups]

    batcher: Batcher[str] = Batcher(dispatch)
    lane = Lane("all")

    async def ask(values: list[float]) -> list[float]:
        answers = await batcher.predict(lane, "the one", np.array([values], dtype=np.float32))
        return answers[0].tolist()

    return ask


def build_app(package: ModelPackage) -> Starlette:
    """Return the application: one route for one model."""
    runtime = load_runtime(package)
    assert package.features is not None
    columns = list(package.features.columns)
    ask = batched(lambda rows: predict(runtime, rows))

    async def answer(request: Request) -> Response:
        query = orjson.loads(await request.body())
        keys, values = query["keys"], query["values"]
        if len(keys) != len(values) or len(keys) != len(columns):
            return Response(b'{"error": "one value for each column, please"}', 400)
        if keys != columns:
            event = dict(zip(keys, values, strict=True))
            values = [event[name] for name in columns]
        return Response(orjson.dumps(await ask(values)), media_type="application/json")

    return Starlette(routes=[Route("/json", answer, methods=["POST"])])


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    app = build_app(ModelPackage(options.model))
    settings = uvicorn.Config(
        app,
        port=options.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
    Announcing(settings).run()


if __name__ == "__main__":
    main()
