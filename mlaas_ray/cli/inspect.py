"""``mlaas inspect``: what is in ROOT files, as training would see it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from mlaas_ray.cli.output import Address, Json, command, emit, err, out


@command
def inspect(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Files, globs, folders, text files of them, root:// URLs; or one job file (.yaml).",
            show_default=False,
        ),
    ],
    tree: Annotated[
        str | None,
        typer.Option(help="Name of the tree. Default: the only one, or Events.", show_default=False),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", help="Branch or glob to read; repeatable. Default: all numeric."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Branch or glob to leave out.")
    ] = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Look into ROOT files: events, branches, multiplicities and ranges.

    This is the first pass that training makes, so what it shows is what a model will see.

        mlaas inspect data/signal.root --include 'Jet_*' --include MET_pt
        mlaas inspect root://eospublic.cern.ch//eos/opendata/file.root --tree Events
        mlaas inspect job.yaml
    """
    from mlaas_ray.core.inputs import Inputs
    from mlaas_ray.streaming import Sample, first_pass
    from mlaas_ray.workflows import Job, connected

    if len(files) == 1 and files[0].endswith((".yaml", ".yml")):
        job = Job.load(files[0])
        samples, inputs = job.samples, job.wanted
    else:
        samples, inputs = [Sample(files, tree)], Inputs()
    chosen = {"include": include, "exclude": exclude}
    inputs = inputs.model_copy(update={key: tuple(names) for key, names in chosen.items() if names})
    samples = [sample.found() for sample in samples]
    with connected(address):
        found = first_pass(samples, inputs)
    if json:
        emit(_document(found))
    else:
        _show(found)


def _document(found: Any) -> dict[str, Any]:
    return {
        "entries": found.entries,
        "columns": found.features.width,
        "files": [
            {
                "path": file.path,
                "tree": file.tree,
                "entries": file.entries,
                "clusters": max(0, len(file.boundaries) - 1),
                "dataset": found.samples[file.dataset].name,
            }
            for file in found.files
        ],
        "features": [feature.model_dump(mode="json") for feature in found.features.features],
        "left_out": found.left_out,
    }


def _show(found: Any) -> None:
    files = Table("file", "tree", "events", "clusters", title=f"{found.entries:,} events")
    for file in found.files:
        files.add_row(file.path, file.tree, f"{file.entries:,}", f"{max(0, len(file.boundaries) - 1):,}")
    out.print(files)
    branches = Table(
        "branch",
        "kind",
        "columns",
        "min",
        "max",
        "mean",
        "std",
        "NaN",
        title=f"{found.features.width} columns",
    )
    for feature in found.features.features:
        seen = feature.statistics
        numbers = (
            ("-",) * 4 if not seen.count else (f"{x:.6g}" for x in (seen.min, seen.max, seen.mean, seen.std))
        )
        branches.add_row(
            feature.name, feature.kind, str(len(feature.columns)), *numbers, f"{seen.nan + seen.infinite:,}"
        )
    out.print(branches)
    if found.left_out:
        names = ", ".join(f"{name} ({kind})" for name, kind in sorted(found.left_out.items())[:10])
        more = f" and {len(found.left_out) - 10} more" if len(found.left_out) > 10 else ""
        err.print(f"left out, not numeric: {names}{more}", highlight=False, markup=False)
