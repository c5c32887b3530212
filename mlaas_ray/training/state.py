"""State: what a checkpoint knows of a run, beside the network; and how it decides when to stop."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlaas_ray.core.errors import EmptyDataError
from mlaas_ray.core.task import Task
from mlaas_ray.training.cursor import Cursor
from mlaas_ray.training.framework import Network
from mlaas_ray.training.metrics import Scores, scores_of
from mlaas_ray.training.settings import FALLING, TrainSettings

_STATE = "state.json"
_SCORES = "scores.npz"
_NETWORK = "network"
_BEST = "best"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        cursor: Which events of which epoch come next.
        steps: Steps taken of that epoch.
        epoch_events: Events seen of it, by all workers.
        scores: Of those events, as they were when seen; None at its beginning.
        history: One entry for each finished epoch.
        events: Training events seen in finished epochs.
        seconds: Wall time by what it was spent on.
        training: Scores of the last epoch's training events.
        validation: Scores of the validation events after it.
        best: Epoch and value of what early stopping looks at.
        stood: Epochs since then.
        lowest: Validation loss that a ``plateau`` schedule compares with.
        flat: Epochs since then.
        drops: How often that schedule has lowered the step size.
        stopped: Whether early stopping has ended the run.
    """

    cursor: Cursor
    steps: int = 0
    epoch_events: int = 0
    scores: Scores | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    events: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("training", "waiting", "computing", "judging", "saving"), 0.0)
    )
    training: dict[str, Any] | None = None
    validation: dict[str, Any] | None = None
    best: dict[str, float] | None = None
    stood: int = 0
    lowest: float | None = None
    flat: int = 0
    drops: int = 0
    stopped: bool = False

    def begin(self, cursor: Cursor) -> None:
        """Go over to the beginning of an epoch."""
        self.cursor, self.steps, self.epoch_events, self.scores = cursor, 0, 0, None

    def judge(self, entry: dict[str, Any], settings: TrainSettings) -> bool:
        """Look at an epoch that has ended; return whether its network is the best so far."""
        self._look_at_plateau(entry["validation_loss"], settings)
        rule = settings.early_stopping
        if rule is None:
            return False
        value = {**entry["scores"], "validation_loss": entry["validation_loss"]}.get(rule.monitor)
        if value is None:
            lacking = f": there is nothing to judge {', '.join(entry['without'])} by" * bool(
                entry.get("without")
            )
            raise EmptyDataError(
                f"early stopping looks at {rule.monitor}, which the validation events do not define{lacking}",
                "Enlarge split.validation, or set train.early_stopping.monitor to validation_loss",
            )
        sign = -1.0 if rule.monitor in FALLING else 1.0
        if self.best is None or sign * (value - self.best["value"]) > rule.min_delta:
            self.best, self.stood = {"epoch": entry["epoch"], "value": value}, 0
            return True
        self.stood += 1
        self.stopped = self.stood >= rule.patience
        return False

    def _look_at_plateau(self, loss: float, settings: TrainSettings) -> None:
        if self.lowest is None or loss < self.lowest:
            self.lowest, self.flat = loss, 0
            return
        self.flat += 1
        if self.flat >= settings.rates.every:
            self.flat, self.drops = 0, self.drops + 1


def save_state(folder: Path, progress: Progress, network: Network, best: Path) -> None:
    """Write everything that is needed to go on.

    Args:
        folder: To be written to.
        progress: How far the run has come.
        network: As it is.
        best: State of the best epoch's network, or an empty folder.
    """
    content = {**vars(progress), "cursor": progress.cursor.document()}
    scores = content.pop("scores")
    (folder / _STATE).write_text(json.dumps(content))
    if scores is not None:
        np.savez(folder / _SCORES, **scores.arrays())
    (folder / _NETWORK).mkdir()
    network.save(folder / _NETWORK)
    if any(best.iterdir()):
        shutil.copytree(best, folder / _BEST)


def load_progress(folder: Path, task: Task) -> Progress | None:
    """Read how far a run had come from what :func:`save_state` wrote; None when the folder holds a model.

    Args:
        folder: To be read.
        task: What is learnt.
    """
    if not (folder / _STATE).exists():
        return None
    content = json.loads((folder / _STATE).read_text())
    progress = Progress(**{**content, "cursor": Cursor.of(content["cursor"])})
    if (folder / _SCORES).exists():
        progress.scores = scores_of(task)
        with np.load(folder / _SCORES) as arrays:
            progress.scores.load(dict(arrays))
    return progress


def restore(folder: Path, network: Network, best: Path) -> None:
    """Give a network the state that :func:`save_state` wrote.

    Args:
        folder: To be read.
        network: Is given its state.
        best: Where the state of the best epoch's network goes.
    """
    network.restore(folder / _NETWORK)
    if (folder / _BEST).exists():
        shutil.copytree(folder / _BEST, best, dirs_exist_ok=True)
