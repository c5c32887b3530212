"""Train what a job file says: ``ray job submit --working-dir . -- python jobs/train.py job.yaml``.

Takes the arguments of ``mlaas train``; the last line it prints is the result as JSON.
"""

from __future__ import annotations

import sys

import typer

from mlaas_ray.cli.train import train

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(train)
    app(args=[*sys.argv[1:], "--json"])
