"""The Ray a command runs on: the cluster it was told of, or one of its own that ends with it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from mlaas_ray.core.cluster import LOCAL, environment, ray_address
from mlaas_ray.core.errors import ServiceError
from mlaas_ray.streaming.xrootd import SETTINGS as XROOTD_SETTINGS


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Run a block on Ray.

    A Ray that this process already uses is left as it is. Otherwise the address decides, then
    ``RAY_ADDRESS`` (which ``ray job submit`` sets); without either, a Ray of this process's own is started
    on this machine and stopped after the block.

    Args:
        address: ``auto`` for the cluster of this machine, ``host:port`` of a head node, or ``local``.

    Raises:
        ServiceError: When the cluster does not answer.
    """
    if ray.is_initialized():
        yield
        return
    where = ray_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A worker must have the time-outs before anything loads XRootD in it.
    variables = {name: os.environ.get(name, value) for name, value in XROOTD_SETTINGS.items()}
    settings: dict[str, Any] = {"runtime_env": {"env_vars": variables}}
    if where == LOCAL:
        # Ray turns token authentication on by itself where it finds a token; this one serves nobody else.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # Its workers inherit the time-outs. Every process of a runtime environment starts Python twice, and
        # those that Ray starts in advance are of none.
        settings = {"include_dashboard": False}
    # Ray replaces it, and on SIGTERM kills its processes before anybody can say or write down anything
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with environment(variables if where == LOCAL else {}):
            ray.init(address=where, logging_level=logging.ERROR, log_to_driver=False, **settings)
    except ConnectionError as error:
        raise ServiceError(f"no Ray at {where}: {error}", "Start one with 'ray start --head'") from None
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


def durable(folder: str | os.PathLike[str]) -> Path:
    """Return where a relative output folder lies: below the current one, unless that is a passing copy.

    ``ray job submit --working-dir`` runs in a copy of the folder, which Ray deletes some time after the job:
    there, output goes below ``MLAAS_HOME``, or ``~/mlaas``, instead.
    """
    path = Path(folder).expanduser()
    if path.is_absolute():
        return path
    current = Path.cwd()
    if "runtime_resources" in current.parts:
        return Path(os.environ.get("MLAAS_HOME") or Path.home() / "mlaas").absolute() / path
    return current / path
