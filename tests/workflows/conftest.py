"""A small job on simulated samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


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
