"""``mlaas train``: a job file to a model package, and into the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mlaas_ray.cli.output import Address, Json, command, emit, err, out
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.repository import ModelVersion


@command
def train(
    job: Annotated[Path, typer.Argument(help="The job file (YAML).", show_default=False)],
    publish: Annotated[
        bool, typer.Option("--publish", help="Publish the model, even if the job file does not say so.")
    ] = False,
    repository: Annotated[
        Path | None,
        typer.Option(
            "--repository",
            help="Where to publish, unless the job says. Default: MLAAS_REPOSITORY, else ./models.",
            show_default=False,
        ),
    ] = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Train a model on ROOT files, as a job file says.

    The smallest job file:

        name: my-model
        datasets:
          signal: {files: "signal/*.root", label: 1}
          background: {files: "background/*.root", label: 0}
        publish: {}

    Everything else has a default; docs/job.md lists all keys.
    """
    from mlaas_ray.workflows import Job
    from mlaas_ray.workflows import publish as publish_package
    from mlaas_ray.workflows import train as run

    described = Job.load(job)
    package = run(described, address=address, on_first_pass=show_inputs, on_epoch=show_epoch)
    version = (
        publish_package(described, package, repository) if publish or described.publish is not None else None
    )
    if json:
        emit(result(package, version))
    else:
        _show_result(package, version)


def result(package: ModelPackage, version: ModelVersion | None) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    metrics = package.metrics
    return {
        "name": version.name if version else package.name,
        "package": str(package.path),
        "version": version.version if version else None,
        "metrics": {key: metrics[key] for key in ("validation", "training") if key in metrics},
        "events_per_s": metrics["events_per_s"],
        "seconds": metrics["seconds"],
    }


def show_inputs(found: Any) -> None:
    """Print what the first pass found, on standard error."""
    counts = ", ".join(
        f"{sample.name} {sum(f.entries for f in found.files if f.dataset == index):,}"
        for index, sample in enumerate(found.samples)
    )
    err.print(
        f"{found.entries:,} events in {len(found.files)} files ({counts}); {found.features.width} inputs",
        highlight=False,
        soft_wrap=True,
    )


def show_epoch(report: Any) -> None:
    """Print a line an epoch, on standard error."""
    err.print(
        f"epoch {report.epoch:>3}/{report.epochs}   loss {report.loss:.4f}   validation: "
        f"loss {report.validation_loss:.4f}  AUC {report.auc:.4f}  accuracy {report.accuracy:.4f}   "
        f"{report.events_per_s:,.0f} events/s",
        highlight=False,
        soft_wrap=True,
    )


def _show_result(package: ModelPackage, version: ModelVersion | None) -> None:
    judged = package.metrics["validation"]
    table = Table(show_header=False, box=None)
    for name, value in (
        ("model", f"{version}" if version else package.name),
        ("validation AUC", f"{judged['auc']:.4f}"),
        ("validation loss", f"{judged['loss']:.4f}"),
        ("validation accuracy", f"{judged['accuracy']:.4f}"),
        ("events/s in training", f"{package.metrics['events_per_s']:,.0f}"),
        ("package", str(package.path)),
    ):
        table.add_row(name, value)
    out.print(table)
    if version:
        out.print(f"next: mlaas models show {version}, or mlaas serve", highlight=False)
    else:
        out.print(f"next: mlaas models publish {package.path}", highlight=False, soft_wrap=True)
