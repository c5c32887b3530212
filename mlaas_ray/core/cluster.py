"""Which Ray to run on: the one that was named, or one of the process's own."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlaas_ray.core.errors import ServiceError

AUTO = "auto"
LOCAL = "local"
CONNECT_SECONDS = 5


def ray_address(address: str | None = None) -> str:
    """Return the address to give to ``ray.init``: this one, else ``RAY_ADDRESS``, else ``local``.

    Left to itself, Ray would join the cluster that was last started on this machine, whoever's it is, and
    wait for it without end where it is gone.

    Args:
        address: ``auto`` for the cluster of this machine, ``host:port`` of a head node, ``local`` for a Ray
            of the process's own, or None.

    Raises:
        ServiceError: When nothing listens there: Ray itself would try for minutes.
    """
    where = address or os.environ.get("RAY_ADDRESS") or LOCAL
    listener = _last_started() if where == AUTO else where
    host, separator, port = listener.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise ServiceError(
                f"no Ray at {listener}: {error}",
                "Start one with 'ray start --head', or leave the address out",
            ) from None
    return where


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Run a block with more environment variables, which what it starts inherits; those that are set stay."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _last_started() -> str:
    """Return what ``ray start --head`` wrote down last, empty for nothing (Ray 2.60)."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        return (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return ""


def ray_logs() -> str | None:
    """Return the folder of the logs of the Ray that this process uses; None where that is not known."""
    ray = sys.modules.get("ray")
    node = getattr(getattr(getattr(ray, "_private", None), "worker", None), "_global_node", None)
    return None if node is None else str(node.get_logs_dir_path())


def see_logs() -> str:
    """Return the remedy for what only Ray's logs explain: where they are."""
    return f"See Ray's logs in {ray_logs() or 'its session folder, /tmp/ray/session_latest/logs'}"
