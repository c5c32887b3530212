"""``mlaas compare``: two models on the same held-out events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlaas_ray.cli.completion import model_names
from mlaas_ray.cli.output import (
    Address,
    AllowDuplicates,
    Json,
    command,
    emit,
    number,
    table,
    tell,
    with_duplicates,
)
from mlaas_ray.cli.train import Set, Where
from mlaas_ray.cli.training import Display
from mlaas_ray.core.package import ModelPackage

Named = Annotated[
    str, typer.Argument(metavar="NAME[:VERSION]|FOLDER", show_default=False, autocompletion=model_names)
]


@command
def compare(
    first: Named,
    second: Named,
    data: Annotated[
        Path,
        typer.Option(
            "--data", metavar="JOB", help="The job file that says which events.", show_default=False
        ),
    ],
    changes: Set = None,
    allow_duplicates: AllowDuplicates = False,
    repository: Where = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Compare two models on the same held-out events, and say whether the difference is significant.

    The events are those of the job's test part, or of its validation part where it has no test part. Errors
    are those of a bootstrap; as both models see the same events, that of the difference is the smaller one.

        mlaas compare higgs:3 higgs:4 --data job.yaml
        mlaas compare higgs:production runs/higgs-1/package --data job.yaml
    """
    with Display() as display:
        from mlaas_ray.workflows import Job
        from mlaas_ray.workflows import compare as run

        job = Job.load(data, with_duplicates(changes, allow_duplicates))
        packages = [_found(name, job, repository) for name in (first, second)]
        found = run(packages[0], packages[1], job, address=address, on_stage=display.begins)
    if json:
        emit({"first": first, "second": second, **found.document()})
        return
    table(
        ["", first, second, "difference", number("p")],
        [
            (
                name,
                f"{measure.first:.4f} ± {measure.first_error:.4f}",
                f"{measure.second:.4f} ± {measure.second_error:.4f}",
                f"{measure.difference:+.4f} ± {measure.error:.4f}",
                f"{measure.p_value:.2g}",
            )
            for name, measure in (("AUC" if found.name == "auc" else "R²", found.score), ("loss", found.loss))
        ],
    )
    tell(found.sentence(first, second))


def _found(name: str, job: object, repository: Path | None) -> ModelPackage:
    from mlaas_ray.repository import Repository
    from mlaas_ray.workflows.train import repository_of

    if Path(name).is_dir():
        return ModelPackage(name)
    models = Repository(repository_of(job, repository))  # type: ignore[arg-type]
    version = models.find(name)
    return models.get(version.name, version.version)
