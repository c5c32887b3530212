"""``mlaas train``: a job file to a model package, and into the repository."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlaas_ray.cli.completion import job_keys, model_names
from mlaas_ray.cli.output import (
    Address,
    AllowDuplicates,
    Json,
    command,
    emit,
    facts,
    say,
    tell,
    with_duplicates,
)
from mlaas_ray.cli.training import Display
from mlaas_ray.core.errors import JobError
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.core.storage import check_writable
from mlaas_ray.repository import ModelVersion

if TYPE_CHECKING:
    from mlaas_ray.workflows.run_folder import RunFolder

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the job; repeatable.",
        show_default=False,
        autocompletion=job_keys,
    ),
]
Where = Annotated[
    Path | None,
    typer.Option(
        "--repository",
        help="The models' folder, unless the job says. Default: MLAAS_REPOSITORY, else ./models.",
        show_default=False,
    ),
]


@command
def train(
    job: Annotated[Path | None, typer.Argument(help="The job file (YAML).", show_default=False)] = None,
    changes: Set = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on with an interrupted run: its folder or URL.",
            show_default=False,
        ),
    ] = None,
    first: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME[:VERSION]",
            help="Begin with the weights of a published model, on its columns.",
            show_default=False,
            autocompletion=model_names,
        ),
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Publish the model, even if the job file does not say so.")
    ] = False,
    allow_duplicates: AllowDuplicates = False,
    repository: Where = None,
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

    Everything else has a default; docs/job.md lists all keys, and mlaas schema tells editors.

        mlaas train job.yaml --set train.epochs=3 --set train.workers=2
        mlaas train --resume runs/my-model-20261126-101500-ab12
        mlaas train job.yaml --from my-model:production
    """
    if (job is None) == (resume is None):
        raise JobError("there is no job to train", "Give a job file, or --resume RUN")
    if resume is not None and first is not None:
        raise JobError("a run that goes on has weights of its own", "Leave out --from")
    changes = with_duplicates(changes, allow_duplicates)
    with Display() as display, _stoppable(display):
        from mlaas_ray.workflows import Job, published_if_wanted
        from mlaas_ray.workflows import resume as go_on
        from mlaas_ray.workflows import train as run
        from mlaas_ray.workflows.train import repository_of

        if resume is not None:
            described, package = go_on(resume, address=address, hooks=display.hooks, changes=changes)
        else:
            assert job is not None
            described = Job.load(job, changes)
            if publish or described.publish is not None:
                check_writable(repository_of(described, repository))
            begin = _published(described, first, repository) if first else None
            package = run(described, address=address, hooks=display.hooks, first=begin)
        decision = published_if_wanted(described, package, repository, wanted=publish, address=address)
    assert display.run is not None
    if json:
        emit(result(package, display.run, decision.version, decision.reason))
    else:
        show_result(package, display.run, decision.version, decision.reason)


@contextmanager
def _stoppable(display: Display) -> Iterator[None]:
    """Say how to go on with a run that Ctrl-C or SIGTERM ends; SIGTERM ends it as orderly as Ctrl-C."""
    status = 130

    def terminated(number: int, frame: object) -> None:
        nonlocal status
        status = 143
        signal.raise_signal(signal.SIGINT)

    # a program that calls the command from a thread, or has a handler of its own, keeps its ways
    ours = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminated) if ours else None
    try:
        yield
    except KeyboardInterrupt:
        way = f"; go on with: mlaas train --resume {display.run}" if display.run is not None else ""
        say(f"stopped{way}")
        raise typer.Exit(status) from None
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)


def _published(job: Any, name: str, repository: Path | None) -> ModelPackage:
    from mlaas_ray.repository import Repository
    from mlaas_ray.workflows.train import repository_of

    models = Repository(repository_of(job, repository))
    version = models.find(name)
    return models.get(version.name, version.version)


def result(
    package: ModelPackage, run: RunFolder, version: ModelVersion | None = None, reason: str = ""
) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    metrics = package.metrics
    return {
        "name": version.name if version else package.name,
        "run": run.url,
        "package": run.place("package"),
        "report": run.place("package", "report.html"),
        "version": version.version if version else None,
        **({"not_published": reason} if reason and version is None else {}),
        "metrics": {key: metrics[key] for key in ("validation", "training") if key in metrics},
        "events_per_s": metrics["events_per_s"],
        "seconds": metrics["seconds"],
        "export_difference": metrics["export_difference"],
        "warnings": metrics.get("warnings", []),
    }


def show_result(
    package: ModelPackage, run: RunFolder, version: ModelVersion | None = None, reason: str = ""
) -> None:
    """Print what came of a training."""
    judged = package.metrics["validation"]
    scores = [
        (f"validation {'AUC' if name == 'auc' else name}", f"{value:.4f}")
        for name, value in judged.items()
        if isinstance(value, float)
    ]
    if judged.get("without"):
        scores.append(("left out of the score", f"{', '.join(judged['without'])} (enlarge split.validation)"))
    speed = f"{package.metrics['events_per_s']:,.0f}"
    facts([("model", str(version or package.name)), *scores, ("events/s in training", speed)])
    # not among them, where a narrow terminal would break them
    for name in ("package", "package/report.html"):
        tell(run.place(name))
    if reason:
        tell(reason)
    if version:
        tell(f"next: mlaas models show {version}, or mlaas serve")
    else:
        tell(f"next: mlaas train --resume {run} --publish")
