"""``mlaas materialize``: what a job reads, written once as Parquet shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlaas_ray.cli.output import (
    Address,
    AllowDuplicates,
    Json,
    command,
    emit,
    facts,
    tell,
    with_duplicates,
)
from mlaas_ray.cli.training import Display


@command
def materialize(
    job: Annotated[Path, typer.Argument(help="The job file (YAML).", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the shards; its own.", show_default=False)
    ],
    allow_duplicates: AllowDuplicates = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Write what a job reads as Parquet shards: the events it selects, with the branches it needs.

    For data that are far away, or of which little is selected, when the job will run more than once. Run it
    again after an interruption, and it goes on. Then train on the shards:

        mlaas materialize job.yaml --output shards
        mlaas train shards/job.yaml
    """
    with Display() as display:
        from mlaas_ray.workflows import Job
        from mlaas_ray.workflows.materialize import JOB, RECORD, materialize_job

        record = materialize_job(
            Job.load(job, with_duplicates(None, allow_duplicates)),
            output,
            address=address,
            on_stage=display.begins,
            on_first_pass=display.first_pass,
        )
    total = record["total"]
    if json:
        emit(
            {"output": str(output), "job": str(output / JOB), "record": str(output / RECORD), "total": total}
        )
        return
    facts(
        [
            ("entries planned", f"{total['planned']:,}"),
            ("events written", f"{total['read']:,}"),
            ("cut by the selection", f"{total['cut']:,}"),
            ("skipped", f"{total['skipped']:,}"),
            ("folder", str(output)),
        ]
    )
    tell(f"next: mlaas train {output / JOB}")
