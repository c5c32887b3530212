"""``mlaas models``: what is published, in a repository's folder or at a running service."""

from __future__ import annotations

import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column

from mlaas_ray.cli.completion import SERVICE, model_names, served_names
from mlaas_ray.cli.help import App
from mlaas_ray.cli.output import Json, command, emit, err, facts, number, say, table, tell
from mlaas_ray.core.errors import MlaasError, PackageError, RepositoryError, nearest

if TYPE_CHECKING:
    from mlaas_ray.core.package import ModelPackage
    from mlaas_ray.repository import ModelVersion

models_app = App()


@models_app.callback()
def models() -> None:
    """List, show, publish and delete models, in a folder or (with --url) at a running service.

        mlaas models list
        mlaas models show higgs:2
        mlaas models publish runs/higgs --name higgs
        mlaas models publish model.onnx --name mine
        mlaas models publish model.onnx --url http://127.0.0.1:8083
        mlaas models alias higgs:2 production
        mlaas models delete higgs:1
        mlaas models deploy higgs --replicas 1:8

    The folder is ./models, or what MLAAS_REPOSITORY or --repository names.
    """


Repo = Annotated[
    Path,
    typer.Option("--repository", "-r", envvar="MLAAS_REPOSITORY", help="Folder with the published models."),
]
Url = Annotated[
    str | None,
    typer.Option("--url", "-u", help="Ask a running service instead, such as http://127.0.0.1:8083."),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="NAME[:VERSION]",
        help="The model, with a version or alias; alone, the newest.",
        autocompletion=model_names,
    ),
]
MODELS = Path("models")


@models_app.command("list")
@command
def list_models(repository: Repo = MODELS, url: Url = None, json_line: Json = False) -> None:
    """List the models and their versions."""
    models = _remote_models(url) if url else _local_models(repository)
    if json_line:
        emit({"models": models})
        return
    if not models:
        where = "" if url or repository.is_dir() else f" ({repository.absolute()} is not there yet)"
        tell(f"no models in {url or repository}{where}: publish one with mlaas models publish PACKAGE")
        return
    # which runtime was chosen is known where the model runs
    runtime: list[str | Column] = ["runtime", number("a row, us")] if url else []
    rows = []
    for model in models:
        names: dict[int, list[str]] = {}
        for alias, version in model["aliases"].items():
            names.setdefault(version, []).append(alias)
        versions = ", ".join(
            f"{version} ({', '.join(names[version])})" if version in names else str(version)
            for version in model["versions"]
        )
        chosen = [model["runtime"] or "", _microseconds(model["row_s"])] if url else []
        auc = "" if model["auc"] is None else f"{model['auc']:.4f}"
        kind = "damaged" if model["error"] else model["format"]
        rows.append(
            [model["name"], versions, kind, *chosen, model["width"] or "", auc, model["created"] or ""]
        )
    table(
        ["model", "versions", "format", *runtime, number("columns"), number("AUC"), number("created")],
        rows,
        spare=["created", "format", "columns"],
    )
    for model in models:
        if model["error"]:
            say(f"{model['name']}: {model['error']}")


@models_app.command()
@command
def show(model: Model, repository: Repo = MODELS, url: Url = None, json_line: Json = False) -> None:
    """Show one version: its columns, labels, metrics and where it comes from."""
    details = _remote_details(url, model) if url else _local_details(repository, model)
    if json_line:
        emit(details)
        return
    facts(_summary(details))
    if "path" in details:
        tell(details["path"])
    tell("--json prints all of it")


@models_app.command()
@command
def publish(
    package: Annotated[Path, typer.Argument(help="A package, or the folder of the run that made it.")],
    name: Annotated[str | None, typer.Option(help="Publish under this name.")] = None,
    repository: Repo = MODELS,
    url: Url = None,
    json_line: Json = False,
) -> None:
    """Publish a package as the next version of its name; a running service answers with it at once.

    Also a SavedModel folder, an ONNX file, or a tar of one, which is loaded and tried
    first, here or at the service.
    """
    package = _package_of(package)
    if url:
        from mlaas_ray.client import Client

        with Client(url) as client:
            published, version = client.upload(package, name)
    else:
        made = _publish_here(package, name, repository)
        published, version = made.name, made.version
    if json_line:
        emit({"name": published, "version": version})
    else:
        tell(f"published {published}:{version} in {url or repository}")


