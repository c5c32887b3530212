"""``mlaas predict``: events to a model, predictions back; of a whole file into a file beside it."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mlaas_ray.cli.completion import served_names
from mlaas_ray.cli.output import Json, command, emit, err, out
from mlaas_ray.core.errors import EventError

_ROWS_SHOWN = 20


@command
def predict(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME[:VERSION]",
            help="The model; may be left out when there is one.",
            autocompletion=served_names,
        ),
    ] = None,
    url: Annotated[
        str, typer.Option("--url", "-u", envvar="MLAAS_URL", help="Where the service is.")
    ] = "http://127.0.0.1:8083",
    event: Annotated[
        str | None, typer.Option(help="One event as JSON: a number for each branch, a list for a jagged one.")
    ] = None,
    events: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="JSON file with a list of such events, - for standard input; or a .root, .parquet, .csv or "
            ".jsonl file or URL, whose scores are written to a file.",
        ),
    ] = None,
    keys: Annotated[str | None, typer.Option(help="Column names, separated by commas.")] = None,
    values: Annotated[
        str | None,
        typer.Option(help="Values in the order of the keys, or of the model's columns; nan where missing."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="With a file of events: file for the scores, .root or .parquet. "
            "Default: FILE_MODEL_scores here.",
            show_default=False,
        ),
    ] = None,
    tree: Annotated[
        str | None,
        typer.Option(
            help="With a ROOT file: its tree. Default: the only one, or Events.", show_default=False
        ),
    ] = None,
    repository: Annotated[
        Path | None,
        typer.Option(
            "--repository",
            "-r",
            help="With a file of events: run the model of this folder here, without a service.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    json_line: Json = False,
) -> None:
    """Ask a model for predictions: of some events, or of a whole file.

    Without --event, --events and --values, standard input is read: an event,
    a list of events, or a document as /json takes it.

    The scores of a ROOT file are written as a friend tree, those of other
    files as Parquet: one entry for each of the file's, NaN where the model's
    selection is not passed.

        mlaas predict higgs --events data.root --tree Events --output scores.root
        mlaas predict higgs:2 --events data.parquet --repository models
        mlaas predict higgs --event '{"MET_pt": 31.2, "Jet_pt": [52.1, 33.0]}'
        mlaas predict higgs:2 --events events.json
        mlaas predict higgs --keys MET_pt,Jet_pt_0 --values 31.2,52.1
        mlaas predict higgs --values 31.2,52.1,nan
        cat event.json | mlaas predict higgs --json
    """
    from mlaas_ray.client import Client

    if events is not None and _is_file(events):
        if event is not None or values is not None or keys is not None:
            raise EventError("something is given beside a file of events", "Give --events alone")
        _predict_file(model, events, url, repository, output, tree, force, json_line)
        return
    if output or tree or repository or force:
        raise EventError(
            "--output, --tree, --repository and --force are for files of events",
            "Give --events FILE.root, .parquet, .csv or .jsonl",
        )
    document = _document(event, events, keys, values)
    if model is not None:
        document["model"] = model
    with Client(url) as client:
        answers = client.predict_document(document)
    rows = answers if answers and isinstance(answers[0], list) else [answers]
    if json_line:
        emit({"model": document.get("model"), "predictions": rows})
        return
    outputs = len(rows[0])
    table = Table("event", *(["prediction"] if outputs == 1 else [f"p{i}" for i in range(outputs)]))
    for number, row in enumerate(rows[:_ROWS_SHOWN]):
        table.add_row(str(number), *(f"{value:.6g}" if value is not None else "nan" for value in row))
    out.print(table)
    if len(rows) > _ROWS_SHOWN:
        out.print(f"… {len(rows)} in all; --json prints them all", highlight=False)


def _is_file(events: str) -> bool:
    """Tell a file that is read entry by entry from a JSON document."""
    from mlaas_ray.streaming.formats import format_of
    from mlaas_ray.streaming.sources import file_names

    if events == "-" or events.lower().endswith(".json"):
        return False
    for name in file_names(events):
        if "://" in name or format_of(name) is not None:
            return True
        with suppress(OSError), Path(name).open("rb") as file:
            return file.read(4) == b"root"
    return False


def _predict_file(
    model: str | None,
    events: str,
    url: str,
    repository: Path | None,
    output: Path | None,
    tree: str | None,
    force: bool,
    json_line: bool,
) -> None:
    from mlaas_ray.client import Client
    from mlaas_ray.workflows.scores import TREE, published, score_file, served

    progress = Progress(
        TextColumn("scoring"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %  {task.completed:,.0f} events"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    bar = progress.add_task("", total=None)
    with Client(url) as client, progress:
        scorer = served(client, model) if repository is None else published(repository, model)
        done = score_file(
            events,
            scorer,
            output,
            tree=tree,
            force=force,
            told=lambda now, all_: progress.update(bar, completed=now, total=all_),
        )
    rate = done.events / max(done.seconds, 1e-9)
    if json_line:
        emit(
            {
                "model": scorer.model,
                "events": done.events,
                "selected": done.selected,
                "output": str(done.output),
                "tree": TREE if done.output.suffix == ".root" else None,
                "branches": done.branches,
                "events_per_s": round(rate, 1),
            }
        )
        return
    left = (
        f", {done.events - done.selected:,} of them not selected: NaN" if done.selected < done.events else ""
    )
    where = f", tree {TREE}" if done.output.suffix == ".root" else ""
    for line in (
        f"{scorer.model}: {done.events:,} events in {done.seconds:.1f} s ({rate:,.0f} events/s){left}",
        f"{done.output}{where}: {', '.join(done.branches)}",
    ):
        out.print(line, highlight=False, soft_wrap=True, markup=False)


def _document(event: str | None, events: str | None, keys: str | None, values: str | None) -> dict[str, Any]:
    given = [option for option in (event, events, values) if option is not None]
    if len(given) > 1:
        raise EventError("several of --event, --events and --values are given", "Give one of them")
    if keys is not None and values is None:
        raise EventError("--keys is given without --values", "Give as many --values")
    if event is not None:
        return {"event": _parse(event, "--event")}
    if values is not None:
        document: dict[str, Any] = {"values": _numbers(values)}
        return document if keys is None else document | {"keys": [key.strip() for key in keys.split(",")]}
    return _read(events)


def _read(path: str | None) -> dict[str, Any]:
    if path is None or path == "-":
        if sys.stdin.isatty():
            raise EventError("no event is given", "Give --event, --events or --values, or pipe JSON in")
        content, where = _parse(sys.stdin.read(), "standard input"), "standard input"
    else:
        where = path
        try:
            content = _parse(Path(path).read_text(), where)
        except UnicodeDecodeError:
            raise EventError(f"{path} is no text", "Give JSON, .root, .parquet, .csv or .jsonl") from None
        except OSError as error:
            raise EventError(f"cannot read {path}: {error.strerror}", "Give a file of events") from None
    if isinstance(content, list):
        return {"events": content}
    if not isinstance(content, dict):
        raise EventError(f"{where} holds no event", "Give a JSON object, or a list of such")
    if {"event", "events", "values"} & {name.lower() for name in content}:
        return {name.lower(): value for name, value in content.items()}
    return {"event": content}


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise EventError(
            f"{where} is not JSON: {error}", 'Write {"MET_pt": 31.2, "Jet_pt": [52.1]}'
        ) from None


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise EventError(f"--values: {error}", "Write numbers separated by commas: 31.2,52.1,nan") from None
