"""A small job on simulated samples; and the example jobs, each trained once for all tests that want it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from mlaas_ray.cli.main import app
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.workflows import Job, train

EXAMPLES = Path(__file__).parents[2] / "jobs" / "examples"


def simulate(folder: Path) -> None:
    """Write into a folder what ``mlaas simulate`` does."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, ["simulate", "--events", "3000"])
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Callable[[str], ModelPackage]:
    """Train an example job on simulated events, in a folder where there is nothing else."""
    folder = tmp_path_factory.mktemp("examples")
    simulate(folder)

    @functools.cache
    def trained(name: str) -> ModelPackage:
        with contextlib.chdir(folder):
            package = train(Job.load(EXAMPLES / f"{name}.yaml"), progress=False)
        assert package.path.is_relative_to(folder)
        return package

    return trained


@pytest.fixture
def write_job(tmp_path: Path, samples: dict[str, Path]) -> Callable[..., Path]:
    """Write a job file on the samples; keyword arguments overrule its top-level keys, None takes one out."""

    def write(**changes: Any) -> Path:
        job: dict[str, Any] = {
            "name": "toy",
            "seed": 3,
            "datasets": {
                "signal": {"files": str(samples["signal"]), "label": 1},
                "background": {"files": str(samples["background"]), "label": 0},
            },
            "inputs": {"exclude": ["run", "event"]},
            "train": {"epochs": 2},
            "storage": str(tmp_path / "runs"),
        } | changes
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in job.items() if value is not None}))
        return path

    return write
