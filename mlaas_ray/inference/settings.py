"""ServiceSettings: what a service is told when it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mlaas_ray.core.errors import JobError, nearest

MEBIBYTE = 1 << 20


def default_repository() -> Path:
    """Return the folder of ``MLAAS_REPOSITORY``, or ``models`` in the current folder."""
    return Path(os.environ.get("MLAAS_REPOSITORY") or "models").absolute()


class ServiceSettings(BaseModel):
    """Where a service listens, what it serves, and its limits.

    Attributes:
        repository: Folder of model packages; all replicas must see the same one.
        host: Address to listen on.
        port: Port to listen on.
        address: Ray cluster to join, such as ``auto``; None starts a Ray of its own on this machine.
        replicas: Processes that hold models and predict.
        gateways: Processes that speak HTTP.
        models_in_memory: Models a replica keeps loaded; the one not used for longest makes room.
        threads: Threads a model may use for one prediction.
        request_bytes: Largest body of a prediction.
        upload_bytes: Largest body of an upload.
        unpacked_bytes: Largest size of an upload once it is unpacked.
        body_timeout_s: Longest silence of a client that is sending a body, seconds.
        predict_timeout_s: Longest wait for a prediction, loading the model included, seconds.
        load_timeout_s: Longest check of an uploaded model, seconds.
        start_timeout_s: Longest start of the service, seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: Path = Field(default_factory=default_repository)
    host: str = "127.0.0.1"
    port: int = Field(default=8083, ge=1, le=65535)
    address: str | None = None
    replicas: int = Field(default=1, ge=1)
    gateways: int = Field(default=1, ge=1)
    models_in_memory: int = Field(default=16, ge=1)
    threads: int = Field(default=1, ge=1)
    request_bytes: int = Field(default=64 * MEBIBYTE, ge=1024)
    upload_bytes: int = Field(default=1024 * MEBIBYTE, ge=1024)
    unpacked_bytes: int = Field(default=4096 * MEBIBYTE, ge=1024)
    body_timeout_s: float = Field(default=30.0, gt=0)
    predict_timeout_s: float = Field(default=60.0, gt=0)
    load_timeout_s: float = Field(default=120.0, gt=0)
    start_timeout_s: float = Field(default=180.0, gt=0)

    @field_validator("repository")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def url(self) -> str:
        """Where a client on this machine finds the service."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{host}:{self.port}"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> ServiceSettings:
        """Make settings from a mapping, such as the ``args`` of a Serve config file.

        Raises:
            JobError: For a key that is not known, naming the nearest, or a value that cannot be.
        """
        for key in options:
            if key not in cls.model_fields:
                raise JobError(f"the service has no setting {key!r}", nearest(str(key), cls.model_fields))
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise JobError(f"service setting {where!r}: {first['msg']}", "Correct the value") from None
