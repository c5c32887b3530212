from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlaas_ray.core.cluster import ray_address, see_logs
from mlaas_ray.core.errors import ServiceError


@pytest.fixture(autouse=True)
def ray_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray"


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_the_address_then_the_environment_then_a_ray_of_ones_own(
    listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ray_address() == "local"
    assert ray_address(listening) == listening
    monkeypatch.setenv("RAY_ADDRESS", listening)
    assert ray_address() == listening
    assert ray_address("local") == "local"


def test_no_cluster_at_an_address_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceError, match=r"no Ray at 127\.0\.0\.1:1: .*refused"):
        ray_address("127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:1")
    with pytest.raises(ServiceError, match="ray start --head"):
        ray_address()


def test_this_machines_cluster_that_was_killed_is_told_at_once(ray_folder: Path) -> None:
    (ray_folder / "ray_current_cluster").write_text("127.0.0.1:1")
    with pytest.raises(ServiceError, match=r"no Ray at 127\.0\.0\.1:1"):
        ray_address("auto")
    assert ray_address() == "local"


def test_this_machines_cluster_is_left_to_ray(ray_folder: Path, listening: str) -> None:
    assert ray_address("auto") == "auto"
    (ray_folder / "ray_current_cluster").write_text(listening)
    assert ray_address("auto") == "auto"


def test_what_only_rays_logs_explain_names_their_folder(ray_local: None) -> None:
    remedy = see_logs()
    assert Path(remedy.removeprefix("See Ray's logs in ")).is_dir()
