"""ServiceSettings: what a service is told when it starts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mlaas_ray.core.errors import JobError, nearest

MEBIBYTE = 1 << 20


def default_repository() -> Path:
    """Return the folder of ``MLAAS_REPOSITORY``, or ``models`` in the current folder."""
    return Path(os.environ.get("MLAAS_REPOSITORY") or "models").absolute()


class Scale(BaseModel):
    """How many replicas: always as many, or as many as there is work for; written ``2`` or ``1:4``.

    Attributes:
        fewest: Never less; 0 lets the last one go when there is nothing to do.
        most: Never more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fewest: int = Field(ge=0)
    most: int = Field(ge=1)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            value = f"{value}"
        if not isinstance(value, str):
            return value
        numbers = re.fullmatch(r"\s*(\d+)\s*(?::\s*(\d+)\s*)?", value)
        if numbers is None:
            raise ValueError("write a number, or the fewest and the most as in 1:4")
        return {"fewest": int(numbers[1]), "most": int(numbers[2] or numbers[1])}

    @model_validator(mode="after")
    def _in_order(self) -> Scale:
        if self.fewest > self.most:
            raise ValueError(f"the fewest, {self.fewest}, are more than the most, {self.most}")
        return self

    def __str__(self) -> str:
        return f"{self.fewest}" if self.fewest == self.most else f"{self.fewest}:{self.most}"


def default_memory_mb() -> int:
    """Return a quarter of the machine's memory, in MiB."""
    return max(512, psutil.virtual_memory().total // 4 // MEBIBYTE)


class ServiceSettings(BaseModel):
    """Where a service listens, what it serves, and its limits.

    Attributes:
        repository: Folder of model packages; all replicas must see the same one.
        host: Address to listen on.
        port: Port to listen on.
        allowed_hosts: Names by which models may be uploaded, beside its machine's: of a proxy, say.
        address: Ray cluster to join, such as ``auto``; None starts a Ray of its own on this machine.
        replicas: Processes that hold models and predict: a number, or the fewest and the most as in ``1:4``.
        gateways: Processes that speak HTTP, likewise.
        predict_in: ``gateways`` saves the way between the processes, and then there are no replicas;
            ``replicas`` keeps models out of the processes that speak HTTP; ``auto`` has light models in
            gateways and all others in replicas.
        coalesce: Take the rows of usual requests from the connection and gather them by model, before Serve
            sees a request; otherwise every request takes Serve's own way.
        rows_per_replica: Rows a replica should have at a time, where there may be more or fewer of them.
        requests_per_gateway: Requests a gateway should have at a time, likewise.
        queue_rows: Most rows that wait for a model; further ones are refused with 503.
        linger_ms: Longest wait of a row for company while others are being predicted, milliseconds.
        memory_mb: What the models of each process may take, MiB; the one not used for longest makes room.
        cpus: CPUs that Ray reserves for each process: where they do not fit, it asks for a node.
        preload: Load the models before the service is ready, as many as fit.
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
    allowed_hosts: tuple[str, ...] = ()
    address: str | None = None
    replicas: Scale = Scale(fewest=1, most=1)
    gateways: Scale = Scale(fewest=1, most=1)
    predict_in: Literal["auto", "gateways", "replicas"] = "auto"
    coalesce: bool = True
    rows_per_replica: float = Field(default=64.0, gt=0)
    requests_per_gateway: float = Field(default=64.0, gt=0)
    queue_rows: int = Field(default=20_000, ge=1)
    linger_ms: float = Field(default=1.0, ge=0)
    memory_mb: int = Field(default_factory=default_memory_mb, ge=1)
    cpus: float = Field(default=0.1, ge=0)
    preload: bool = True
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

    @field_validator("allowed_hosts")
    @classmethod
    def _names_alone(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name, re.ASCII):
                raise ValueError(f"{name!r} is no name such as ml.example.org, without scheme and port")
        return value

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
