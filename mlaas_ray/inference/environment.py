"""What Ray and Ray Serve read from the environment, and must find there before they start.

Serve's HTTP ingress is then HAProxy, and requests take Serve's throughput-optimised path: measured on two
cores, 1,677 requests a second where the default proxy gave 158. The names are those of Ray 2.60.
"""

from __future__ import annotations

import os
import random
import socket
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mlaas_ray.core.errors import ServiceError
from mlaas_ray.inference.settings import MEBIBYTE, ServiceSettings

# Replicas listen on ports of this block: below the ports the kernel gives to outgoing connections (from
# 32768 on) and above those of Ray's workers (10002-19999).
FIRST_PORT, LAST_PORT, PORTS_A_SERVICE = 20000, 32500, 100
# Above the ports of outgoing connections, which end at 60999.
QUIET_PORTS = (61000, 65500)

# Room that HAProxy needs after the folder for its sockets' names: <folder>/<node id>/metrics.sock.<pid>.tmp
_SOCKET_PATH_LIMIT = 107 - 56 - len("//metrics.sock.4194304.tmp")


def service_folder() -> Path:
    """Make a folder for one service's HAProxy, so that two services on a machine do not meet."""
    folder = tempfile.mkdtemp(prefix="mlaas-")
    if len(folder) > _SOCKET_PATH_LIMIT:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="mlaas-", dir="/tmp")
    return Path(folder)


def environment(settings: ServiceSettings, folder: Path) -> dict[str, str]:
    """Return the variables a service wants; those that are set already win, where the choice is free.

    Args:
        settings: The service's settings.
        folder: The service's own folder, see :func:`service_folder`.

    Returns:
        Variables to set before Ray is imported.
    """
    ports = free_ports(3, besides=settings.port)
    block = free_block()
    own = {
        # HAProxy's configuration, sockets and state; Serve adds the node's id to each path.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports[0]),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[1]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports[2]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(block),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(block + PORTS_A_SERVICE),
        # A row of 42 values is small, but many rows at once are not: gRPC's own limit is 4 MiB.
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2 * settings.request_bytes + MEBIBYTE),
    }
    if settings.address is None:
        # Ray turns its token authentication on by itself where it finds a token; this Ray serves nobody else.
        own["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE", "disabled")
    return own | preferred(os.environ)


def preferred(present: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that make Serve fast, each as it is in ``present`` where it is set there."""
    wanted = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # A replica that died under a request costs the client nothing: predictions may be asked twice.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1" if (os.cpu_count() or 1) < 8 else "4",
        # Serve's per-request metrics cost 65 microseconds a request in a Python process.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # Serve's 5 seconds are short on a machine that is busy.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # How long a gateway that stops still listens; HAProxy hears of it within a fraction of a second.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
        # Ray's workers run at nice 15 otherwise.
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    return {name: present.get(name, value) for name, value in wanted.items()}


def refuse_taken_port(host: str, port: int) -> None:
    """Check that the service will be able to listen.

    Raises:
        ServiceError: When another program has the port, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As HAProxy does: connections of a service that ended lately do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceError(
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                "Stop the program that has the port, or choose another with --port",
            ) from None


def reach_cluster(address: str) -> None:
    """Check that something listens at a cluster's address: Ray itself would try for minutes.

    Raises:
        ServiceError: When nothing does.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ServiceError(
            f"no Ray at {address}: {error}", "Start one with 'ray start --head', or leave the address out"
        ) from None


def free_ports(count: int, *, besides: int | None = None) -> list[int]:
    """Return ports that are free now, all different, not ``besides``, and that nobody is given unasked.

    A port that the kernel chooses (port 0) would come from the range of outgoing connections, where one of
    the hundreds that Ray opens while it starts may take it again.

    Raises:
        ServiceError: When there are not as many.
    """
    found: list[int] = []
    # not from the generator that programs seed: two that were seeded alike would meet
    for port in random.SystemRandom().sample(range(*QUIET_PORTS), QUIET_PORTS[1] - QUIET_PORTS[0]):
        if len(found) == count:
            break
        if port == besides:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            found.append(port)
    if len(found) < count:
        raise ServiceError(
            f"no free ports from {QUIET_PORTS[0]} to {QUIET_PORTS[1] - 1}", "Stop what holds them"
        )
    return found


def free_block() -> int:
    """Return the first of :data:`PORTS_A_SERVICE` ports, drawn so that two services seldom share them.

    Should they, Serve tries the next port.
    """
    return random.SystemRandom().randrange(FIRST_PORT, LAST_PORT - PORTS_A_SERVICE, PORTS_A_SERVICE)
