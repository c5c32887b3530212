"""The ``mlaas`` command and its subcommands."""

from __future__ import annotations

from mlaas_ray.cli.bench import bench
from mlaas_ray.cli.compare import compare
from mlaas_ray.cli.help import App
from mlaas_ray.cli.inspect import inspect
from mlaas_ray.cli.materialize import materialize
from mlaas_ray.cli.models import models_app
from mlaas_ray.cli.output import Version
from mlaas_ray.cli.predict import predict
from mlaas_ray.cli.quickstart import quickstart
from mlaas_ray.cli.schema import schema
from mlaas_ray.cli.serve import serve
from mlaas_ray.cli.simulate import simulate
from mlaas_ray.cli.train import train
from mlaas_ray.cli.workflow import workflow

app = App(
    name="mlaas",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def mlaas(version: Version = False) -> None:
    """Machine learning as a service for high-energy physics.

    ROOT files, wherever they are, to a trained model, to predictions over HTTP:

        [bold]mlaas inspect[/] data/*.root             what is in the files
        [bold]mlaas materialize[/] job.yaml -o DIR     keep what a job selects
        [bold]mlaas train[/] job.yaml                  stream them, train, publish
        [bold]mlaas compare[/] A B --data job.yaml     which model is better
        [bold]mlaas serve[/]                           answer predictions
        [bold]mlaas predict[/] NAME --event …          ask for one

    New here? [bold]mlaas quickstart[/] does all of it on simulated events.
    [bold]mlaas --install-completion[/] lets TAB complete commands, model names and job keys.
    """


app.command("inspect")(inspect)
app.command("materialize")(materialize)
app.command("train")(train)
app.command("compare")(compare)
app.command("serve")(serve)
app.add_typer(models_app, name="models")
app.command("predict")(predict)
app.command("bench")(bench)
app.command("quickstart")(quickstart)
app.command("simulate")(simulate)
app.command("workflow")(workflow)
app.command("schema")(schema)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
