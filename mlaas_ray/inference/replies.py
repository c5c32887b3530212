"""Replies: JSON, and the one table of what an error means in HTTP."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import uuid
from typing import Any

import orjson
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from mlaas_ray.core import errors
from mlaas_ray.inference.archives import TooLargeError
from mlaas_ray.inference.body import BodyEncodingError, BodyStalledError, BodyTooLargeError
from mlaas_ray.inference.busy import BusyError
from mlaas_ray.inference.formats import NotAcceptableError, UnknownFormatError
from mlaas_ray.inference.origins import ForeignError
from mlaas_ray.inference.private import without_paths

logger = logging.getLogger("ray.serve")

# The first that fits counts.
CODES: tuple[tuple[type[BaseException], int], ...] = (
    (BodyTooLargeError, 413),
    (TooLargeError, 413),
    (BodyStalledError, 408),
    (ForeignError, 403),
    (BodyEncodingError, 415),
    (UnknownFormatError, 415),
    (NotAcceptableError, 406),
    (BusyError, 503),
    (errors.ModelMissingError, 404),
    (errors.VersionMissingError, 404),
    (errors.EventError, 400),
    (errors.InvalidNameError, 400),
    (errors.FeatureError, 400),
    (errors.ModelError, 400),
    (errors.PackageError, 400),
    (errors.JobError, 400),
    (BackPressureError, 503),
    (DeploymentUnavailableError, 503),
    (RayActorError, 503),
    (errors.RepositoryFullError, 507),
    (errors.RepositoryError, 500),
    (asyncio.TimeoutError, 504),
)
# What a disk refuses beside the repository, where bodies are kept for a while.
_DISK = {
    errno.ENOSPC: 507,
    errno.EDQUOT: 507,
    errno.EROFS: 500,
    errno.EACCES: 500,
    errno.EPERM: 500,
    errno.EIO: 500,
    errno.EMFILE: 503,
    errno.ENFILE: 503,
}

# Said instead of what Ray and asyncio say.
_SENTENCES: dict[type[BaseException], str] = {
    BackPressureError: "the service is busy. Try again.",
    DeploymentUnavailableError: "the model's replicas are not there. Try again.",
    RayActorError: "the service is busy. Try again.",
    asyncio.TimeoutError: "no answer in time. Try again, or with fewer rows.",
}


def json_reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return JSON that ends with a newline; float32 as short as it can be, NaN and infinity as null."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
    return Response(body, status, headers, media_type="application/json")


def error_reply(error: Exception, request: Request) -> Response:
    """Return ``{"error": …}`` with the status of the error; what is unexpected is logged with an id."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, errors.MlaasError):  # raised in a model replica, wrapped by Ray
        error = cause
    if isinstance(error, HTTPException):
        return _refusal(_http_reason(error, request), error.status_code, dict(error.headers or {}))
    for kind, status in CODES:
        if isinstance(error, kind):
            text = _SENTENCES.get(kind) or without_paths(str(error))
            if status in (500, 507):
                logger.error("%s %s: %s", request.method, request.url.path, error)
            return _refusal(text, status)
    if isinstance(error, ClientDisconnect):
        return _refusal("the client went away", 499)
    number = request.headers.get("x-request-id") or uuid.uuid4().hex
    if isinstance(error, OSError) and error.errno in _DISK:
        logger.error("request %s: %s %s failed: %s", number, request.method, request.url.path, error)
        cause = os.strerror(error.errno)
        return _refusal(
            f"the service's machine refuses: {cause}. Its operator can mend that.", _DISK[error.errno]
        )
    logger.error("request %s: %s %s failed", number, request.method, request.url.path, exc_info=error)
    return _refusal(f"internal error; the service's log has it as request {number}", 500)


def _http_reason(error: HTTPException, request: Request) -> str:
    """Say what Starlette says, and of what."""
    if error.status_code == 404:
        return (
            f"no route {request.url.path}. There are /json, /proto, /models, /models/NAME/predict, "
            "/params/NAME, /upload, /delete, /deployments, /status, /health."
        )
    if error.status_code == 405:
        return f"{request.url.path} does not take {request.method}."
    return str(error.detail)


def _refusal(text: str, status: int, headers: dict[str, str] | None = None) -> Response:
    # What the client is still sending is not read.
    early = {"Connection": "close"} if status in (403, 408, 413, 415, 507) else {}
    later = {"Retry-After": "1"} if status == 503 else {}
    return json_reply({"error": text}, status, (headers or {}) | early | later)
