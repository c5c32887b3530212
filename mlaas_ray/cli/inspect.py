"""``mlaas inspect``: what is in files, as training would see it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from mlaas_ray.cli.output import Address, Json, command, emit, err, out
from mlaas_ray.core.errors import JobError

if TYPE_CHECKING:
    from mlaas_ray.core.inputs import Inputs
    from mlaas_ray.streaming import FirstPass, ReadingSettings, Sample
    from mlaas_ray.workflows import Job

# Files shown by name; --json has them all.
FILES_SHOWN = 20
# Columns of a terminal on which all numbers fit.
WIDE = 130


@command
def inspect(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Files, globs, folders, text files of them, URLs, datasets; or one job file (.yaml).",
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
        list[str] | None, typer.Option("--exclude", help="Branch or glob to leave out; repeatable.")
    ] = None,
    define: Annotated[
        list[str] | None,
        typer.Option("--define", metavar="NAME=EXPRESSION", help="New branch; repeatable, in order."),
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(metavar="EXPRESSION", help="Only events for which it is true.", show_default=False),
    ] = None,
    nested: Annotated[
        str | None,
        typer.Option(help="vector<vector>: leave | flatten. Default: leave.", show_default=False),
    ] = None,
    missing: Annotated[
        str | None,
        typer.Option(
            help="A branch that some files lack: fail | fill | drop. Default: fail.", show_default=False
        ),
    ] = None,
    bad_files: Annotated[
        str | None,
        typer.Option(help="A file that cannot be read: fail | skip. Default: fail.", show_default=False),
    ] = None,
    sample: Annotated[
        float | None,
        typer.Option(help="Share of the clusters to measure, 0 to 1. Default: 1.", show_default=False),
    ] = None,
    redirector: Annotated[
        list[str] | None,
        typer.Option("--redirector", help="XRootD redirector for /store/… names; repeatable, in order."),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw every distribution there.", show_default=False)
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Look at every file, whatever is remembered of it.")
    ] = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Look into files: events, branches, multiplicities, ranges and quantiles.

    This is the first pass that training makes, so what it shows is what a model will see. What was learnt of
    a file is remembered (in MLAAS_CACHE, or ~/.cache/mlaas_ray) until the file changes: asked again, or asked
    by a training, the answer comes at once.

        mlaas inspect data/signal.root --include 'Jet_*' --include MET_pt
        mlaas inspect root://eospublic.cern.ch//eos/opendata/file.root --tree Events
        mlaas inspect data/ --define 'HT=sum(Jet_pt)' --select 'nJet >= 2 and HT > 200' --plots plots
        mlaas inspect 'das:/A/B/NANOAODSIM' --sample 0.01 --bad-files skip --missing drop
        mlaas inspect job.yaml
    """
    from mlaas_ray.streaming.cautions import cautions
    from mlaas_ray.streaming.first_pass import prepare_call

    if no_cache:
        os.environ["MLAAS_CACHE"] = "off"
    samples, inputs, reading, key, job = _asked(files, tree)
    inputs = _changed(
        inputs,
        include=tuple(include) if include else None,
        # a job's labels and weights stay out
        exclude=(*inputs.exclude, *exclude) if exclude else None,
        define={**inputs.define, **_definitions(define or [])} if define else None,
        select=select,
    )
    reading = _changed(
        reading,
        nested=nested,
        missing=missing,
        bad_files=bad_files,
        sample=sample,
        redirectors=tuple(redirector) if redirector else None,
    )
    call = prepare_call(samples, inputs, reading=reading, key=key, everything=True)
    found = call.remembered()
    counted: tuple[Any, ...] = ()
    if found is None or job is not None:
        from mlaas_ray.streaming import take_census
        from mlaas_ray.workflows import connected

        with connected(address):
            found = found or call.run()
            if job is not None:
                classes = [] if job.kind == "regression" else job.classes
                census = take_census(found, reading=reading, classes=len(classes))
                counted = (census, classes, job.split.parts)
    warnings = cautions(found, *counted)
    if json:
        emit(document(found) | {"warnings": [warning.document() for warning in warnings]})
    else:
        _show(found)
        for warning in warnings:
            _note(str(warning))
    if plots is not None:
        from mlaas_ray.streaming.plots import draw

        pages = draw(found, plots)
        err.print(f"{len(pages)} pages of distributions in {plots}", highlight=False, soft_wrap=True)


def _asked(
    files: list[str], tree: str | None
) -> tuple[list[Sample], Inputs, ReadingSettings, tuple[str, ...] | None, Job | None]:
    """Return what a job file says, or the files that were named."""
    from mlaas_ray.core.inputs import Inputs
    from mlaas_ray.streaming import ReadingSettings, Sample

    if len(files) == 1 and files[0].endswith((".yaml", ".yml")):
        from mlaas_ray.workflows import Job

        job = Job.load(files[0])
        key = getattr(job.split, "key", None)
        return job.samples({}), job.wanted, job.reading, None if key is None else tuple(key), job
    return [Sample(files, tree)], Inputs(), ReadingSettings(), None, None


