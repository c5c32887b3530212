"""Starts that answer, and stops that leave nothing."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import psutil
import pytest

from mlaas_ray.core.errors import ServiceError
from mlaas_ray.inference import Service, ServiceSettings, running_service
from mlaas_ray.repository import Repository
from tests.serving import EXAMINED, free_port, start_serving


@pytest.fixture
def repository(onnx_package, tmp_path, monkeypatch):
    monkeypatch.setenv("MLAAS_CACHE", str(EXAMINED))
    made = Repository(tmp_path / "models")
    made.publish(onnx_package)
    return made


@pytest.fixture(scope="module")
def open_service(onnx_package, tmp_path_factory):
    """A service on every interface, which wants a token where Ray's own ports are reached."""
    repository = Repository(tmp_path_factory.mktemp("open") / "models")
    repository.publish(onnx_package)
    settings = ServiceSettings(repository=repository.root, host="0.0.0.0", port=free_port())
    with contextlib.ExitStack() as running:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLAAS_CACHE", str(EXAMINED))
            patch.delenv("RAY_AUTH_MODE")
            service = running.enter_context(running_service(settings))
        yield service


def family(pid):
    """The processes of a service: itself, and all that descend from it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def listening(processes):
    """The ports of a service that no other program's chance choice may be: its own, HAProxy's, replicas'."""
    ports = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if "haproxy" in process.name() or "ServeReplica" in " ".join(process.cmdline()):
                found = process.net_connections("tcp")
                ports |= {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}
    return ports


def settled(service):
    """The processes of a service and the ports they listen on, when HAProxy is not just replacing itself."""
    deadline = time.monotonic() + 120
    while True:
        processes = family(service.pid)
        ports = listening(processes)
        if urlsplit(service.url).port in ports:
            return processes, ports
        assert time.monotonic() < deadline, f"nobody listens on {service.url}: {ports}"
        time.sleep(0.2)


def still_listening(ports):
    found = psutil.net_connections("tcp")
    return ports & {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}


def haproxy_folders(processes):
    """The folders of a service's own HAProxy, by its command line."""
    folders = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            folders |= {Path(part).parents[1] for part in process.cmdline() if part.endswith("haproxy.cfg")}
    return folders


def test_a_stopped_service_leaves_no_process_no_port_and_no_folder(served, repository):
    with running_service(ServiceSettings(repository=repository.root, port=free_port())) as service:
        assert httpx.get(f"{service.url}/health", trust_env=False).status_code == 200
        processes, ports = settled(service)
        folders = haproxy_folders(processes)
        assert len(folders) == 1
    gone, alive = psutil.wait_procs(processes, timeout=120)
    assert not alive
    assert len(gone) == len(processes)
    assert not still_listening(ports)
    assert not [folder for folder in folders if folder.exists()]
    # nor does it take anything from the other
    assert httpx.get(f"{served.url}/health", trust_env=False).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_terminal_stops_it_too(repository, number):
    process, ready = start_serving(repository.root, free_port())
    processes = family(ready["pid"])
    ports = listening(processes)
    os.killpg(process.pid, number)
    assert process.wait(120) == 0
    assert process.stdout.read() == ""
    process.stdout.close()
    assert not psutil.wait_procs(processes, timeout=120)[1]
    assert not still_listening(ports)


@pytest.mark.parametrize("started", [2, 6])
def test_a_signal_while_it_starts_stops_it(repository, started):
    command = [sys.executable, "-m", "mlaas_ray.cli.main", "serve", "--json", "--port", str(free_port())]
    process = subprocess.Popen(
        [*command, "--repository", str(repository.root)], stdout=subprocess.PIPE, start_new_session=True
    )
    while len(processes := family(process.pid)) < started:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) in (0, 130)
    assert process.stdout.read() == b""
    process.stdout.close()
    assert not psutil.wait_procs(processes, timeout=120)[1]


