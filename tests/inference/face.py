"""The HTTP face in the tests' own process, over models that answer as those of tests/serving.py do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from mlaas_ray.core.package import ModelPackage, write_package
from mlaas_ray.inference.catalog import Catalog, Entry
from mlaas_ray.inference.http import HttpFace
from mlaas_ray.inference.metrics import Counts
from mlaas_ray.inference.settings import ServiceSettings
from mlaas_ray.inference.status import Status
from mlaas_ray.inference.uploads import Inspect
from mlaas_ray.repository import Repository
from tests.serving import expected, signature


class Answering:
    """A backend that computes what the tiny models would answer, or fails as told."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.error: Exception | None = None
        self.failed: dict[int, str] = {}
        self.counted: list[Counts] = []
        self.asked: np.ndarray | None = None

    async def find(self, model: str) -> Entry:
        return self.catalog.find(model)

    async def predict(self, entry: Entry, rows: np.ndarray) -> np.ndarray:
        if self.error is not None:
            raise self.error
        self.asked = rows
        with np.errstate(over="ignore"):  # of models of doubles
            return expected(rows).astype(np.float32)

    async def settle(self, name: str) -> None:
        return None

    def look_again(self, name: str) -> None:
        return None

    def facts(self, entry: Entry) -> dict[str, Any]:
        return {}

    def failures(self, name: str) -> dict[int, str]:
        return self.failed

    async def state(self) -> dict[str, Any]:
        return {"loaded": [], "ready": True}

    async def counts(self) -> list[Counts]:
        return self.counted

    @property
    def deployments(self) -> Any:
        raise NotImplementedError

    @property
    def inspect(self) -> Inspect:
        raise NotImplementedError


class Face:
    """Asks the HTTP face without a connection.

    Args:
        folder: Where the repository is made, of ``toy``, which knows its columns, and ``bare``, the same
            model without features.json.
        package: The model.
    """

    def __init__(self, folder: Path, package: ModelPackage) -> None:
        repository = Repository(folder / "models")
        repository.publish(package)
        repository.add("bare", lambda draft: _bare(draft, package))
        settings = ServiceSettings(repository=folder / "models", request_bytes=1 << 20)
        self.backend = Answering(Catalog(repository))
        self.app = HttpFace(settings, self.backend.catalog, self.backend, Status()).app()

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        return asyncio.run(self._request(method, path, content))

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def post(self, path: str, **content: Any) -> httpx.Response:
        return self.request("POST", path, **content)

    async def _request(self, method: str, path: str, content: dict[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **content)


def _bare(draft: Path, package: ModelPackage) -> None:
    (draft / "model.onnx").write_bytes(package.model_path.read_bytes())
    write_package(draft, name="bare", framework="unknown", model_format="onnx", signature=signature())
