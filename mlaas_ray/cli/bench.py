"""``mlaas bench``: load on a running service, and what its callers see."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn

from mlaas_ray.cli.completion import served_names
from mlaas_ray.cli.output import Json, command, emit, err, facts, number, say, table
from mlaas_ray.core.errors import JobError, ServiceError

if TYPE_CHECKING:
    from mlaas_ray.client import Client
    from mlaas_ray.client.load import Call, Check, LoadReport, LoadSettings, Tally

# Different requests that are prepared, for all models together; fewer where they are large.
_CALLS = 1000
_CALLS_CHECKED = 200
_BYTES = 16 << 20
# Near a whole processor the generator measures itself.
_BUSY = 0.9

MakeCall = Callable[[str, "Sequence[str] | None", "Sequence[Sequence[float]]"], "Call"]


class Form(StrEnum):
    """How rows are sent."""

    json = "json"
    proto = "proto"
    arrow = "arrow"
    raw = "raw"


class Arrivals(StrEnum):
    """How an open loop's requests come."""

    constant = "constant"
    poisson = "poisson"


@command
def bench(
    url: Annotated[
        str, typer.Option("--url", "-u", envvar="MLAAS_URL", help="Where the service is.")
    ] = "http://127.0.0.1:8083",
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME[:VERSION]",
            help="The model; repeatable, asked in turn; may be left out when there is one.",
            autocompletion=served_names,
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, help="Connections: at most one request each.")
    ] = 50,
    seconds: Annotated[float, typer.Option("--seconds", "-s", help="Measured time.")] = 10.0,
    protocol: Annotated[Form, typer.Option(help="How rows are sent.")] = Form.json,
    rate: Annotated[
        float | None,
        typer.Option(help="Requests a second, sent when due: an open loop. Default: a closed loop."),
    ] = None,
    arrivals: Annotated[
        Arrivals, typer.Option(help="With --rate: evenly, or at random as independent callers'.")
    ] = Arrivals.constant,
    rows: Annotated[int, typer.Option(min=1, help="Rows in a request.")] = 1,
    warmup: Annotated[float, typer.Option(help="Seconds of load before, not counted.")] = 1.0,
    timeout: Annotated[float, typer.Option(help="Longest wait for an answer, seconds.")] = 30.0,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare each answer with the one its row has alone (json, one row)."),
    ] = False,
    json_line: Json = False,
) -> None:
    """Put load on a running service: throughput, percentiles of the latency, errors by kind.

    Without --rate each of --concurrency callers asks again when it has its answer (a closed loop): that finds
    the highest throughput. With it requests start when they are due, and their latency counts from then (an
    open loop): that finds what users wait at that rate. Ctrl-C ends early. 503 and 429 with Retry-After count
    as refused. The exit status is 1 when there was an error or a wrong answer, 2 when nothing could be
    measured.

        mlaas bench --model higgs --concurrency 200 --seconds 20
        mlaas bench --model higgs --rate 1000 --seconds 60
        mlaas bench --model higgs --protocol arrow --rows 1000
        mlaas bench -m higgs -m top --check --json
    """
    from mlaas_ray.client import Client
    from mlaas_ray.client.load import Load, LoadSettings

    if check and (protocol is not Form.json or rows > 1):
        raise JobError("--check compares single rows in JSON", "Leave --protocol and --rows out")
    settings = LoadSettings.of(
        {
            "concurrency": concurrency,
            "seconds": seconds,
            "warmup": warmup,
            "rate": rate,
            "arrivals": arrivals.value,
            "timeout": timeout,
        },
        "the options",
    )
    with Client(url) as client:
        names = model or [_only(client)]
        count = max(1, (_CALLS_CHECKED if check else _CALLS) // len(names))
        calls = _in_turn(
            [
                _calls(client, name, protocol, rows, range(number * count, (number + 1) * count))
                for number, name in enumerate(names)
            ]
        )
        judge = _references(client, calls) if check else None
    with _Bar(settings) as bar:
        report = Load(url, calls, settings, judge=judge, on_progress=bar.show).run()
    document = {
        "url": url,
        "models": names,
        "protocol": protocol.value,
        "concurrency": concurrency,
        "rate": rate,
        "arrivals": arrivals.value if rate else None,
        "rows_per_request": rows,
        **report.document(),
        "check": judge.document() if judge else None,
    }
    if json_line:
        emit(document)
    else:
        _print(document, report)
    if report.errors or (judge and judge.wrong):
        raise typer.Exit(1)


def _only(client: Client) -> str:
    names = [str(model["name"]) for model in client.models()]
    if len(names) == 1:
        return names[0]
    raise JobError(
        f"{client.url} has {len(names)} models",
        f"Name one with --model: {', '.join(names[:8]) or 'none yet'}",
    )


def _calls(client: Client, model: str, form: Form, rows: int, seeds: range) -> list[Call]:
    """Prepare different requests of random rows: one for each seed, fewer where they are large."""
    from mlaas_ray.client.load import draw_rows, json_call, proto_call, raw_call

    make: MakeCall = {
        Form.json: json_call,
        Form.proto: proto_call,
        Form.arrow: arrow_call,
        Form.raw: raw_call,
    }[form]
    params = client.params(model)
    width, columns = params.get("width"), params.get("columns")
    if not isinstance(width, int) or width < 1:
        raise ServiceError(f"{client.url} does not say how many values {model} takes", "Ask another model")
    whole = not str(params.get("dtype", "float32")).startswith("float")
    first = make(model, columns, draw_rows(rows, width, seeds[0], whole=whole))
    more = seeds[1 : max(1, _BYTES // len(first.body))]
    return [first, *(make(model, columns, draw_rows(rows, width, seed, whole=whole)) for seed in more)]


def arrow_call(model: str, keys: Sequence[str] | None, rows: Sequence[Sequence[float]]) -> Call:
    """Ask a model's own route with an Arrow stream of float32.

    Args:
        model: ``name`` or ``name:version``.
        keys: The columns, one of Arrow each; without, the rows are lists in one column x.
        rows: The values, in their order.
    """
    import pyarrow as pa

    from mlaas_ray.client.load import Call, predict_path

    if keys:
        arrays = [pa.array(values, pa.float32()) for values in zip(*rows, strict=True)]
        batch = pa.record_batch(arrays, names=list(keys))
    else:
        batch = pa.record_batch([pa.array(rows, pa.list_(pa.float32(), len(rows[0])))], names=["x"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    headers = {"Content-Type": "application/vnd.apache.arrow.stream"}
    return Call(predict_path(model), sink.getvalue().to_pybytes(), headers, len(rows))


def _in_turn(calls: list[list[Call]]) -> list[Call]:
    return [call for turn in zip(*calls, strict=False) for call in turn]


def _references(client: Client, calls: list[Call]) -> Check:
    """Ask for each row alone."""
    from mlaas_ray.client.load import Check

    return Check([client.predict_document(json.loads(call.body)) for call in calls])


class _Bar:
    """A bar for the time gone, on a terminal."""

    def __init__(self, settings: LoadSettings) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[rate]:,.0f} req/s  {task.fields[errors]:,} errors"),
            console=err,
            transient=True,
            # drawn when there is news; a thread for it would take time from the load
            auto_refresh=False,
            disable=not (err.is_terminal and sys.stderr.isatty()),
        )
        self._warmup = settings.warmup
        self._task = self._progress.add_task("", total=settings.seconds, rate=0.0, errors=0)
        self._last = (-settings.warmup, 0)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, gone: float, tally: Tally) -> None:
        """Move the bar; the rate is that since it last moved."""
        before, good = self._last
        self._last = (gone, tally.good)
        self._progress.update(
            self._task,
            completed=max(0.0, gone),
            description="warming up" if gone < 0 else "measuring",
            rate=(tally.good - good) / (gone - before) if gone > before else 0.0,
            errors=sum(tally.errors.values()),
            refresh=True,
        )


def _print(document: dict[str, Any], report: LoadReport) -> None:
    _tables(document, report)
    if report.client_busy > _BUSY:
        say(f"the generator took {report.client_busy:.0%} of a processor: it may be what was measured")
    if report.unsent:
        say(
            f"{report.unsent:,} requests were due and never sent: "
            f"the service did not keep up, or --concurrency is too small for --rate"
        )


def _tables(document: dict[str, Any], report: LoadReport) -> None:
    loop = f"{document['rate']:g} requests/s" if document["rate"] else "closed loop"
    errors = sum(report.errors.values())
    rates = [f"{value:,.0f}" for value in (report.req_s, report.rows_s)]
    how = [
        f"{document['protocol']}, {document['rows_per_request']} rows a request",
        f"{document['concurrency']} connections",
        loop,
        f"{report.seconds:g} s",
    ]
    table(
        [number(head) for head in ("req/s", "rows/s", "requests", "refused", "errors")],
        [[*rates, *(f"{value:,}" for value in (report.requests, report.refused, errors))]],
        title=f"{', '.join(document['models'])}: {', '.join(how)}",
    )
    latencies = (report.p50_ms, report.p90_ms, report.p99_ms, report.p999_ms, report.max_ms)
    times = [("latency", *map(_ms, latencies))]
    if document["rate"]:
        late = (report.behind_p50_ms, None, report.behind_p99_ms, None, report.behind_max_ms)
        times.append(("behind schedule", *map(_ms, late)))
    table(["ms", *(number(head) for head in ("p50", "p90", "p99", "p99.9", "max"))], times)
    statuses = ", ".join(f"{status}: {count:,}" for status, count in report.statuses.items())
    counts = [("statuses", statuses or "none")]
    if report.errors:
        counts.append(("errors", ", ".join(f"{kind}: {count:,}" for kind, count in report.errors.items())))
    if found := document["check"]:
        counts.append(
            (
                "check",
                f"{found['answers']:,} answers, {found['wrong']:,} wrong, largest difference "
                f"{found['largest_difference']:.2g}, {found['distinct']} different references",
            )
        )
    counts.append(("bytes", f"{report.sent_bytes:,} sent, {report.received_bytes:,} received"))
    if report.client_cpu_us is not None:
        busy = f"{report.client_cpu_us:g} µs CPU a request, {report.client_busy:.0%} busy"
        counts.append(("generator", busy))
    facts(counts)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"
