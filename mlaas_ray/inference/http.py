"""The HTTP face: TFaaS's routes, with JSON errors. What it is asked for, it asks of a :class:`Backend`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePosixPath
from typing import Protocol

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlaas_ray.core.errors import InvalidNameError, MlaasError, PackageError
from mlaas_ray.core.flatten import Rows
from mlaas_ray.inference.body import bounded, save
from mlaas_ray.inference.catalog import Catalog, Entry
from mlaas_ray.inference.events import Query
from mlaas_ray.inference.params import describe, describe_fully
from mlaas_ray.inference.replies import error_reply, json_reply
from mlaas_ray.inference.runtimes import Predictions
from mlaas_ray.inference.settings import MEBIBYTE, ServiceSettings
from mlaas_ray.inference.status import Status
from mlaas_ray.inference.uploads import Inspect, model_file_name, publish_bundle, publish_form
from mlaas_ray.repository import ModelVersion

Handler = Callable[[Request], Awaitable[Response]]

_FORM_FILES = {"params": "params.json", "features": "features.json"}
_REMEDY = "curl -F name=NAME -F model=@model.onnx URL/upload"


class Backend(Protocol):
    """What predicts and inspects behind the HTTP face."""

    async def predict(self, entry: Entry, rows: Rows) -> Predictions:
        """Predict rows ``(events, features)`` with one version."""
        ...

    async def loaded(self) -> list[str]:
        """Return the versions in a replica's memory; fails when no replica answers."""
        ...

    @property
    def inspect(self) -> Inspect:
        """Loads an uploaded model apart and returns its signature; blocks."""
        ...


class HttpFace:
    """The routes.

    Args:
        settings: Limits.
        catalog: The repository.
        backend: What predicts.
    """

    def __init__(self, settings: ServiceSettings, catalog: Catalog, backend: Backend) -> None:
        self._settings = settings
        self._catalog = catalog
        self._repository = catalog.repository
        self._backend = backend
        self._status = Status()

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            self._route("/json", "POST", self.predict),
            self._route("/predict/json", "POST", self.predict),
            self._route("/models", "GET", self.models),
            self._route("/params/{model}", "GET", self.params),
            self._route("/upload", "POST", self.upload),
            self._route("/delete", "DELETE", self.delete_named),
            self._route("/delete/{model}", "DELETE", self.delete),
            self._route("/status", "GET", self.status),
            self._route("/health", "GET", self.health),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
        app.router.redirect_slashes = False
        return app

    async def predict(self, request: Request) -> Response:
        """Answer one event with ``[p0, …]``, several with ``[[p0, …], …]``."""
        body = await bounded(request, self._settings.request_bytes, self._settings.body_timeout_s).body()
        query = Query.parse(body)
        entry = self._catalog.find(query.model)
        rows, many = query.rows(entry.features, entry.width)
        answers = await self._backend.predict(entry, rows)
        return json_reply(answers if many else answers[0], headers={"X-Model": str(entry.version)})

    async def models(self, _request: Request) -> Response:
        """List the models; one that is damaged is listed with its error."""
        listed = []
        for version, entry in self._catalog.newest():
            if isinstance(entry, Entry):
                try:
                    listed.append(describe(entry, self._repository.versions(version.name)))
                    continue
                except MlaasError as error:
                    entry = error
            listed.append({"name": version.name, "version": version.version, "error": str(entry)})
        return json_reply(listed)

    async def params(self, request: Request) -> Response:
        """Describe one model."""
        entry = self._catalog.find(request.path_params["model"])
        return json_reply(describe_fully(entry, self._repository.versions(entry.version.name)))

    async def upload(self, request: Request) -> Response:
        """Publish a form or a bundle as the next version."""
        request = bounded(request, self._settings.upload_bytes, self._settings.body_timeout_s)
        with tempfile.TemporaryDirectory(prefix="mlaas-upload-") as folder:
            if "form-data" in request.headers.get("content-type", ""):
                version = await self._upload_form(request, Path(folder))
            else:
                archive = Path(folder) / "bundle"
                await save(request, archive)
                version = await asyncio.to_thread(
                    publish_bundle,
                    self._repository,
                    archive,
                    self._settings.unpacked_bytes,
                    self._backend.inspect,
                )
        return json_reply({"name": version.name, "version": version.version})

    async def delete(self, request: Request) -> Response:
        """Delete a model, or one version of it."""
        return self._delete(request.path_params["model"])

    async def delete_named(self, request: Request) -> Response:
        """Delete the model that a form's field names."""
        limited = bounded(request, MEBIBYTE, self._settings.body_timeout_s)
        async with limited.form() as form:
            model = form.get("model")
        if not isinstance(model, str) or not model:
            raise InvalidNameError(
                "no model name is provided", "Send the field model, or DELETE /delete/NAME"
            )
        return self._delete(model)

    async def status(self, _request: Request) -> Response:
        """Report the machine, the work done, and the models in a replica's memory."""
        return json_reply(self._status.report() | {"loaded": await self._backend.loaded()})

    async def health(self, _request: Request) -> Response:
        """Answer ok when a model replica answers."""
        await self._backend.loaded()
        return json_reply({"status": "ok"})

    def _route(self, path: str, method: str, handler: Handler) -> Route:
        async def answer(request: Request) -> Response:
            try:
                reply = await handler(request)
            except Exception as error:  # the border: whatever it is, the client gets an answer
                reply = error_reply(error, request)
            self._status.count(request.method, reply.status_code)
            return reply

        return Route(path, answer, methods=[method])

    def _delete(self, model: str) -> Response:
        name, number = ModelVersion.parse(model)
        deleted = self._repository.delete(name, number)
        return json_reply({"deleted": [str(version) for version in deleted]})

    async def _upload_form(self, request: Request, folder: Path) -> ModelVersion:
        """Lay the parts of a form out as a bundle has them, and publish that."""
        encoded = request.headers.get("content-encoding", "").lower() == "base64"
        async with request.form(max_files=8, max_fields=32) as form:
            name = form.get("name")
            model = form.get("model")
            if not isinstance(model, UploadFile):
                raise PackageError("the form has no file part model", _REMEDY)
            for part, file in _FORM_FILES.items():
                await _write_part(form.get(part), folder / file)
            labels = form.get("labels")
            await _write_part(labels, folder / _labels_name(labels))
            data = await model.read()
        if encoded:
            data = await asyncio.to_thread(_decode, data)
        await asyncio.to_thread((folder / model_file_name(data[:1])).write_bytes, data)
        return await asyncio.to_thread(
            publish_form,
            self._repository,
            name if isinstance(name, str) else "",
            folder,
            self._backend.inspect,
        )


async def _write_part(part: UploadFile | str | None, path: Path) -> None:
    if part is None:
        return
    data = part.encode() if isinstance(part, str) else await part.read()
    await asyncio.to_thread(path.write_bytes, data)


def _labels_name(part: UploadFile | str | None) -> str:
    """Return what a form's labels are kept as: TFaaS's clients send full paths as file names."""
    name = PurePosixPath(part.filename or "").name if isinstance(part, UploadFile) else ""
    return "labels.json" if name.endswith(".json") else "labels.txt"


def _decode(data: bytes) -> bytes:
    try:
        return base64.b64decode(re.sub(rb"\s", b"", data), validate=True)
    except binascii.Error as error:
        raise PackageError(f"the part model is not base64: {error}", "Leave Content-Encoding out") from None


async def _http_error(request: Request, error: Exception) -> Response:
    return error_reply(error, request)