@models_app.command()
@command
def alias(
    model: Model,
    name: Annotated[str, typer.Argument(help="What to call the version, such as production.")],
    repository: Repo = MODELS,
    json_line: Json = False,
) -> None:
    """Let a name such as production stand for a version, in place of the one it stood for before."""
    from mlaas_ray.repository import Repository

    folder = Repository(repository)
    version = folder.find(model)
    folder.set_alias(version.name, name, version.version)
    if json_line:
        emit({"name": version.name, "version": version.version, "alias": name})
    else:
        tell(f"{version.name}:{name} is {version}")


@models_app.command()
@command
def delete(
    model: Model,
    repository: Repo = MODELS,
    url: Url = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Also what an alias stands for.")] = False,
    json_line: Json = False,
) -> None:
    """Delete a version (NAME:VERSION), or all versions of a model (NAME).

    A version that an alias such as production stands for is deleted when you confirm it, or with --force.
    """
    if not force:
        _confirm(model, _aliases(repository, url, model))
    if url:
        from mlaas_ray.client import Client

        with Client(url) as client:
            deleted = client.delete(model)
    else:
        from mlaas_ray.repository import ModelVersion, Repository

        deleted = [str(version) for version in Repository(repository).delete(*ModelVersion.parse(model))]
    if json_line:
        emit({"deleted": deleted})
    else:
        tell(f"deleted {', '.join(deleted)}")


Service = Annotated[
    str,
    typer.Option("--url", "-u", envvar="MLAAS_URL", help="The running service."),
]
Served = Annotated[
    str, typer.Argument(metavar="NAME", help="The model.", autocompletion=served_names, show_default=False)
]


@models_app.command()
@command
def deploy(
    name: Served,
    replicas: Annotated[
        str, typer.Option(metavar="N|MIN:MAX", help="How many; 0:N lets the last one go when nobody asks.")
    ] = "1",
    cpus: Annotated[float, typer.Option(min=0, help="CPUs that the cluster reserves for each.")] = 0.1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs that the cluster reserves for each.")] = 0.0,
    url: Service = SERVICE,
    json_line: Json = False,
) -> None:
    """Give a model replicas of its own at a running service, beside those that all models share.

    They grow and shrink with its own load. Asked again, it changes how many there are.

        mlaas models deploy higgs --replicas 1:8
        mlaas models deploy resnet --replicas 0:2 --gpus 1
    """
    from mlaas_ray.client import Client

    with Client(url) as client:
        client.deploy(name, replicas=replicas, cpus=cpus, gpus=gpus)
        deployed = [each for each in client.deployments() if each["model"] == name]
    if json_line:
        emit({"deployments": deployed})
    else:
        tell(f"{name} has replicas of its own ({replicas}) at {url}")


@models_app.command()
@command
def withdraw(
    name: Served,
    url: Service = SERVICE,
    json_line: Json = False,
) -> None:
    """Let a model's own replicas go: those that all models share answer for it again."""
    from mlaas_ray.client import Client

    with Client(url) as client:
        client.withdraw(name)
    if json_line:
        emit({"withdrawn": name})
    else:
        tell(f"{name} has no replicas of its own any more")


@models_app.command()
@command
def deployments(url: Service = SERVICE, json_line: Json = False) -> None:
    """List the models that have replicas of their own at a running service."""
    from mlaas_ray.client import Client

    with Client(url) as client:
        found = client.deployments()
    if json_line:
        emit({"deployments": found})
        return
    if not found:
        tell("all models share the same replicas: see mlaas models deploy")
        return
    table(
        ["model", *(number(head) for head in ("replicas", "fewest", "most", "CPUs", "GPUs"))],
        [
            (
                each["model"],
                each["replicas"],
                each["wanted"]["replicas"]["fewest"],
                each["wanted"]["replicas"]["most"],
                each["wanted"]["cpus"],
                each["wanted"]["gpus"],
            )
            for each in found
        ],
    )


def _publish_here(path: Path, name: str | None, repository: Path) -> ModelVersion:
    """Publish a package, or make one of what a service takes as an upload, as the service does."""
    from mlaas_ray.core.package import MANIFEST, ModelPackage
    from mlaas_ray.repository import Repository

    folder = Repository(repository)
    if (path / MANIFEST).exists():
        return folder.publish(ModelPackage(path), name)
    from mlaas_ray.client.bundle import open_bundle
    from mlaas_ray.inference.inspection import inspect_apart
    from mlaas_ray.inference.settings import ServiceSettings
    from mlaas_ray.inference.uploads import publish_bundle

    timeout_s = ServiceSettings(repository=repository).load_timeout_s
    with tempfile.TemporaryDirectory(prefix="mlaas-publish-") as passing, open_bundle(path, name) as bundle:
        archive = Path(passing) / "bundle"
        with archive.open("wb") as file:
            shutil.copyfileobj(bundle, file)
        return publish_bundle(folder, archive, sys.maxsize, partial(inspect_apart, timeout_s=timeout_s))


