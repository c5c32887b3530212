"""The cluster files against Ray's own schema, and against what else of the repository they rely on."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from mlaas_ray.inference.environment import environment, preferred
from mlaas_ray.inference.settings import ServiceSettings
from mlaas_ray.streaming.xrootd import SETTINGS

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "cluster.yaml", ROOT / "deploy" / "cluster-gcp.yaml"]
NODE_ENV = "deploy/node.env"


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(request.param.read_text())
    return content


def images(cluster: dict[str, Any]) -> list[str]:
    own = [
        kind["docker"]["worker_image"]
        for kind in cluster["available_node_types"].values()
        if "docker" in kind
    ]
    return [cluster["docker"]["image"], *own]


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    # Fills in the provider's defaults from Ray's own files; asks no cloud.
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["available_node_types"].keys() == {"head", "reader", "trainer"}
    assert sum("install.sh" in command for command in prepared["worker_setup_commands"]) == 1


def test_ray_would_not_accept_a_misspelt_key(cluster: dict[str, Any]) -> None:
    cluster["idle_timeout_minuets"] = 5
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuets"):
        validate_config(prepare_config(cluster))


def test_nodes_run_the_ray_and_the_python_that_are_tested(cluster: dict[str, Any]) -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for image in images(cluster):
        assert re.fullmatch(rf"rayproject/ray:{re.escape(pins['ray'])}-py311-(cpu|gpu)", image)


def test_every_node_gets_the_checkout_and_its_environment_before_ray_starts(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["/home/ray/mlaas_ray"] == "."
    for starts in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        command = starts[-1]
        assert 0 < command.index(f". ~/mlaas_ray/{NODE_ENV}") < command.index("ray start")
    for command in cluster["setup_commands"]:
        program = command.split()[0].removeprefix("~/mlaas_ray/")
        assert os.access(ROOT / program, os.X_OK)


def test_the_environment_of_a_node_is_what_the_code_sets_for_itself(tmp_path: Path) -> None:
    command = ["bash", "-euc", f"set -a; . {NODE_ENV}; env -0"]
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, check=True
    )
    node = dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line)
    wanted = preferred({}) | SETTINGS
    # depends on the machine's cores
    del wanted["RAY_SERVE_HAPROXY_NBTHREAD"]
    size = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
    wanted[size] = environment(ServiceSettings(), tmp_path)[size]
    assert {name: node.get(name) for name in wanted} == wanted
    assert node["RAY_AUTH_MODE"] == "disabled"


def test_the_two_clusters_differ_in_their_provider_only() -> None:
    aws, gcp = (yaml.safe_load(path.read_text()) for path in FILES)
    own = {"provider", "available_node_types", "head_setup_commands", "file_mounts"}
    assert {key: value for key, value in aws.items() if key not in own} == {
        key: value for key, value in gcp.items() if key not in own
    }
