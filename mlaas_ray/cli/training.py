"""What is shown of a training while it goes on, on standard error."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from mlaas_ray.cli.output import Stages, err, say
from mlaas_ray.core.cluster import ray_logs

if TYPE_CHECKING:
    from mlaas_ray.workflows import Hooks
    from mlaas_ray.workflows.run_folder import RunFolder

_NAMES = {"auc": "AUC", "accuracy": "accuracy", "r2": "R²", "mae": "MAE", "rmse": "RMSE"}


class Display:
    """Lines for what is known and for each epoch; on a terminal a bar or a spinner for what is under way."""

    def __init__(self) -> None:
        self.stage = Stages()
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=20),
            TextColumn(
                "{task.percentage:>3.0f} %  loss {task.fields[loss]}  {task.fields[rate]:,.0f} events/s"
            ),
            console=err,
            transient=True,
            disable=not self.stage.on_terminal,
        )
        self._task: TaskID | None = None
        self.run: RunFolder | None = None

    def __enter__(self) -> Display:
        # until Ray and the rest are imported
        self.stage.spin("reading the job")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self.stage.end()

    @property
    def hooks(self) -> Hooks:
        """What training is to call."""
        from mlaas_ray.workflows import Hooks

        return Hooks(
            on_stage=self.begins,
            on_run=self.begun,
            on_first_pass=self.first_pass,
            on_census=self.census,
            on_step=self.step,
            on_epoch=self.epoch,
            on_note=self.note,
        )

    def begins(self, what: str) -> None:
        """Say what begins and takes a while; in a log only once there is a run: an error is one line."""
        if self.run is None:
            self.stage.spin(what)
        else:
            self.stage(what)

    def begun(self, run: RunFolder) -> None:
        """Print where the run is kept, and where Ray's logs are."""
        self.run = run
        self.say(f"run: {run}")
        logs = ray_logs()
        if logs is not None:
            self.say(f"Ray's logs: {logs}")

    def first_pass(self, found: Any) -> None:
        """Print what the first pass found."""
        counts = ", ".join(
            f"{sample.name} {sum(f.entries for f in found.files if f.dataset == index):,}"
            for index, sample in enumerate(found.samples)
        )
        files = f"{len(found.files)} files" if len(found.files) > 1 else "1 file"
        self.say(f"{found.entries:,} events in {files} ({counts}); {found.features.width} inputs")
        for choice in found.choices:
            self.say(choice)

    def census(self, census: Any) -> None:
        """Print the cut flow, when there are cuts."""
        if census.cuts:
            for line in census.flow().split("\n"):
                self.say(line.strip())

    def note(self, text: str) -> None:
        """Print a line about what is doubtful, or waited for."""
        self.say(text)

    def step(self, report: Any) -> None:
        """Move the bar."""
        if self._task is None:
            self.stage.end()
        fields = {
            "epoch": f"{report.epoch}/{report.epochs}",
            "loss": _number(report.loss),
            "rate": report.events_per_s,
        }
        total = report.expected or None
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=total, **fields)
        done = min(report.events, total) if total else report.events
        self._progress.update(self._task, completed=done, total=total, **fields)

    def epoch(self, report: Any) -> None:
        """Print a line an epoch."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        if report.without and report.epoch == 1:
            self.say(
                f"warning: the validation score leaves out {', '.join(report.without)}: the validation "
                "events do not tell it; enlarge split.validation"
            )
        parts = [
            f"epoch {report.epoch:>3}/{report.epochs}   loss {_number(report.loss)}",
            f"validation {_number(report.validation_loss)}",
            *(f"{_NAMES.get(name, name)} {_number(value)}" for name, value in report.scores.items()),
            *([f"{_time(report.left_s)} left"] if report.left_s else []),
            f"{report.events_per_s:,.0f} events/s",
        ]
        self.say(_fitting(parts, err.width if self.stage.on_terminal else None))
        if report.epoch >= report.epochs:
            self.stage("exporting and judging the model")
        else:
            self.stage.spin("going on")

    def say(self, text: str) -> None:
        """Print a line."""
        self.stage.end()
        say(text)


def _fitting(parts: list[str], width: int | None) -> str:
    """Join as many parts as a line of the terminal holds, the first ones; history.csv has all."""
    line = parts[0]
    for part in parts[1:]:
        if width is not None and cell_len(f"{line}  {part}") > width:
            break
        line = f"{line}  {part}"
    return line


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.6g}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
