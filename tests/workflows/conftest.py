"""Simulated samples and a job on them, small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlaas_ray.workflows.toy import write_sample


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two files of 3,000 events each, ``signal`` and ``background``."""
    folder = tmp_path_factory.mktemp("samples")
    return {
        name: write_sample(folder / f"{name}.root", name, 3000, seed=3) for name in ("signal", "background")
    }


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