def _package_of(path: Path) -> Path:
    """Return the package that is meant by a folder: itself, its run's, or that of the only run below it.

    Also by the beginning of a run's name: ``runs/higgs`` of ``runs/higgs-20261126-101500-ab12``.

    Raises:
        PackageError: When it is a run without a package, or there are several; they are named.
    """
    from mlaas_ray.core.package import MANIFEST

    if path.is_file() or (path / MANIFEST).exists():
        return path
    for pattern in (f"package/{MANIFEST}", f"*/package/{MANIFEST}", f"../{path.name}-*/package/{MANIFEST}"):
        where, pattern = (path.parent, pattern[3:]) if pattern.startswith("..") else (path, pattern)
        found = sorted((file.parent for file in where.glob(pattern)), reverse=True)
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(map(str, found[:5])) + (f", … ({len(found)} in all)" if len(found) > 5 else "")
            raise PackageError(f"{path} has {len(found)} packages", f"Name one, the newest first: {shown}")
    if not path.exists():
        raise PackageError(
            f"there is no {path}", nearest(path.name, (one.name for one in path.parent.glob("*")))
        )
    if (path / "job.yaml").exists():
        raise PackageError(
            f"the run {path} has no package, as its training has not ended",
            f"Go on with it: mlaas train --resume {path}",
        )
    return path


def _aliases(repository: Path, url: str | None, model: str) -> list[str]:
    """Return the aliases that would go with what is to be deleted."""
    from mlaas_ray.repository import ModelVersion, Repository

    name, reference = ModelVersion.parse(model)
    known: dict[str, int]
    if url:
        from mlaas_ray.client import Client

        with Client(url) as client:
            known = next((one.get("aliases", {}) for one in client.models() if one["name"] == name), {})
        version = known.get(reference, 0) if isinstance(reference, str) else reference
    else:
        folder = Repository(repository)
        known, version = folder.aliases(name), None if reference is None else folder.find(model).version
    return [alias for alias, number in known.items() if version in (None, number)]


def _confirm(model: str, aliases: list[str]) -> None:
    if not aliases:
        return
    name = model.partition(":")[0]
    what = f"with {model} go the aliases {', '.join(f'{name}:{alias}' for alias in aliases)}"
    if not (sys.stdin.isatty() and err.is_terminal):
        raise RepositoryError(what, "Give them to another version first, or delete with --force")
    if not typer.confirm(f"{what}: delete all?", err=True):
        raise typer.Exit(1)


def _local_models(folder: Path) -> list[dict[str, Any]]:
    from mlaas_ray.repository import Repository

    repository = Repository(folder)
    models = []
    for name in repository.names():
        row: dict[str, Any] = {"name": name, "versions": [], "aliases": {}}
        row |= {"format": None, "width": None, "auc": None, "created": None, "error": None}
        try:
            row |= {"versions": repository.versions(name), "aliases": repository.aliases(name)}
            package = repository.get(name)
            row |= {"format": package.manifest.model_format, "width": package.signature.width}
            row |= {"auc": _auc(package.metrics), "created": _when(package.manifest.created.isoformat())}
        except (MlaasError, ValueError) as error:  # one damaged package does not hide the others
            row["error"] = str(error)
        models.append(row)
    return models


def _remote_models(url: str) -> list[dict[str, Any]]:
    from mlaas_ray.client import Client

    with Client(url) as client:
        return [
            {
                "name": model["name"],
                "versions": model.get("versions", [model["version"]]),
                "aliases": model.get("aliases", {}),
                "format": model.get("format"),
                "width": model.get("width"),
                "auc": _auc(model.get("metrics", {})),
                "created": _when(model.get("created")),
                "error": model.get("error"),
                "runtime": model.get("runtime", {}).get("chosen"),
                "row_s": next(iter(model.get("runtime", {}).get("seconds", {}).values()), None),
            }
            for model in client.models()
        ]


def _local_details(folder: Path, model: str) -> dict[str, Any]:
    from mlaas_ray.repository import Repository

    repository = Repository(folder)
    version = repository.find(model)
    package = repository.get(version.name, version.version)
    aliases = [name for name, number in repository.aliases(version.name).items() if number == version.version]
    return _details(version, package, repository.versions(version.name), aliases)