def _changed(settings: Any, **options: Any) -> Any:
    """Return settings with the options that were given, checked as a job file's are."""
    given = {name: value for name, value in options.items() if value is not None}
    return type(settings).of({**dict(settings), **given}, "the options") if given else settings


def _definitions(texts: list[str]) -> dict[str, str]:
    definitions = {}
    for text in texts:
        name, equals, expression = text.partition("=")
        if not (equals and name.strip() and expression.strip()) or expression.startswith("="):
            raise JobError(
                f"--define {text!r} defines nothing", "Write NAME=EXPRESSION, such as HT=sum(Jet_pt)"
            )
        definitions[name.strip()] = expression.strip()
    return definitions


def document(found: FirstPass) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    return {
        "entries": found.entries,
        "measured": found.features.entries,
        "sampled": found.sampled,
        "columns": found.features.width,
        "key": list(found.key),
        "files": [
            {
                "path": file.path,
                "tree": file.tree,
                "format": file.format,
                "uuid": file.uuid,
                "size": file.size,
                "entries": file.entries,
                "clusters": len(file.boundaries) - 1,
                "boundaries": list(file.boundaries),
                "bytes": file.bytes,
                "dataset": found.samples[file.dataset].name,
            }
            for file in found.files
        ],
        "skipped": [
            {"path": bad.source.path, "dataset": found.samples[bad.dataset].name, "reason": bad.reason}
            for bad in found.skipped
        ],
        "missing": {name: list(paths) for name, paths in found.missing.items()},
        "features": [feature.model_dump(mode="json") for feature in found.features.features],
        "left_out": found.left_out,
    }


def _show(found: FirstPass) -> None:
    console = Console(file=out.file, width=_width())
    console.print(_files(found))
    if len(found.files) > FILES_SHOWN:
        out.print(
            f"… and {len(found.files) - FILES_SHOWN:,} more files; --json lists them all", highlight=False
        )
    console.print(_branches(found))
    if found.sampled < 1:
        out.print(
            f"a sample: {found.sampled:.3g} of the clusters, {found.features.entries:,} events; "
            "the ranges of all may be wider",
            highlight=False,
            soft_wrap=True,
        )
    for name, paths in list(found.missing.items())[:10]:
        _note(f"{name} is missing in {len(paths):,} of the files, such as {paths[0]}")
    for bad in found.skipped[:10]:
        _note(f"skipped {bad.source.path}: {bad.reason}")
    if len(found.skipped) > 10:
        _note(f"… {len(found.skipped):,} skipped in all")
    if found.left_out:
        names = ", ".join(f"{name} ({kind})" for name, kind in sorted(found.left_out.items())[:10])
        more = f" and {len(found.left_out) - 10} more" if len(found.left_out) > 10 else ""
        _note(f"left out, not numeric: {names}{more}")


def _note(text: str) -> None:
    err.print(text, highlight=False, markup=False, soft_wrap=True)


def _files(found: FirstPass) -> Table:
    table = Table(
        Column("file", overflow="fold"),
        "tree",
        *_numeric("events", "clusters"),
        title=f"{found.entries:,} events",
        box=SIMPLE,
    )
    for file in found.files[:FILES_SHOWN]:
        table.add_row(file.path, file.tree or "-", f"{file.entries:,}", f"{len(file.boundaries) - 1:,}")
    return table


def _branches(found: FirstPass) -> Table:
    """Return a row for each branch; a narrow terminal gets the most telling numbers only."""
    heads = ("min", "5 %", "median", "95 %", "max", "mean", "std")
    shown = [0, 2, 4] if _width() < WIDE else range(len(heads))
    table = Table(
        Column("branch", no_wrap=True), Column("kind", no_wrap=True), *_numeric("columns"),
        *_numeric(*(heads[i] for i in shown), "NaN", "missing"),
        title=f"{found.features.width} columns", box=SIMPLE, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for feature in found.features.features:
        seen = feature.statistics
        kind = f"jagged ≤ {feature.multiplicity}" if feature.kind == "jagged" else feature.kind
        numbers = ["-"] * len(heads)
        if seen is not None and seen.count and seen.min is not None and seen.max is not None:
            low, middle, high = (seen.quantiles[share] for share in (0.05, 0.5, 0.95))
            numbers = [
                f"{value:.4g}" for value in (seen.min, low, middle, high, seen.max, seen.mean, seen.std)
            ]
        counts = [f"{seen.nan + seen.infinite:,}", f"{seen.missing:,}"] if seen is not None else ["-", "-"]
        table.add_row(feature.name, kind, str(len(feature.columns)), *(numbers[i] for i in shown), *counts)
    return table


def _numeric(*heads: str) -> list[Column]:
    return [Column(head, justify="right", no_wrap=True) for head in heads]


def _width() -> int:
    """Return the columns of the terminal; what is written to a file or a pipe has room."""
    return out.width if sys.__stdout__ is not None and sys.__stdout__.isatty() else 200
