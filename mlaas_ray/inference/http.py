"""The HTTP face: TFaaS's routes, with JSON errors. What it is asked for, it asks of a :class:`Backend`."""

from __future__ import annotations

import base64
import binascii
import contextlib
import math
import re
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlaas_ray.core.errors import InvalidNameError, MlaasError, ModelError, ModelMissingError, PackageError
from mlaas_ray.core.flatten import Rows
from mlaas_ray.core.held import held_folder
from mlaas_ray.core.package import check_name
from mlaas_ray.inference.body import bounded, save
from mlaas_ray.inference.busy import BusyError
from mlaas_ray.inference.catalog import Catalog, Entry
from mlaas_ray.inference.deployments import Deployments, Wish
from mlaas_ray.inference.events import Query
from mlaas_ray.inference.formats import JSON, PROTOBUF, RAW, Format, Target, answer_format, format_of
from mlaas_ray.inference.metrics import MEDIA_TYPE, Counts, exposition
from mlaas_ray.inference.origins import Origins
from mlaas_ray.inference.params import describe, describe_fully
from mlaas_ray.inference.private import all_without_paths, hide, without_paths
from mlaas_ray.inference.replies import error_reply, json_reply
from mlaas_ray.inference.runtimes import Predictions
from mlaas_ray.inference.settings import MEBIBYTE, ServiceSettings
from mlaas_ray.inference.status import Status
from mlaas_ray.inference.threads import BODIES, FILES, LOOKUPS, UPLOADS
from mlaas_ray.inference.uploads import Inspect, model_file_name, publish_bundle, publish_form
from mlaas_ray.inference.wire import read_message
from mlaas_ray.repository import ModelVersion

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")

# Bodies from here on are read and written in a thread, so that others are answered meanwhile. JSON of so many
# takes 4 ms; for less, the threads would wait for each other longer than that.
LONG_BYTES = MEBIBYTE // 2
# Events take as many times longer than rows of numbers.
SLOWER = 8

# What the folders begin with in which uploads are kept while they are looked at.
UPLOAD_FOLDERS = "mlaas-upload-"
# Uploads at a time, those included that are still being sent.
MOST_UPLOADS = 16

_FORM_FILES = {"params": "params.json", "features": "features.json"}
_REMEDY = "curl -F name=NAME -F model=@model.onnx URL/upload"


