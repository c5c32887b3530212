"""``mlaas simulate``: the simulated events alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlaas_ray.cli.output import Json, command, emit, out


@command
def simulate(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")] = Path("quickstart/data"),
    events: Annotated[int, typer.Option(min=1, help="Events of each process.")] = 50_000,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal events.")] = 1,
    json: Json = False,
) -> None:
    """Write simulated events as ROOT files: background.root, signal.root and top.root.

    W bosons with jets, with a Higgs boson, and from top quarks (docs/toy.md). The example jobs
    jobs/examples/toy-*.yaml train on them.
    """
    from mlaas_ray.workflows.toy import PROCESSES, write_sample

    files = [write_sample(folder / f"{name}.root", name, events, seed) for name in PROCESSES]
    if json:
        emit({"files": [str(file) for file in files], "events": events})
        return
    for file in files:
        out.print(f"{file}: {events:,} events", highlight=False, soft_wrap=True)
