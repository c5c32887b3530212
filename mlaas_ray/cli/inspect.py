"""``mlaas inspect``: what is in files, as training would see it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column

from mlaas_ray.cli.output import (
    Address,
    AllowDuplicates,
    Json,
    Stages,
    command,
    emit,
    number,
    say,
    table,
    tell,
)
from mlaas_ray.core.errors import JobError

if TYPE_CHECKING:
    from mlaas_ray.core.inputs import Inputs
    from mlaas_ray.streaming import Census, FirstPass, ReadingSettings, Sample
    from mlaas_ray.workflows import Job

# Files shown by name; --json has them all.
FILES_SHOWN = 20


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
    allow_duplicates: AllowDuplicates = False,
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
        mlaas inspect root://eospublic.cern.ch//eos/file.root --tree Events
        mlaas inspect data/ --define 'HT=sum(Jet_pt)' --select 'HT > 200'
        mlaas inspect data/ --plots plots
        mlaas inspect 'das:/A/B/NANOAODSIM' --sample 0.01 --bad-files skip
        mlaas inspect job.yaml
    """
    from mlaas_ray.streaming.cautions import cautions

    if no_cache:
        os.environ["MLAAS_CACHE"] = "off"
    with Stages() as stage:
        stage.spin("looking for the files")
        job, samples, inputs, reading = _asked(files, tree)
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
            allow_duplicates=True if allow_duplicates else None,
        )
        found, census = _found(job, samples, inputs, reading, address, stage)
    if job is None:
        warnings = cautions(found)
    else:
        from mlaas_ray.workflows.learning import warnings_of

        warnings = warnings_of(job, found, census)
    if json:
        counts = {} if census is None else {"census": census.document()}
        emit(document(found) | counts | {"warnings": [warning.document() for warning in warnings]})
    else:
        _show(found, census)
        for warning in warnings:
            say(str(warning))
    if plots is not None:
        from mlaas_ray.streaming.plots import draw

        pages = draw(found, plots)
        say(f"{len(pages)} pages of distributions in {plots}")


def _asked(files: list[str], tree: str | None) -> tuple[Job | None, list[Sample], Inputs, ReadingSettings]:
    """Return what a job file says, or the files that were named."""
    from mlaas_ray.core.inputs import Inputs
    from mlaas_ray.streaming import ReadingSettings, Sample

    if len(files) == 1 and files[0].endswith((".yaml", ".yml")):
        from mlaas_ray.workflows import Job

        job = Job.load(files[0])
        return job, job.samples({}), job.wanted, job.reading
    return None, [Sample(files, tree)], Inputs(), ReadingSettings()


def _found(
    job: Job | None,
    samples: list[Sample],
    inputs: Inputs,
    reading: ReadingSettings,
    address: str | None,
    stage: Stages,
) -> tuple[FirstPass, Census | None]:
    """Return what the first pass finds, and how many events pass each cut; Ray is started if it must be."""
    from mlaas_ray.streaming.first_pass import prepare_call

    key = None if job is None or job.split.key is None else tuple(job.split.key)
    call = prepare_call(samples, inputs, reading=reading, key=key, everything=True)
    found, census = call.remembered(), None
    # a sample says nothing of the events that pass, and reading all is what it is to avoid
    counted = (job is not None or inputs.select is not None) and reading.sample == 1
    classes = 0 if job is None or job.kind == "regression" else job.class_count
    if found is not None and counted:
        from mlaas_ray.streaming.census import remembered_census

        census = remembered_census(found, classes)
    if found is None or (counted and census is None):
        from mlaas_ray.streaming import take_census
        from mlaas_ray.workflows import connected
        from mlaas_ray.workflows.sums import summed

        stage.spin("starting Ray")
        with connected(address):
            stage.end()
            found = found or call.run()
            if counted:
                known = found if job is None else replace(found, samples=tuple(summed(job, found.samples)))
                census = take_census(known, reading=reading, classes=classes)
    return found, census


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


def _show(found: FirstPass, census: Census | None) -> None:
    table(
        ["file", "tree", number("events"), number("clusters")],
        [
            (file.path, file.tree or "-", f"{file.entries:,}", f"{len(file.boundaries) - 1:,}")
            for file in found.files[:FILES_SHOWN]
        ],
        title=f"{found.entries:,} events",
        spare=["clusters"],
    )
    if len(found.files) > FILES_SHOWN:
        tell(f"… and {len(found.files) - FILES_SHOWN:,} more files; --json lists them all")
    if census is not None:
        _cut_flow(census)
    _branches(found)
    if found.sampled < 1:
        tell(
            f"a sample: {found.sampled:.3g} of the clusters, {found.features.entries:,} events; "
            "the ranges of all may be wider"
        )
    for choice in found.choices:
        tell(choice)
    for name, paths in list(found.missing.items())[:10]:
        say(f"{name} is missing in {len(paths):,} of the files, such as {paths[0]}")
    for bad in found.skipped[:10]:
        say(f"skipped {bad.source.path}: {bad.reason}")
    if len(found.skipped) > 10:
        say(f"… {len(found.skipped):,} skipped in all")
    if found.left_out:
        names = ", ".join(f"{name} ({kind})" for name, kind in sorted(found.left_out.items())[:10])
        more = f" and {len(found.left_out) - 10} more" if len(found.left_out) > 10 else ""
        say(f"left out, not numeric: {names}{more}")


def _cut_flow(census: Census) -> None:
    """Print how many events of each dataset are left after each cut."""
    rows = []
    for dataset in census.datasets:
        before = dataset.entries
        rows.append((dataset.name, "all events", f"{before:,}", "", ""))
        for cut, left in zip(census.cuts, dataset.passed, strict=True):
            step, whole = (f"{left / total:.1%}" if total else "-" for total in (before, dataset.entries))
            rows.append(("", cut, f"{left:,}", step, whole))
            before = left
    table(
        ["dataset", "cut", number("events"), number("of those before"), number("of all")],
        rows,
        title="\ncut flow",
    )


def _branches(found: FirstPass) -> None:
    """Print a row for each branch; a narrow terminal gets the most telling numbers only."""
    heads = ("min", "5 %", "median", "95 %", "max", "mean", "std", "NaN", "missing")
    rows = []
    for feature in found.features.features:
        seen = feature.statistics
        kind = f"jagged ≤ {feature.multiplicity}" if feature.kind == "jagged" else feature.kind
        numbers = ["-"] * len(heads)
        if seen is not None:
            numbers[7:] = f"{seen.nan + seen.infinite:,}", f"{seen.missing:,}"
            if seen.count and seen.min is not None and seen.max is not None:
                low, middle, high = (seen.quantiles[share] for share in (0.05, 0.5, 0.95))
                values = (seen.min, low, middle, high, seen.max, seen.mean, seen.std)
                numbers[:7] = (f"{value:.4g}" for value in values)
        rows.append((feature.name, kind, str(len(feature.columns)), *numbers))
    # what is 0 of all branches tells least
    empty = [
        name for place, name in enumerate(heads) if place > 6 and all(r[3 + place] in "0-" for r in rows)
    ]
    table(
        ["branch", Column("kind", no_wrap=True), *map(number, ("columns", *heads))],
        rows,
        title=f"\n{found.features.width} columns",
        spare=[*empty, "std", "mean", "5 %", "95 %", "columns", "missing", "NaN"],
    )
