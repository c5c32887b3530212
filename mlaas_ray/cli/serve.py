"""``mlaas serve``: a repository's models over HTTP, until Ctrl-C."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlaas_ray.cli.output import Address, Json, command, emit, err, say
from mlaas_ray.core.cluster import ray_logs
from mlaas_ray.core.errors import JobError

if TYPE_CHECKING:
    from mlaas_ray.inference.service import Service
    from mlaas_ray.inference.settings import ServiceSettings

# What is served unless another folder is named; it may come with the first model that is published.
MODELS = Path("models")


@command
def serve(
    repository: Annotated[
        Path,
        typer.Option(
            "--repository", "-r", envvar="MLAAS_REPOSITORY", help="Folder with the published models."
        ),
    ] = MODELS,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8083,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A name by which models may be uploaded, of a proxy say; repeatable."
        ),
    ] = None,
    replicas: Annotated[
        str, typer.Option(metavar="N|MIN:MAX", help="Processes that hold models and predict.")
    ] = "1",
    gateways: Annotated[str, typer.Option(metavar="N|MIN:MAX", help="Processes that speak HTTP.")] = "1",
    predict_in: Annotated[
        str,
        typer.Option(
            metavar="auto|gateways|replicas",
            help="Where models live; auto has light ones in gateways, which saves a way, others in replicas.",
        ),
    ] = "auto",
    coalesce: Annotated[
        bool,
        typer.Option(
            "--coalesce/--plain", help="Gather rows before Serve sees a request, or give Serve each request."
        ),
    ] = True,
    threads: Annotated[int, typer.Option(min=1, help="Threads a model may use for a prediction.")] = 1,
    memory: Annotated[
        int | None,
        typer.Option(
            min=1, help="Memory for the models of a process, MiB; default: a quarter of the machine's."
        ),
    ] = None,
    cpus: Annotated[float, typer.Option(min=0, help="CPUs that Ray reserves for each process.")] = 0.1,
    max_request: Annotated[int, typer.Option(min=1, help="Largest body of a prediction, MiB.")] = 64,
    max_upload: Annotated[
        int, typer.Option(min=1, help="Largest upload, MiB; unpacked it may have four times that.")
    ] = 1024,
    address: Address = None,
    json_line: Json = False,
) -> None:
    """Serve the models of a repository over HTTP until Ctrl-C.

    Answers at /json (events as keys and values, values alone, or raw jagged
    events), /proto, /models/NAME/predict (Arrow, npy, raw float32), /models,
    /params/NAME, /upload, /delete, /deployments, /status and /health. What is
    published, uploaded or deleted meanwhile counts as soon as it can answer.

        mlaas serve
        mlaas serve --repository /data/models --port 9000 --replicas 4
        mlaas serve --address auto

        curl http://127.0.0.1:8083/models
        mlaas predict NAME --event '{"MET_pt": 31.2, "Jet_pt": [52.1, 33.0]}'
    """
    from mlaas_ray.inference.service import serve_until_stopped
    from mlaas_ray.inference.settings import ServiceSettings

    settings = ServiceSettings.of(
        {
            "repository": repository,
            "host": host,
            "port": port,
            "allowed_hosts": allow_host or (),
            "replicas": replicas,
            "gateways": gateways,
            "predict_in": predict_in,
            "coalesce": coalesce,
            "threads": threads,
            "cpus": cpus,
            "request_bytes": max_request << 20,
            "upload_bytes": max_upload << 20,
            "unpacked_bytes": 4 * max_upload << 20,
            "address": address or os.environ.get("RAY_ADDRESS") or None,
        }
        | ({} if memory is None else {"memory_mb": memory})
    )
    if repository != MODELS and not settings.repository.is_dir():
        raise JobError(
            f"there is no folder {settings.repository} of models",
            f"Correct it, or make it: mkdir -p {settings.repository}",
        )
    if not json_line:
        say(f"starting a service for the models in {settings.repository} …")
    serve_until_stopped(settings, lambda service: _announce(service, settings, json_line))
    if not json_line:
        say("stopped")


def _announce(service: Service, settings: ServiceSettings, json_line: bool) -> None:
    from mlaas_ray.client import Client

    with Client(service.url) as client:
        models = client.models()
        if json_line:
            emit({"url": service.url, "models": [model["name"] for model in models], "pid": service.pid})
            return
        err.print(f"[bold green]ready[/] at {service.url}", highlight=False)
        logs = ray_logs()
        if logs is not None:
            say(f"logs: {logs}/serve")
        if not models:
            where = f" --repository {settings.repository}"
            say(f"no models in {settings.repository} yet: mlaas models publish PACKAGE{where}")
            return
        for model in models:
            say(f"  {model['name']}:{model['version']}")
        say(f"try: {_curl(service.url, client, models[0])}")


def _curl(url: str, client: Any, model: dict[str, Any]) -> str:
    """Return a line that asks the model for the example that the service gives of it."""
    import json
    import shlex

    if "error" in model:
        return f"curl -s {url}/models"
    document = {"model": model["name"]} | client.params(model["name"])["example"]
    return f"curl -s {url}/json -d {shlex.quote(json.dumps(document))}"
