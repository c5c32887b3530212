"""A running service: started so that it answers, stopped so that nothing of it is left."""

from __future__ import annotations

import ctypes
import http.client
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any
from urllib.parse import urlsplit

import psutil

from mlaas_ray.core.cluster import LOCAL, ray_address, see_logs
from mlaas_ray.core.errors import ServiceError
from mlaas_ray.inference.environment import (
    LOOPBACK,
    environment,
    refuse_taken_port,
    service_folder,
    start_guard,
)
from mlaas_ray.inference.settings import ServiceSettings

STOP_TIMEOUT_S = 60.0
PATH_TIMEOUT_S = 10.0
# Set for a service that outlives who started it.
LASTING = "MLAAS_SERVICE_LASTS"
# Ray's own objects are small here; its default is 30 % of the machine's memory.
OBJECT_STORE_BYTES = 256 << 20
# Set once a signal has asked the service to stop.
_asked = threading.Event()


@dataclass(frozen=True)
class Service:
    """A service that answers.

    Attributes:
        url: Where.
        pid: The process to signal.
    """

    url: str
    pid: int


@contextmanager
def running_service(settings: ServiceSettings, *, keep: bool = False) -> Iterator[Service]:
    """Run a service while the block runs.

    It is a process of its own with a Ray of its own, as ``mlaas serve`` is: what Serve reads from the
    environment must be set before Ray starts, and this process may have started its Ray long ago.

    Args:
        settings: What to serve, and where.
        keep: Leave the service running when the block ends well; SIGTERM to its pid stops it. Otherwise it
            ends with the block, and at the latest with this process.

    Raises:
        ServiceError: When it does not start.
    """
    refuse_taken_port(settings.host, settings.port)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlaas_ray.inference", settings.model_dump_json()],
            # Closed when this process ends, however it ends, which stops the service.
            stdin=subprocess.DEVNULL if keep else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # A Ctrl-C in the terminal is for this process, which then stops the service.
            start_new_session=True,
            env=_without_ray(dict(os.environ)) | {LASTING: "1" if keep else ""},
        )
        try:
            yield _started(process, log)
        except BaseException:
            _end(process)
            raise
        if keep:
            _let_go(process)
        else:
            _end(process)


def serve_until_stopped(settings: ServiceSettings, ready: Callable[[Service], object]) -> None:
    """Run a service in this process until SIGINT, SIGTERM or SIGHUP; for the main thread.

    Args:
        settings: What to serve, and where.
        ready: Called once the service answers.

    Raises:
        ServiceError: When it does not start.
    """
    if "ray.serve" in sys.modules:
        raise ServiceError(
            "Ray Serve was imported before the service could set its environment",
            "Start the service in a process of its own: mlaas serve, or running_service",
        )
    refuse_taken_port(settings.host, settings.port)
    if settings.address is not None:
        ray_address(settings.address)
    folder = service_folder()
    os.environ.update(environment(settings, folder))
    guard = None
    try:
        _catch_signals()
        if settings.address is None:
            _adopt_orphans()
            guard = start_guard(folder)
        _start(settings)
        _catch_signals()
        _wait_until_healthy(settings)
        _look_at_path(settings)
        ready(Service(settings.url, os.getpid()))
        _asked.wait()
    except (KeyboardInterrupt, SystemExit):  # the latter of whoever sets another handler
        return
    finally:
        _ignore_signals()
        _stop(settings, folder)
        if guard is not None and guard.stdin is not None:
            guard.stdin.close()
            guard.wait()


def _start(settings: ServiceSettings) -> None:
    import ray
    from ray import serve

    from mlaas_ray.inference.app import APPLICATION, build_app

    # Ray's own handler raises SystemExit and no more, which is lost when it comes during a fork.
    ray._private.utils.set_sigterm_handler = lambda handler: None
    _catch_signals()
    # What it says in passing is in its log files.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    own: dict[str, Any] = {
        # Loopback only: a service of one machine has no business on its network.
        "_node_ip_address": LOOPBACK,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    try:
        ray.init(
            address=settings.address or LOCAL,
            namespace="serve",
            log_to_driver=False,
            logging_level=logging.WARNING,
            **({} if settings.address else own),
        )
    except ConnectionError as error:
        raise ServiceError(
            f"no Ray at {settings.address}: {error}", "Start one with ray start --head"
        ) from None
    _catch_signals()
    try:
        # In a Ray of our own HAProxy alone faces the network, see environment._launcher.
        host = settings.host if settings.address else LOOPBACK
        serve.start(http_options={"host": host, "port": settings.port}, proxy_location="HeadOnly")
        serve.run(build_app(settings), name=APPLICATION, route_prefix="/", blocking=False)
    except RuntimeError as error:
        raise ServiceError(f"the service did not start: {_gist(error)}", see_logs()) from error


