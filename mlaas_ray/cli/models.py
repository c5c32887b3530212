"""``mlaas models``: what is published, in a repository's folder or at a running service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from mlaas_ray.cli.output import Json, command, emit, out
from mlaas_ray.core.errors import MlaasError

if TYPE_CHECKING:
    from mlaas_ray.core.package import ModelPackage
    from mlaas_ray.repository import ModelVersion

models_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@models_app.callback()
def models() -> None:
    """List, show, publish and delete models, in a folder or (with --url) at a running service.

    mlaas models list
    mlaas models show higgs:2
    mlaas models publish runs/higgs --name higgs
    mlaas models publish model.onnx --name higgs --url http://127.0.0.1:8083
    mlaas models alias higgs:2 production
    mlaas models delete higgs:1
    mlaas models deploy higgs --replicas 1:8 --url http://127.0.0.1:8083
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
    typer.Argument(metavar="NAME[:VERSION]", help="The model, with a version or alias; alone, the newest."),
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
        where = url or repository
        out.print(f"no models in {where}: publish one with mlaas models publish PACKAGE", highlight=False)
        return
    # which runtime was chosen is known where the model runs
    runtime = ["runtime", "a row, us"] if url else []
    table = Table("model", "versions", "format", *runtime, "columns", "AUC", "created")
    for model in models:
        names: dict[int, list[str]] = {}
        for alias, number in model["aliases"].items():
            names.setdefault(number, []).append(alias)
        numbers = ", ".join(
            f"{number} ({', '.join(names[number])})" if number in names else str(number)
            for number in model["versions"]
        )
        auc = "" if model["auc"] is None else f"{model['auc']:.4f}"
        error = f"[red]{escape(model['error'])}[/]" if model["error"] else str(model["format"])
        chosen = [model["runtime"] or "", _microseconds(model["row_s"])] if url else []
        table.add_row(
            model["name"], numbers, error, *chosen, str(model["width"] or ""), auc, model["created"] or ""
        )
    out.print(table)


@models_app.command()
@command
def show(model: Model, repository: Repo = MODELS, url: Url = None, json_line: Json = False) -> None:
    """Show one version: its columns, labels, metrics and where it comes from."""
    details = _remote_details(url, model) if url else _local_details(repository, model)
    if json_line:
        emit(details)
        return
    table = Table(show_header=False)
    for name, value in details.items():
        if value not in (None, "", [], {}):
            table.add_row(name, escape(_shown(value)))
    out.print(table)


@models_app.command()
@command
def publish(
    package: Annotated[Path, typer.Argument(help="Folder that mlaas train wrote.")],
    name: Annotated[str | None, typer.Option(help="Publish under this name.")] = None,
    repository: Repo = MODELS,
    url: Url = None,
    json_line: Json = False,
) -> None:
    """Publish a package as the next version of its name; a running service answers with it at once.

    With --url also a SavedModel folder, an ONNX file, or a tar of one.
    """
    if url:
        from mlaas_ray.client import Client

        with Client(url) as client:
            published, number = client.upload(package, name)
    else:
        from mlaas_ray.core.package import ModelPackage
        from mlaas_ray.repository import Repository

        version = Repository(repository).publish(ModelPackage(package), name)
        published, number = version.name, version.version
    if json_line:
        emit({"name": published, "version": number})
    else:
        out.print(f"published {published}:{number} in {url or repository}", highlight=False, soft_wrap=True)


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
        out.print(f"{version.name}:{name} is {version}", highlight=False)


@models_app.command()
@command
def delete(model: Model, repository: Repo = MODELS, url: Url = None, json_line: Json = False) -> None:
    """Delete a version (NAME:VERSION), or all versions of a model (NAME)."""
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
        out.print(f"deleted {', '.join(deleted)}", highlight=False)


Service = Annotated[
    str,
    typer.Option("--url", "-u", envvar="MLAAS_URL", help="The running service."),
]
SERVICE = "http://127.0.0.1:8083"


@models_app.command()
@command
def deploy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model.")],
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
        out.print(f"{name} has replicas of its own ({replicas}) at {url}", highlight=False, soft_wrap=True)


@models_app.command()
@command
def withdraw(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model.")],
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
        out.print(f"{name} has no replicas of its own any more", highlight=False)


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
        out.print("all models share the same replicas: see mlaas models deploy", highlight=False)
        return
    table = Table("model", "replicas", "fewest", "most", "CPUs", "GPUs")
    for each in found:
        wanted = each["wanted"]
        scale = wanted["replicas"]
        row = [
            each["model"],
            each["replicas"],
            scale["fewest"],
            scale["most"],
            wanted["cpus"],
            wanted["gpus"],
        ]
        table.add_row(*map(str, row))
    out.print(table)


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


def _shown(value: Any) -> str:
    import json

    if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
        return ", ".join(map(str, value))
    return json.dumps(value, indent=1, default=str) if isinstance(value, dict | list) else str(value)
