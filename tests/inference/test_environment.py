import random
import re
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from mlaas_ray.core.errors import ServiceError
from mlaas_ray.inference.environment import (
    QUIET_PORTS,
    environment,
    free_block,
    free_ports,
    refuse_taken_port,
    service_folder,
)
from mlaas_ray.inference.settings import ServiceSettings


@pytest.fixture
def folder():
    made = service_folder()
    yield made
    shutil.rmtree(made)


def test_every_serve_variable_is_one_that_this_ray_reads(folder):
    serve = find_spec("ray.serve")
    assert serve is not None
    assert serve.origin is not None
    read = Path(serve.origin).with_name("_private").joinpath("constants.py").read_text()
    ours = {name for name in environment(ServiceSettings(), folder) if name.startswith("RAY_SERVE_")}
    assert len(ours) > 10
    assert not {name for name in ours if not re.search(rf"\b{name}\b", read)}


def test_two_services_share_neither_folder_nor_port(folder):
    other = service_folder()
    first, second = environment(ServiceSettings(), folder), environment(ServiceSettings(), other)
    shutil.rmtree(other)
    for name in (
        "HAPROXY_SOCKET_PATH",
        "HAPROXY_STATS_PORT",
        "HAPROXY_METRICS_PORT",
        "FALLBACK_PROXY_HTTP_PORT",
    ):
        assert first[f"RAY_SERVE_{name}"] != second[f"RAY_SERVE_{name}"]


def test_what_the_user_set_stays(folder, monkeypatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert environment(ServiceSettings(), folder)["RAY_SERVE_ENABLE_HA_PROXY"] == "0"


def test_a_long_temporary_folder_does_not_break_haproxys_sockets(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    made = service_folder()
    shutil.rmtree(made)
    assert len(str(made)) < 35


def test_a_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServiceError, match=f"cannot listen on 127.0.0.1:{port}: .*in use"):
            refuse_taken_port("127.0.0.1", port)
    refuse_taken_port("127.0.0.1", port)


def test_ports_are_free_different_and_above_those_of_outgoing_connections():
    for _ in range(50):
        ports = free_ports(3)
        assert len(set(ports)) == 3
        assert all(QUIET_PORTS[0] <= port < QUIET_PORTS[1] for port in ports)


def test_a_services_own_port_is_not_given_to_its_haproxy(monkeypatch):
    first = free_ports(1)[0]
    monkeypatch.setattr("mlaas_ray.inference.environment.QUIET_PORTS", (first, first + 5))
    assert first not in free_ports(3, besides=first)


def test_a_seeded_generator_does_not_decide_the_ports():
    def drawn():
        random.seed(1)
        return free_ports(3), free_block()

    assert len({str(drawn()) for _ in range(5)}) > 1