def _gist(error: Exception) -> str:
    """Return the line that says why, of an error that may bring a remote traceback and HAProxy's output."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "[ALERT]" in line), lines[-1])


def _wait_until_healthy(settings: ServiceSettings) -> None:
    deadline = time.monotonic() + settings.start_timeout_s
    place = urlsplit(settings.url)
    while time.monotonic() < deadline:
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=15)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            finally:
                connection.close()
        time.sleep(0.1)
    raise ServiceError(
        f"the service at {settings.url} did not answer within {settings.start_timeout_s:g} s",
        "Look into the logs below /tmp/ray/session_latest/logs/serve",
    )


def _look_at_path(settings: ServiceSettings) -> None:
    """Say so when requests do not take the way they should; Serve's hook for it may have gone."""
    place = urlsplit(settings.url)
    # HAProxy asks Serve's own proxy for as long as it does not know of a gateway.
    deadline = time.monotonic() + PATH_TIMEOUT_S
    while settings.coalesce:
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=15)
        try:
            connection.request("GET", "/status")
            path = json.loads(connection.getresponse().read())["path"]
        finally:
            connection.close()
        if path == "coalesced":
            return
        if time.monotonic() > deadline:
            logging.getLogger("ray.serve").warning(
                "each request takes Serve's own way, which is slower: this Ray has no hook for ours"
            )
            return
        time.sleep(0.2)


def _stop(settings: ServiceSettings, folder: Path) -> None:
    """Stop what was started, and end by its pid what outlives that."""
    ours = _family(folder)
    if "ray" in sys.modules:
        _stop_gently(settings)
    if not settings.address:
        _end_all(ours)
        # What was started while the rest was ending.
        while late := _family(folder):
            _end_all(late)
    shutil.rmtree(folder, ignore_errors=True)


def _stop_gently(settings: ServiceSettings) -> None:
    """Let requests come to their end, as long as there is a Ray to do so.

    A terminal or an init system may have signalled Ray's processes too: then it waits for nobody.
    """
    ray_processes = [] if settings.address else psutil.Process().children()
    stopping = threading.Thread(target=_shut_down, args=(settings,), daemon=True)
    # Ray tells standard output that Serve's controller died, which is what a stop is for.
    with redirect_stdout(io.StringIO()):
        stopping.start()
        deadline = time.monotonic() + STOP_TIMEOUT_S / 2
        while stopping.is_alive() and time.monotonic() < deadline and all(map(_lives, ray_processes)):
            stopping.join(0.1)
        stopping.join(2)


def _shut_down(settings: ServiceSettings) -> None:
    import ray
    from ray import serve

    from mlaas_ray.inference.app import APPLICATION
    from mlaas_ray.inference.deployments import Wishes, application
    from mlaas_ray.repository import Repository

    with suppress(Exception):  # whatever Ray says on its way out, its processes are ended after this
        if settings.address and ray.is_initialized():
            # The cluster is others' too: only what is ours goes.
            for model in Wishes(Repository(settings.repository)).all():
                serve.delete(application(model))
            serve.delete(APPLICATION)
            if not serve.status().applications:
                serve.shutdown()  # type: ignore[no-untyped-call]
        elif ray.is_initialized():
            serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _adopt_orphans() -> None:
    """Become the parent of processes whose own parent dies, so that none is out of sight at the end."""
    set_child_subreaper = 36  # linux/prctl.h
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _family(folder: Path) -> set[psutil.Process]:
    """Return our descendants, and the HAProxy that our folder tells as ours, whoever its parent is now."""
    family = set(psutil.Process().children(recursive=True))
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(argument.startswith(f"{folder}{os.sep}") for argument in process.cmdline()):
                family.add(process)
    return family


def _end_all(processes: set[psutil.Process]) -> None:
    alive = [process for process in processes if process.is_running()]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in alive:
            with suppress(psutil.Error):
                end(process)
        _, alive = psutil.wait_procs(alive, timeout=5)


def _catch_signals() -> None:
    """Stop at a signal; also at one that came before, when what was running then swallowed the exception."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        _asked.set()
        _ignore_signals()
        raise KeyboardInterrupt

    if _asked.is_set():
        raise KeyboardInterrupt
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    # The terminal has gone. Whom nohup started does not mind.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupt)


def _ignore_signals() -> None:
    """Let a stop that has begun come to its end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _started(process: subprocess.Popen[bytes], log: IO[bytes]) -> Service:
    """Wait until a service's process says that it answers.

    Raises:
        ServiceError: When it ends instead, with what it said.
    """
    first = process.stdout.readline() if process.stdout else b""
    if first:
        return Service(json.loads(first)["url"], process.pid)
    process.wait(STOP_TIMEOUT_S)
    log.seek(0)
    raise _failure(log.read().decode(errors="replace"))


def _let_go(process: subprocess.Popen[bytes]) -> None:
    """Have no more to do with a process that runs on."""
    if process.stdout:
        process.stdout.close()
    # Nobody here waits for it; without this, Python complains that nobody did.
    process.returncode = 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a service's process, as gently as it lets us."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()


def _without_ray(variables: dict[str, str]) -> dict[str, str]:
    """Leave out what would tie the child to this process's Ray."""
    return {name: value for name, value in variables.items() if name not in ("RAY_ADDRESS", "RAY_JOB_ID")}


def _failure(log: str) -> ServiceError:
    """Return what a child said: its error as JSON, or its last words."""
    lines = [line for line in log.splitlines() if line.strip()]
    for line in reversed(lines):
        with suppress(ValueError, TypeError, KeyError):
            said = json.loads(line)
            return ServiceError(said["message"], said["remedy"])
    last = lines[-1] if lines else "it ended without a word"
    return ServiceError(f"the service did not start: {last}", "Run mlaas serve to see what it says")
