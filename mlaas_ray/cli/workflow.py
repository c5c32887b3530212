"""``mlaas workflow``: MLaaS4HEP's command, with its arguments."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from mlaas_ray.cli.output import Address, AllowDuplicates, Json, command, emit, say
from mlaas_ray.cli.train import result, show_result
from mlaas_ray.cli.training import Display
from mlaas_ray.core.errors import JobError


@command
def workflow(
    files: Annotated[
        str,
        typer.Option(
            help="Text file with one path a line, or paths with commas between.", show_default=False
        ),
    ],
    labels: Annotated[
        str,
        typer.Option(
            help="Text file with one class number for each file, or such numbers, or a branch.",
            show_default=False,
        ),
    ],
    model: Annotated[str, typer.Option(help="Python file with model(input_dim).", show_default=False)],
    params: Annotated[str | None, typer.Option(help="JSON file of parameters.", show_default=False)] = None,
    preproc: Annotated[
        str | None, typer.Option(help="JSON file with new branches and cuts.", show_default=False)
    ] = None,
    fout: Annotated[
        Path | None,
        typer.Option(
            help="Where the model goes: a SavedModel's folder, or an ONNX file.", show_default=False
        ),
    ] = None,
    framework: Annotated[
        str | None,
        typer.Option(help="keras or torch. Default: as the model file imports.", show_default=False),
    ] = None,
    storage: Annotated[str, typer.Option(help="Folder or URL of runs.")] = "runs",
    allow_duplicates: AllowDuplicates = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Train as MLaaS4HEP's workflow does, from the same files.

    The exported model takes raw values, NaN where there is none: it holds the normalisation that MLaaS4HEP
    left to its users. docs/training/mlaas4hep.md tells what became of each parameter.

        mlaas workflow --files files.txt --labels labels.txt --model model.py
    """
    from mlaas_ray.workflows import train as run
    from mlaas_ray.workflows.mlaas4hep import recipe_job

    if framework not in (None, "keras", "torch"):
        raise JobError(f"no framework {framework!r} for a recipe", "Use keras or torch")
    if fout is not None and fout.exists():
        raise JobError(f"{fout} exists", "Give another --fout, or delete it")
    job = recipe_job(
        files,
        labels,
        model,
        params,
        preproc,
        framework=framework,  # type: ignore[arg-type]
        storage=storage,
        allow_duplicates=allow_duplicates,
    )
    with Display() as display:
        package = run(job, address=address, hooks=display.hooks)
    if fout is not None:
        if package.model_path.is_dir():
            shutil.copytree(package.model_path, fout)
        else:
            fout.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package.model_path, fout)
        say(f"the model: {fout}")
    assert display.run is not None
    if json:
        emit({**result(package, display.run), "model": str(fout or package.model_path)})
    else:
        show_result(package, display.run)
