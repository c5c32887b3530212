import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from mlaas_ray.core.errors import JobError
from mlaas_ray.inference.app import app_builder
from mlaas_ray.inference.settings import ServiceSettings
from mlaas_ray.repository import Repository
from tests.serving import free_port

CONFIG = Path(__file__).parents[2] / "serve_configs" / "local.yaml"


def test_an_unknown_key_in_a_config_is_refused_with_the_nearest():
    with pytest.raises(JobError, match="Did you mean 'repository'"):
        app_builder({"repositry": "models"})


def test_the_settings_of_the_config_are_settings():
    config = yaml.safe_load(CONFIG.read_text())
    ServiceSettings.of(config["applications"][0]["args"])
    assert config["http_options"]["port"] == ServiceSettings().port


def test_serve_run_serves_the_config_on_ray_serves_own_proxy(onnx_package, tmp_path):
    Repository(tmp_path / "models").publish(onnx_package)
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
        for _ in range(600):
            try:
                reply = httpx.post(f"http://127.0.0.1:{port}/json", json=body, timeout=60, trust_env=False)
                if reply.status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        assert reply is not None
        assert reply.json() == pytest.approx([1.0])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
