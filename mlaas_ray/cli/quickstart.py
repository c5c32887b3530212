"""``mlaas quickstart``: the whole way on simulated events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlaas_ray.cli.output import Json, command, emit, facts, tell
from mlaas_ray.cli.training import Display


@command
def quickstart(
    folder: Annotated[Path, typer.Option(help="Where files, runs and models go.")] = Path("quickstart"),
    events: Annotated[int, typer.Option(min=1000, help="Simulated events of each sample.")] = 50_000,
    framework: Annotated[str, typer.Option(help="torch, keras or xgboost.")] = "torch",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the service.")] = 8083,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running.")] = False,
    json: Json = False,
) -> None:
    """Go the whole way on simulated events: ROOT files, training, repository, service, predictions.

    Signal is a Higgs boson and a W, background a W with jets (docs/toy.md). Two workers train; the model is
    published and served, and asked for one event in two ways. Everything that was started is stopped, unless
    you say --keep; the files stay in the folder.
    """
    from mlaas_ray.workflows.quickstart import quickstart as run

    with Display() as display:

        def say(text: str) -> None:
            display.say(text)
            display.stage.spin("under way")

        done = run(
            folder,
            events=events,
            framework=framework,
            port=port,
            keep=keep,
            say=say,
            hooks=display.hooks,
        )
    judged, speed = done.package.metrics["validation"], done.package.metrics["events_per_s"]
    if json:
        emit(
            {
                "auc": judged["auc"],
                "train_events_per_s": speed,
                "model": done.package.name,
                "version": done.version,
                "prediction_keys": done.prediction_keys,
                "prediction_event": done.prediction_event,
                "seconds": round(done.seconds, 2),
                "url": done.url if done.kept else None,
                "pid": done.kept,
            }
        )
        return
    tell(f"quickstart, {done.seconds:.0f} s")
    facts(
        [
            ("training", f"{speed:,.0f} events/s on 2 workers"),
            ("validation AUC", f"{judged['auc']:.4f}"),
            ("model", f"{done.package.name}:{done.version}"),
            ("prediction by keys and values", f"{done.prediction_keys:.6f}"),
            ("prediction of the raw event", f"{done.prediction_event:.6f}"),
            ("service", done.url + (f" (running, process {done.kept})" if done.kept else " (stopped)")),
        ]
    )
    if done.kept:
        tell(f"stop it with: kill {done.kept}")
    else:
        start = f"mlaas serve --repository {done.repository} --port {port}"
        tell(f"start it again with:\n  {start}")
    tell(f"and try:\n  {done.curl}")
