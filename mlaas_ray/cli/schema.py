"""``mlaas schema``: what a job file may say, for editors."""

from __future__ import annotations

from mlaas_ray.cli.output import command, emit


@command
def schema() -> None:
    """Print the JSON Schema of job files, by which editors complete and check them.

    The same is in docs/job.schema.json. In VS Code (with the YAML extension), the first line of a job file:

        # yaml-language-server: $schema=job.schema.json
    """
    from mlaas_ray.workflows.schema import job_schema

    emit(job_schema())