class Backend(Protocol):
    """What predicts and inspects behind the HTTP face."""

    async def find(self, model: str) -> Entry:
        """Return the version that answers for ``name``, ``name:version`` or ``name:alias``."""
        ...

    async def predict(self, entry: Entry, rows: Rows) -> Predictions:
        """Predict rows ``(events, features)`` with one version."""
        ...

    def look_again(self, name: str) -> None:
        """Have the next request see what was changed just now."""
        ...

    async def settle(self, name: str) -> None:
        """Wait until the newest version of a model answers for it."""
        ...

    def facts(self, entry: Entry) -> dict[str, Any]:
        """Return what was found when a version was loaded: what runs it, and how fast."""
        ...

    def failures(self, name: str) -> dict[int, str]:
        """Return the versions of a model that do not load, and why."""
        ...

    async def state(self) -> dict[str, Any]:
        """Return what the service is doing, and what is in memory; fails when no replica answers."""
        ...

    async def counts(self) -> list[Counts]:
        """Return what each gateway has counted."""
        ...

    @property
    def deployments(self) -> Deployments:
        """The models with replicas of their own."""
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
        status: Counts.
    """

    def __init__(self, settings: ServiceSettings, catalog: Catalog, backend: Backend, status: Status) -> None:
        self._settings = settings
        self._catalog = catalog
        self._repository = catalog.repository
        self._backend = backend
        self._status = status
        self._uploads = 0
        hide(catalog.repository.root)
        self._origins = Origins(settings.allowed_hosts)

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            self._route("/json", "POST", self.predict, changes=False),
            self._route("/predict/json", "POST", self.predict, changes=False),
            self._route("/proto", "POST", self.predict_message, changes=False),
            self._route("/predict/proto", "POST", self.predict_message, changes=False),
            self._route("/models/{model}/predict", "POST", self.predict_rows, changes=False),
            self._route("/models", "GET", self.models),
            self._route("/params/{model}", "GET", self.params),
            self._route("/upload", "POST", self.upload),
            self._route("/delete", "DELETE", self.delete_named),
            self._route("/delete/{model}", "DELETE", self.delete),
            self._route("/deployments", "GET", self.list_deployments),
            self._route("/deployments/{model}", "PUT", self.deploy),
            self._route("/deployments/{model}", "DELETE", self.withdraw),
            self._route("/status", "GET", self.status),
            self._route("/health", "GET", self.health),
            self._route("/metrics", "GET", self.metrics),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: self._refuse})
        app.router.redirect_slashes = False
        return app

    async def predict(self, request: Request) -> Response:
        """Answer one event with ``[p0, …]``, several with ``[[p0, …], …]``."""
        body = await self._body(request)
        query = await _apart(len(body), Query.parse, body)
        entry = await self._backend.find(query.model)
        size = len(body) if query.usual else len(body) * SLOWER
        rows, many = await _apart(size, query.rows, entry.features, entry.width, entry.dtype)
        return await self._answer(entry, rows, many, JSON)

    async def predict_message(self, request: Request) -> Response:
        """Answer a Row with Predictions, a DataFrame with a PredictionsList."""
        body = await self._body(request)
        table = await _apart(len(body), read_message, body)
        entry = await self._backend.find(table.model)
        rows, many = table.rows(entry.features, entry.width, entry.dtype)
        # TFaaS's own media type
        return await self._answer(entry, rows, many, PROTOBUF, "application/octet-stream")

    async def predict_rows(self, request: Request) -> Response:
        """Answer rows in any format, in the format that is accepted."""
        body = await self._body(request)
        sent = format_of(request.headers.get("content-type"))
        wanted = answer_format(",".join(request.headers.getlist("accept")), sent)
        model = request.path_params["model"]
        entry = await self._backend.find(model)
        target = Target(model, entry.features, entry.width, self._settings.request_bytes, entry.dtype)
        rows, many = await _apart(len(body), sent.read, body, target)
        return await self._answer(entry, rows, many, wanted)

    async def models(self, _request: Request) -> Response:
        """List the models; one that is damaged is listed with its error."""
        return json_reply(await LOOKUPS.run(self._listed))

    def _listed(self) -> list[dict[str, Any]]:
        listed = []
        for version, entry in self._catalog.newest():
            if isinstance(entry, Entry):
                try:
                    listed.append(self._described(entry, describe))
                    continue
                except MlaasError as error:
                    entry = error
            listed.append(
                {"name": version.name, "version": version.version, "error": without_paths(str(entry))}
            )
        return listed

    async def params(self, request: Request) -> Response:
        """Describe one model."""
        model = request.path_params["model"]
        try:
            entry = await self._backend.find(model)
        except (ModelError, BusyError):  # it may be described all the same
            entry = await LOOKUPS.run(self._catalog.find, model)
        return json_reply(await LOOKUPS.run(self._described, entry, describe_fully))

    async def upload(self, request: Request) -> Response:
        """Publish a form or a bundle as the next version."""
        if self._uploads >= MOST_UPLOADS:
            raise BusyError(f"{self._uploads} uploads are under way already", "Try again in some seconds")
        self._uploads += 1
        try:
            version = await self._upload(request)
        finally:
            self._uploads -= 1
        # Who uploaded it may ask it at once, and finds it loaded.
        await self._backend.settle(version.name)
        return json_reply({"name": version.name, "version": version.version})

    async def _upload(self, request: Request) -> ModelVersion:
        is_form = "form-data" in request.headers.get("content-type", "")
        # of a form, base64 is its model alone; a bundle is unpacked by its content
        own = ("base64",) if is_form else ("gzip", "x-gzip")
        limits = self._settings.upload_bytes, self._settings.body_timeout_s
        request = bounded(request, *limits, as_it_is=own)
        async with _passing_folder() as folder:
            if is_form:
                return await self._upload_form(request, folder)
            archive = folder / "bundle"
            await save(request, archive)
            return await UPLOADS.run(
                publish_bundle,
                self._repository,
                archive,
                self._settings.unpacked_bytes,
                self._backend.inspect,
            )

    async def delete(self, request: Request) -> Response:
        """Delete a model, or one version of it."""
        return await self._delete(request.path_params["model"])

    async def delete_named(self, request: Request) -> Response:
        """Delete the model that a form's field names."""
        limited = bounded(request, MEBIBYTE, self._settings.body_timeout_s)
        async with limited.form() as form:
            model = form.get("model")
        if not isinstance(model, str) or not model:
            raise InvalidNameError(
                "no model name is provided", "Send the field model, or DELETE /delete/NAME"
            )
        return await self._delete(model)

    async def status(self, _request: Request) -> Response:
        """Report the machine, the work done, and the models in a replica's memory."""
        return json_reply(self._status.report() | await self._backend.state())

    async def health(self, _request: Request) -> Response:
        """Answer ok when a model replica answers."""
        if not (await self._backend.state())["ready"]:
            raise BusyError("no model replica answers", "Try again in some seconds")
        return json_reply({"status": "ok"})

    async def metrics(self, _request: Request) -> Response:
        """Report what all gateways have counted, for Prometheus."""
        return Response(exposition(await self._backend.counts()), media_type=MEDIA_TYPE)

    async def list_deployments(self, _request: Request) -> Response:
        """List the models with replicas of their own."""
        return json_reply(await self._backend.deployments.listed())

    async def deploy(self, request: Request) -> Response:
        """Give a model replicas of its own."""
        name = check_name(request.path_params["model"])
        wish = Wish.read(await bounded(request, MEBIBYTE, self._settings.body_timeout_s).body())
        await self._backend.deployments.deploy(name, wish)
        return json_reply({"model": name, "wanted": wish.model_dump(mode="json")})

    async def withdraw(self, request: Request) -> Response:
        """Let the pool answer for a model again."""
        name = check_name(request.path_params["model"])
        await self._backend.deployments.withdraw(name)
        return json_reply({"withdrawn": name})

    async def _refuse(self, request: Request, error: Exception) -> Response:
        """Answer what is for no route."""
        reply = error_reply(error, request)
        self._status.count(request.method, reply.status_code)
        return reply

    def _route(self, path: str, method: str, handler: Handler, *, changes: bool = True) -> Route:
        async def answer(request: Request) -> Response:
            try:
                if method != "GET":
                    await self._origins.check(request.headers, changes=changes)
                reply = await handler(request)
            except Exception as error:  # the border: whatever it is, the client gets an answer
                reply = error_reply(error, request)
            self._status.count(request.method, reply.status_code)
            return reply

        return Route(path, answer, methods=[method])

    async def _body(self, request: Request) -> bytes:
        return await bounded(request, self._settings.request_bytes, self._settings.body_timeout_s).body()

    async def _answer(
        self, entry: Entry, rows: Rows, many: bool, wanted: Format, media_type: str | None = None
    ) -> Response:
        """Predict rows, and write the answer."""
        start = time.perf_counter()
        with self._status.load.of(1):
            answers = await self._backend.predict(entry, rows)
        self._status.predicted(entry.version.name, len(rows), time.perf_counter() - start)
        content = await _apart(answers.nbytes, wanted.write, answers, entry.labels, many)
        headers = {"X-Model": str(entry.version)}
        if wanted is RAW:
            headers["X-Outputs"] = str(math.prod(answers.shape[1:]))
        return Response(content, headers=headers, media_type=media_type or wanted.types[0])

    def _described(
        self, entry: Entry, description: Callable[[Entry, list[int]], dict[str, Any]]
    ) -> dict[str, Any]:
        """Describe a version, with what is known of it where it runs."""
        name = entry.version.name
        described = description(entry, self._repository.versions(name))
        runtime = all_without_paths(self._backend.facts(entry))
        described |= {"aliases": self._repository.aliases(name), "runtime": runtime}
        failed = {str(number): without_paths(why) for number, why in self._backend.failures(name).items()}
        return described | ({"failed": failed} if failed else {})

    async def _delete(self, model: str) -> Response:
        name, number = ModelVersion.parse(model)
        deleted = await FILES.run(self._repository.delete, name, number)
        self._backend.look_again(name)
        if name not in await LOOKUPS.run(self._repository.names):
            with contextlib.suppress(ModelMissingError):  # most have no replicas of their own
                await self._backend.deployments.withdraw(name)
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
            data = await BODIES.run(_decode, data)
        await FILES.run((folder / model_file_name(data[:1])).write_bytes, data)
        return await UPLOADS.run(
            publish_form,
            self._repository,
            name if isinstance(name, str) else "",
            folder,
            self._backend.inspect,
        )


