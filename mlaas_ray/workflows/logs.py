"""Logs: the history of a run as it is made, for people (CSV), programs (JSON lines) and TensorBoard."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from mlaas_ray.training import EpochReport
from mlaas_ray.workflows.run_folder import RunFolder, scratch

HISTORY = "history.jsonl"
TABLE = "history.csv"
BOARD = "tensorboard"


class Logs:
    """Writes a line for each epoch.

    Args:
        run: Where; what an interrupted run wrote is kept.
    """

    def __init__(self, run: RunFolder) -> None:
        from tensorboardX import SummaryWriter

        self._run = run
        before = (run.read(HISTORY) or "").splitlines()
        self._rows: list[dict[str, Any]] = [json.loads(line) for line in before]
        self._folder = run.fetch(BOARD) if run.is_local else scratch() / BOARD
        self._writer = SummaryWriter(str(self._folder))

    def add(self, report: EpochReport) -> None:
        """Write down an epoch."""
        row = _flat(asdict(report))
        # an epoch that is told again counts once
        self._rows = [one for one in self._rows if one["epoch"] < row["epoch"]] + [row]
        for name, value in row.items():
            if name not in ("epoch", "epochs"):
                self._writer.add_scalar(_board_name(name), value, row["epoch"])
        self._writer.flush()
        self._write()

    def complete(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write down the epochs that nobody told of, as when the process that should have heard had died."""
        known = {row["epoch"]: row for row in self._rows}
        epochs = self._rows[-1]["epochs"] if self._rows else len(history)
        told = [known.get(entry["epoch"]) or _flat({**entry, "epochs": epochs}) for entry in history]
        if told != self._rows:
            self._rows = told
            self._write()

    def close(self) -> None:
        """Write the rest."""
        self._writer.close()
        if self._rows and not self._run.is_local:
            self._run.put(self._folder, BOARD)

    def _write(self) -> None:
        self._run.write(HISTORY, "".join(json.dumps(row) + "\n" for row in self._rows))
        table = io.StringIO()
        columns = dict.fromkeys(name for row in self._rows for name in row)
        writer = csv.DictWriter(table, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        self._run.write(TABLE, table.getvalue())


@contextmanager
def logged(run: RunFolder) -> Iterator[Logs]:
    """Keep logs of what a block trains."""
    logs = Logs(run)
    try:
        yield logs
    finally:
        logs.close()


def _flat(report: Mapping[str, Any]) -> dict[str, Any]:
    row = {key: value for key, value in report.items() if key not in ("scores", "without")}
    return row | {f"validation_{name}": value for name, value in report["scores"].items()}


def _board_name(name: str) -> str:
    """Group curves as TensorBoard does: those of one kind beside each other."""
    if name in ("loss", "validation_loss"):
        return f"loss/{'training' if name == 'loss' else 'validation'}"
    return f"scores/{name}" if name.startswith("validation_") else f"run/{name}"
