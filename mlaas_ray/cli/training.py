"""What is shown of a training while it goes on, on standard error."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from mlaas_ray.cli.output import err

if TYPE_CHECKING:
    from mlaas_ray.workflows import Hooks
    from mlaas_ray.workflows.run_folder import RunFolder

_NAMES = {"auc": "AUC", "accuracy": "accuracy", "r2": "R²", "mae": "MAE", "rmse": "RMSE"}


class Display:
    """Lines for what is known and for each epoch, and on a terminal a bar for the epoch under way."""

    def __init__(self) -> None:
        self._shown = err.is_terminal and sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=30),
            TextColumn(
                "{task.percentage:>3.0f} %  loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} events/s"
            ),
            console=err,
            transient=True,
            disable=not self._shown,
        )
        self._task: TaskID | None = None
        self.run: RunFolder | None = None

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @property
    def hooks(self) -> Hooks:
        """What training is to call."""
        from mlaas_ray.workflows import Hooks

        return Hooks(
            on_run=self.begun,
            on_first_pass=self.first_pass,
            on_census=self.census,
            on_step=self.step,
            on_epoch=self.epoch,
            on_note=self.note,
        )

    def begun(self, run: RunFolder) -> None:
        """Print where the run is kept."""
        self.run = run
        self._say(f"run: {run}")

    def first_pass(self, found: Any) -> None:
        """Print what the first pass found."""
        counts = ", ".join(
            f"{sample.name} {sum(f.entries for f in found.files if f.dataset == index):,}"
            for index, sample in enumerate(found.samples)
        )
        files = f"{len(found.files)} files" if len(found.files) > 1 else "1 file"
        self._say(f"{found.entries:,} events in {files} ({counts}); {found.features.width} inputs")

    def census(self, census: Any) -> None:
        """Print the cut flow, when there are cuts."""
        if census.cuts:
            for line in census.flow().split("\n"):
                self._say(line.strip())

    def note(self, text: str) -> None:
        """Print a line about what is doubtful, or waited for."""
        self._say(text)

    def step(self, report: Any) -> None:
        """Move the bar."""
        fields = {
            "epoch": f"{report.epoch}/{report.epochs}",
            "loss": report.loss,
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
        scores = "  ".join(f"{_NAMES.get(name, name)} {value:.4f}" for name, value in report.scores.items())
        left = f"   {_time(report.left_s)} left" if report.left_s else ""
        if report.without and report.epoch == 1:
            self._say(
                f"warning: the validation score leaves out {', '.join(report.without)}: the validation "
                "events do not tell it; enlarge split.validation"
            )
        self._say(
            f"epoch {report.epoch:>3}/{report.epochs}   loss {report.loss:.4f}   validation: "
            f"loss {report.validation_loss:.4f}  {scores}   {report.events_per_s:,.0f} events/s{left}"
        )

    def _say(self, text: str) -> None:
        err.print(text, highlight=False, soft_wrap=True, markup=False)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
