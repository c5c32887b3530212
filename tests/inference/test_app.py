import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from mlaas_ray.core.errors import JobError
from mlaas_ray.inference.app import app_builder, build_app
from mlaas_ray.inference.deployments import Wish, Wishes
from mlaas_ray.inference.environment import HOOK, environment, preferred
from mlaas_ray.inference.settings import MEBIBYTE, ServiceSettings
from mlaas_ray.repository import Repository
from tests.serving import free_port

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "serve_configs").glob("*.yaml"))
CONFIG = ROOT / "serve_configs" / "local.yaml"
each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def test_an_unknown_key_in_a_config_is_refused_with_the_nearest():
    with pytest.raises(JobError, match="Did you mean 'repository'"):
        app_builder({"repositry": "models"})


@each_config
def test_the_settings_of_every_config_are_settings(path):
    config = yaml.safe_load(path.read_text())
    (application,) = config["applications"]
    ServiceSettings.of(application["args"])
    assert config["http_options"]["port"] == ServiceSettings().port


@each_config
def test_ray_serve_accepts_every_config_and_knows_its_deployments(path):
    config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    (application,) = config.applications
    gateway = build_app(ServiceSettings.of(application.args))._bound_deployment
    inner = [each for each in gateway.init_args if isinstance(each, Application)]
    built = {gateway.name, *(each._bound_deployment.name for each in inner)}
    assert {deployment.name for deployment in application.deployments} <= built


@each_config
def test_every_config_names_the_environment_that_a_service_sets_for_itself(path, tmp_path):
    exported = dict(re.findall(r'^# +export (\w+)="?(.*?)"?(?: +#.*)?$', path.read_text(), re.MULTILINE))
    size = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
    args = yaml.safe_load(path.read_text())["applications"][0]["args"]
    wanted = preferred({}) | {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": HOOK,
        size: environment(ServiceSettings.of(args), tmp_path)[size],
    }
    # depends on the machine's cores
    assert exported.pop("RAY_SERVE_HAPROXY_NBTHREAD") in ("1", "4")
    del wanted["RAY_SERVE_HAPROXY_NBTHREAD"]
    assert exported == wanted


# Defaults that depend on the machine, or are none: what the documentation calls them.
IN_WORDS = {
    "repository": "`MLAAS_REPOSITORY`, else `models`",
    "memory_mb": "a quarter of the machine's",
    "address": "none",
    "allowed_hosts": "none",
}


def test_the_documented_settings_are_those_there_are_with_their_defaults():
    text = (ROOT / "docs" / "serving" / "index.md").read_text().partition("\n## Settings\n")[2]
    documented = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE))
    defaults = {}
    for name, value in ServiceSettings():
        if name.endswith("_bytes"):
            defaults[name] = f"{value // MEBIBYTE} MiB"
        else:
            defaults[name] = f"{value:g}" if isinstance(value, float) else str(value)
        if isinstance(value, bool):
            defaults[name] = defaults[name].lower()
    assert documented == defaults | IN_WORDS


def test_serve_run_serves_the_config_on_ray_serves_own_proxy(onnx_package, tmp_path):
    repository = Repository(tmp_path / "models")
    repository.publish(onnx_package)
    Wishes(repository).keep("toy", Wish())
    config = yaml.safe_load(CONFIG.read_text())
    port = config["http_options"]["port"] = free_port()
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(config))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    process = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("serve")),
            "run",
            str(tmp_path / "local.yaml"),
            "--address",
            "local",
        ],
        env=environment | {"MLAAS_REPOSITORY": str(tmp_path / "models")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        body = {"event": {"MET_pt": 100.0}}
        reply = None
        for _ in range(2000):
            try:
                reply = httpx.post(f"http://127.0.0.1:{port}/json", json=body, timeout=60, trust_env=False)
                if reply.status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        assert reply is not None
        assert reply.json() == pytest.approx([1.0])
        # and starts what models were given before
        for _ in range(1000):
            (own,) = httpx.get(f"http://127.0.0.1:{port}/deployments", timeout=60, trust_env=False).json()
            if own["replicas"]:
                break
            time.sleep(0.1)
        assert (own["model"], own["replicas"]) == ("toy", 1)
        reply = httpx.post(f"http://127.0.0.1:{port}/json", json=body, timeout=60, trust_env=False)
        assert reply.json() == pytest.approx([1.0])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
