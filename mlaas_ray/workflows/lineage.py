"""Lineage: where a model comes from, as far as it can be told: job, files, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mlaas_ray import __version__
from mlaas_ray.streaming import FirstPass
from mlaas_ray.workflows.job import Job

PACKAGES = (
    "awkward",
    "keras",
    "numpy",
    "onnx",
    "onnxruntime",
    "pyarrow",
    "ray",
    "tensorflow",
    "torch",
    "uproot",
    "xgboost",
    "xrootd",
)


def lineage(job: Job, found: FirstPass) -> dict[str, Any]:
    """Describe what a model was made from.

    Returns:
        ``job`` (every key, defaults included), ``files`` (path, tree, identifier, entries, dataset),
        ``versions``, and ``git`` (commit and whether files differed from it; None outside a checkout).
    """
    names = [sample.name for sample in found.samples]
    return {
        "job": job.model_dump(mode="json"),
        "files": [
            {
                "path": file.path,
                "tree": file.tree,
                "uuid": file.uuid,
                "entries": file.entries,
                "dataset": names[file.dataset],
            }
            for file in found.files
        ],
        "versions": {"mlaas-ray": __version__, "python": platform.python_version(), **_versions()},
        "git": _git(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, Any] | None:
    try:
        commit = _run("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_run("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _run(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
