"""``mlaas predict``: events to a running service, predictions back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mlaas_ray.cli.output import Json, command, emit, out
from mlaas_ray.core.errors import EventError

_ROWS_SHOWN = 20


@command
def predict(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[NAME[:VERSION]]", help="The model; may be left out when there is one."),
    ] = None,
    url: Annotated[
        str, typer.Option("--url", "-u", envvar="MLAAS_URL", help="Where the service is.")
    ] = "http://127.0.0.1:8083",
    event: Annotated[
        str | None, typer.Option(help="One event as JSON: a number for each branch, a list for a jagged one.")
    ] = None,
    events: Annotated[
        Path | None, typer.Option(help="File with a JSON list of such events; - for standard input.")
    ] = None,
    keys: Annotated[str | None, typer.Option(help="Column names, separated by commas.")] = None,
    values: Annotated[
        str | None,
        typer.Option(help="Values in the order of the keys, or of the model's columns; nan where missing."),
    ] = None,
    json_line: Json = False,
) -> None:
    """Ask a running service for predictions of one or many events.

    Without --event, --events and --values, standard input is read: an event,
    a list of events, or a document as /json takes it.

        mlaas predict higgs --event '{"MET_pt": 31.2, "Jet_pt": [52.1, 33.0]}'
        mlaas predict higgs:2 --events events.json
        mlaas predict higgs --keys MET_pt,Jet_pt_0 --values 31.2,52.1
        mlaas predict higgs --values 31.2,52.1,nan
        cat event.json | mlaas predict higgs --json
    """
    from mlaas_ray.client import Client

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


def _document(event: str | None, events: Path | None, keys: str | None, values: str | None) -> dict[str, Any]:
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


def _read(path: Path | None) -> dict[str, Any]:
    if path is None or str(path) == "-":
        if sys.stdin.isatty():
            raise EventError("no event is given", "Give --event, --events or --values, or pipe JSON in")
        content, where = _parse(sys.stdin.read(), "standard input"), "standard input"
    else:
        where = str(path)
        try:
            content = _parse(path.read_text(), where)
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
