"""``mlaas schema``: one JSON line, which is the schema of job files."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from mlaas_ray.cli.main import app
from mlaas_ray.workflows.schema import job_schema


def test_the_schema_is_printed_as_one_json_line() -> None:
    done = CliRunner().invoke(app, ["schema"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout) == job_schema()