def test_a_signal_whose_exception_is_swallowed_is_not_lost():
    """As by an import, or where Python collects garbage, while the service starts."""
    program = (
        "import os, signal\n"
        "from mlaas_ray.inference import service\n"
        "service._catch_signals()\n"
        "try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "except KeyboardInterrupt: pass\n"
        "service._catch_signals()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=240)
    assert b"KeyboardInterrupt" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_service_ends_with_who_started_it(repository, tmp_path):
    script = tmp_path / "start.py"
    script.write_text(
        "import sys, os, signal\n"
        "from mlaas_ray.inference import ServiceSettings, running_service\n"
        "with running_service(ServiceSettings(repository=sys.argv[1], port=int(sys.argv[2]))) as service:\n"
        "    print(service.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = [sys.executable, str(script), str(repository.root), str(free_port())]
    said = subprocess.run(run, stdout=subprocess.PIPE, timeout=120).stdout
    pid = int(said)
    with contextlib.suppress(psutil.NoSuchProcess):
        assert not psutil.wait_procs(family(pid), timeout=120)[1]
    assert not psutil.pid_exists(pid)


def test_a_service_that_is_killed_leaves_no_process_no_port_and_no_folder(repository):
    port = free_port()
    process, ready = start_serving(repository.root, port)
    processes, ports = settled(Service(ready["url"], ready["pid"]))
    folders = haproxy_folders(processes)
    assert port in ports
    assert len(folders) == 1
    process.kill()
    process.wait(120)
    process.stdout.close()
    assert not psutil.wait_procs(processes, timeout=120)[1]
    assert not still_listening(ports)
    deadline = time.monotonic() + 120
    while any(folder.exists() for folder in folders):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_only_the_services_own_port_is_open_to_other_machines(open_service):
    """And what Ray opens on every interface wants this service's token."""
    port = urlsplit(open_service.url).port
    processes, _ = settled(open_service)
    places = {
        (one.laddr.ip, one.laddr.port)
        for process in processes
        if "haproxy" in process.name()
        for one in process.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    }
    assert ("0.0.0.0", port) in places
    assert {ip for ip, number in places if number != port} == {"127.0.0.1"}
    assert len(places) == 3
    replica = next(one for one in processes if "ModelReplica" in " ".join(one.cmdline()))
    codes = set()
    for one in replica.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN:
            with grpc.insecure_channel(f"127.0.0.1:{one.laddr.port}") as channel:
                call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"", timeout=120)
                codes.add(caught.value.code())
    # Ray's own port does not know the method
    assert codes == {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}
    assert httpx.get(f"{open_service.url}/health", trust_env=False).status_code == 200


@pytest.mark.slow
def test_a_service_that_is_kept_runs_on_until_it_is_told(repository):
    with running_service(ServiceSettings(repository=repository.root, port=free_port()), keep=True) as service:
        pass
    processes = family(service.pid)
    try:
        assert httpx.get(f"{service.url}/health", trust_env=False).status_code == 200
    finally:
        os.kill(service.pid, signal.SIGTERM)
    assert not psutil.wait_procs(processes, timeout=120)[1]


def test_two_services_on_a_machine_do_not_meet(served, open_service):
    one = httpx.get(f"{served.url}/models", trust_env=False).json()
    two = httpx.get(f"{open_service.url}/models", trust_env=False).json()
    assert (len(one), len(two)) == (2, 1)
    assert httpx.get(f"{served.url}/health", trust_env=False).status_code == 200


def test_a_taken_port_is_refused_before_anything_starts(served, repository, monkeypatch):
    port = urlsplit(served.url).port
    monkeypatch.delattr(subprocess, "Popen")
    with (
        pytest.raises(ServiceError, match=f"cannot listen on 127.0.0.1:{port}"),
        running_service(ServiceSettings(repository=repository.root, port=port)),
    ):
        pass


def test_what_the_child_says_is_raised_here(repository):
    settings = ServiceSettings(repository=repository.root, port=free_port(), address="127.0.0.1:1")
    with pytest.raises(ServiceError, match=r"no Ray at 127\.0\.0\.1:1"), running_service(settings):
        pass


@pytest.mark.soak
def test_a_model_replica_that_dies_is_replaced_and_hardly_missed(repository):
    port = free_port()
    settings = ServiceSettings(repository=repository.root, port=port, replicas=2, predict_in="replicas")
    with running_service(settings) as service, httpx.Client(base_url=service.url, trust_env=False) as http:
        codes: list[int] = []
        done = threading.Event()

        def ask():
            while not done.is_set():
                codes.append(http.post("/json", json={"values": [1, 2, 3, 4, 5]}, timeout=60).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        while len(codes) < 50:
            time.sleep(0.01)
        replicas = [p for p in family(service.pid) if "ModelReplica" in " ".join(p.cmdline())]
        assert len(replicas) == 2
        replicas[0].kill()
        before = len(codes)
        while len(codes) < before + 500:
            time.sleep(0.01)
        done.set()
        asking.join()
    assert codes.count(200) >= len(codes) - 2
    assert set(codes) <= {200, 503}
