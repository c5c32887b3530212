"""The lines of a training on 80 columns."""

from __future__ import annotations

from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from mlaas_ray.cli import output, training
from mlaas_ray.training import EpochReport

REPORT: dict[str, Any] = {
    "epoch": 1,
    "epochs": 9,
    "loss": 0.28351,
    "validation_loss": 0.28309,
    "events_per_s": 1234567.0,
    "learning_rate": 0.001,
    "seconds": 100.0,
    "waited": 0.0,
    "left_s": 5000.0,
}
SCORES = [
    {"auc": 0.80123, "accuracy": 0.76543},
    {"r2": 0.80123, "mae": 0.76543, "rmse": 0.87654},
    {"r2": 0.80123, "mae": 12345.678, "rmse": 23456.789},
]


def said(scores: dict[str, float], columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    console = Console(width=columns, force_terminal=True, color_system=None, stderr=True)
    for module in (output, training):
        monkeypatch.setattr(module, "err", console)
    display = training.Display()
    display.stage.on_terminal = True
    monkeypatch.setattr(display.stage, "spin", lambda what: None)
    with console.capture() as text:
        display.epoch(EpochReport(**REPORT, scores=scores))
    return text.get()


@pytest.mark.parametrize("scores", SCORES, ids=str)
def test_an_epoch_is_one_line(scores: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    line = said(scores, 80, monkeypatch)
    assert line.count("\n") == 1
    assert cell_len(line.rstrip("\n")) <= 80
    assert line.startswith("epoch   1/9   loss 0.2835  validation 0.2831  ")
    wide = said(scores, 200, monkeypatch).rstrip("\n")
    assert wide.endswith("  83 min left  1,234,567 events/s")
    assert wide.startswith(line.rstrip("\n"))  # what does not fit is the end, and nothing is cut
    assert wide[cell_len(line.rstrip("\n")) :].startswith("  ")