@contextlib.asynccontextmanager
async def _passing_folder() -> AsyncIterator[Path]:
    """Give a folder for an upload; to remove gigabytes takes a while."""
    held = held_folder(Path(tempfile.gettempdir()), UPLOAD_FOLDERS)
    folder = await FILES.run(held.__enter__)
    try:
        yield folder
    finally:
        await FILES.run(held.__exit__, None, None, None)


async def _apart(size: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that works on this many bytes, in a thread when there are many."""
    if size < LONG_BYTES:
        return function(*arguments)
    return await BODIES.run(function, *arguments)


async def _write_part(part: UploadFile | str | None, path: Path) -> None:
    if part is None:
        return
    data = part.encode() if isinstance(part, str) else await part.read()
    await FILES.run(path.write_bytes, data)


def _labels_name(part: UploadFile | str | None) -> str:
    """Return what a form's labels are kept as: TFaaS's clients send full paths as file names."""
    name = PurePosixPath(part.filename or "").name if isinstance(part, UploadFile) else ""
    return "labels.json" if name.endswith(".json") else "labels.txt"


def _decode(data: bytes) -> bytes:
    try:
        return base64.b64decode(re.sub(rb"\s", b"", data), validate=True)
    except binascii.Error as error:
        raise PackageError(f"the part model is not base64: {error}", "Leave Content-Encoding out") from None