def _details(
    version: ModelVersion, package: ModelPackage, versions: list[int], aliases: list[str]
) -> dict[str, Any]:
    from mlaas_ray.core.example import branches_to_send

    features = package.features
    return {
        "name": version.name,
        "version": version.version,
        "versions": versions,
        "aliases": aliases,
        "path": str(package.path),
        "task": package.manifest.task,
        "format": package.manifest.model_format,
        "framework": package.manifest.framework,
        "created": package.manifest.created.isoformat(),
        "width": package.signature.width,
        "columns": list(features.columns) if features else None,
        "branches": branches_to_send(features) if features else None,
        "classes": package.labels,
        "metrics": package.metrics,
        "signature": package.signature.model_dump(mode="json"),
        "lineage": package.lineage,
    }


def _remote_details(url: str, model: str) -> dict[str, Any]:
    from mlaas_ray.client import Client

    with Client(url) as client:
        details = client.params(model)
    details.pop("features", None)  # how rows are made, for programs
    return details


def _auc(metrics: dict[str, Any]) -> float | None:
    validation = metrics.get("validation")
    auc = validation.get("auc") if isinstance(validation, dict) else None
    return float(auc) if isinstance(auc, int | float) else None


def _microseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.0f}"


def _when(created: str | None) -> str | None:
    return created[:16].replace("T", " ") if created else None


def _summary(details: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a person wants to know of a version, by name."""
    metrics, lineage = details.get("metrics") or {}, details.get("lineage") or {}
    alias = f" ({', '.join(details['aliases'])})" if details.get("aliases") else ""
    classes, framework = ", ".join(map(str, details.get("classes") or [])), details.get("framework")
    task = details.get("task")
    kind = task["kind"] if isinstance(task, dict) else task
    answers = ": ".join(text for text in (kind, classes) if text)
    # how much the loss grows, where that is defined
    known = [(name, one[0]) for name, one in (metrics.get("importance") or {}).items() if one[0] is not None]
    importance = sorted(known, key=lambda item: -item[1])
    files = lineage.get("files") or []
    packages = (lineage.get("versions") or {}).items()
    rows = [
        ("model", f"{details['name']}:{details['version']}{alias}"),
        ("versions", ", ".join(map(str, details.get("versions") or []))),
        ("answers", answers),
        ("format", f"{details['format']}{f', from {framework}' if framework else ''}"),
        ("runtime", _runtime(details.get("runtime") or {})),
        ("created", _when(details.get("created")) or ""),
        *((f"{part} events", _scores(metrics.get(part))) for part in ("training", "validation")),
        ("branches", ", ".join(_branch(*item) for item in (details.get("branches") or {}).items())),
        ("columns", f"{details['width']}: {', '.join(_runs(details.get('columns') or []))}".rstrip(": ")),
        ("most important", ", ".join(f"{name} {value:.3g}" for name, value in importance[:6])),
        ("made of", f"{len(files)} files, {sum(f['entries'] for f in files):,} events" if files else ""),
        ("made with", ", ".join(f"{name} {version}" for name, version in packages)),
        ("git", _shown(lineage.get("git"))),
    ]
    return [(name, text) for name, text in rows if text]


def _runtime(found: dict[str, Any]) -> str:
    """Return what runs the model at a service, and how long a call takes."""
    times = ", ".join(
        f"{float(s) * 1e6:.0f} us for {rows} rows" for rows, s in found.get("seconds", {}).items()
    )
    return ": ".join(text for text in (found.get("chosen"), times) if text)


def _scores(scores: Any) -> str:
    if not isinstance(scores, dict):
        return ""
    count = f"{scores['events']:,}: " if "events" in scores else ""
    values = (f"{'AUC' if n == 'auc' else n} {v:.4f}" for n, v in scores.items() if isinstance(v, float))
    return count + ", ".join(values)


def _branch(name: str, kind: Any) -> str:
    return f"{name}[]" if isinstance(kind, dict) and kind.get("kind") != "flat" else name


def _runs(columns: list[str]) -> list[str]:
    """Shorten columns of one branch: ``Jet_pt_0 … Jet_pt_9``."""
    parted: dict[str, list[str]] = {}
    for column in columns:
        base, _, slot = column.rpartition("_")
        parted.setdefault(base if slot.isdigit() else column, []).append(column)
    return [", ".join(names) if len(names) < 3 else f"{names[0]} … {names[-1]}" for names in parted.values()]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return "" if value is None else str(value)
