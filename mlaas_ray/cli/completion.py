"""What TAB completes beyond options and files: models' names and versions, and the keys of a job."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import typer

from mlaas_ray import __version__
from mlaas_ray.core.cache import cache_folder
from mlaas_ray.core.errors import MlaasError

SERVICE = "http://127.0.0.1:8083"


def model_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the models of the folder, or of the service at ``--url``; after a colon their versions."""
    with suppress(MlaasError, OSError, ValueError):
        url = ctx.params.get("url")
        models = _of_service(url) if url else _of_folder(ctx.params.get("repository"))
        return _matching(models, incomplete)
    return []


def served_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the models of a running service."""
    with suppress(MlaasError, OSError, ValueError):
        url = ctx.params.get("url") or os.environ.get("MLAAS_URL") or SERVICE
        return _matching(_of_service(url), incomplete)
    return []


def job_keys(incomplete: str) -> list[str]:
    """Return the keys that ``--set`` can change, with their equals sign."""
    return [f"{key}=" for key in _keys() if key.startswith(incomplete)]


def _matching(models: dict[str, list[str]], incomplete: str) -> list[str]:
    if ":" in incomplete:
        names = [f"{name}:{version}" for name, versions in models.items() for version in versions]
    else:
        names = list(models)
    return [name for name in names if name.startswith(incomplete)]


def _of_folder(folder: Path | str | None) -> dict[str, list[str]]:
    from mlaas_ray.repository import Repository

    repository = Repository(folder or os.environ.get("MLAAS_REPOSITORY") or "models")
    return {
        name: [*repository.aliases(name), *map(str, repository.versions(name))] for name in repository.names()
    }


def _of_service(url: str) -> dict[str, list[str]]:
    from mlaas_ray.client import Client

    with Client(url) as client:
        return {
            model["name"]: [*model.get("aliases", {}), *map(str, model.get("versions", []))]
            for model in client.models()
        }


def _keys() -> list[str]:
    """Return the keys of a job; they are kept, as the job's description loads Ray, which takes seconds."""
    folder = cache_folder("completion")
    kept = None if folder is None else folder / f"keys-{__version__}.json"
    if kept is not None:
        with suppress(OSError, ValueError):
            found: list[str] = json.loads(kept.read_text())
            return found
    from mlaas_ray.core.settings import paths
    from mlaas_ray.workflows import Job

    keys = sorted(key for key in paths(Job) if "NAME" not in key and "[]" not in key)
    if kept is not None:
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(keys))
    return keys
