"""State: what a checkpoint knows of a run, beside the network; and how it decides when to stop."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
from ray.train import Result
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager

from mlaas_ray.core.errors import EmptyDataError
from mlaas_ray.core.task import Task
from mlaas_ray.training.cursor import Cursor
from mlaas_ray.training.framework import Network
from mlaas_ray.training.metrics import Scores, scores_of
from mlaas_ray.training.seen import ShardCursor
from mlaas_ray.training.settings import FALLING, TrainSettings

_STATE = "state.json"
_SCORES = "scores.npz"
NETWORK = "network"
BEST = "best"
# Folder of a finished model with all that is needed to train it further.
LAST = "last"


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
        best: Epoch, value and name of what early stopping looks at.
        stood: Epochs since then.
        lowest: Validation loss that a ``plateau`` schedule compares with.
        flat: Epochs since then.
        drops: How often that schedule has lowered the step size.
        stopped: Whether early stopping has ended the run.
        epochs: How many epochs there were to be.
    """

    cursor: Cursor | ShardCursor
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
    best: dict[str, Any] | None = None
    stood: int = 0
    lowest: float | None = None
    flat: int = 0
    drops: int = 0
    stopped: bool = False
    epochs: int = 0

    def begin(self, cursor: Cursor | ShardCursor) -> None:
        """Go over to the beginning of an epoch."""
        self.cursor, self.steps, self.epoch_events, self.scores = cursor, 0, 0, None

    def judge(self, entry: dict[str, Any], settings: TrainSettings) -> bool:
        """Look at an epoch that has ended; return whether its network is the best so far."""
        self._look_at_plateau(entry["validation_loss"], settings)
        rule, self.epochs = settings.early_stopping, settings.epochs or 1
        if not rule:
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
            self.best = {"epoch": entry["epoch"], "value": value, "monitor": rule.monitor}
            self.stood = 0
            return True
        self.stood += 1
        self.stopped = self.stood >= rule.patience
        return False

    def go_on(self, settings: TrainSettings) -> bool:
        """Go on by settings that may have changed; return whether anything is left to train.

        What early stopping has seen counts as long as it looks at the same number. More epochs than there
        were to be give a run that it ended its patience anew.
        """
        rule, epochs = settings.early_stopping, settings.epochs or 1
        if not rule or (self.best is not None and self.best.get("monitor", rule.monitor) != rule.monitor):
            self.best, self.stood = None, 0
        elif self.stopped and epochs > self.epochs:
            self.stood = 0
        self.stopped = self.stood >= rule.patience if rule else False
        return self.cursor.epoch < epochs and not self.stopped

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
    (folder / NETWORK).mkdir()
    network.save(folder / NETWORK)
    if any(best.iterdir()):
        shutil.copytree(best, folder / BEST)


def load_progress(folder: Path, task: Task) -> Progress | None:
    """Read how far a run had come from what :func:`save_state` wrote; None when the folder holds a model.

    Args:
        folder: To be read.
        task: What is learnt.
    """
    if not (folder / _STATE).exists():
        return None
    progress = _progress((folder / _STATE).read_bytes())
    if (folder / _SCORES).exists():
        progress.scores = scores_of(task)
        with np.load(folder / _SCORES) as arrays:
            progress.scores.load(dict(arrays))
    return progress


def reached(run: str, filesystem: pyarrow.fs.FileSystem | None = None) -> tuple[Progress | None, bool]:
    """Return how far a run has come by its last checkpoint, and whether that is a finished model.

    Args:
        run: Its folder of Ray Train's.
        filesystem: Of that, when it is a path of another than this machine's.
    """
    log = logging.getLogger(CheckpointManager.__module__)
    log.disabled, before = True, log.disabled  # it explains at length what a folder with checkpoints is
    try:
        checkpoint = Result.from_path(run, filesystem).checkpoint
    except RuntimeError:  # there is no such run, or nothing in it
        return None, False
    finally:
        log.disabled = before
    if checkpoint is None:
        return None, False
    for place, finished in (("", False), (f"{LAST}/", True)):
        state = f"{checkpoint.path}/{place}{_STATE}"
        with contextlib.suppress(FileNotFoundError), checkpoint.filesystem.open_input_stream(state) as file:
            return _progress(file.read()), finished
    return None, True


def _progress(text: bytes) -> Progress:
    content = json.loads(text)
    cursor = content["cursor"]
    return Progress(**{**content, "cursor": ShardCursor(**cursor) if "seen" in cursor else Cursor.of(cursor)})


def restore(folder: Path, network: Network, best: Path | None) -> None:
    """Give a network the state that :func:`save_state` wrote.

    Args:
        folder: To be read.
        network: Is given its state.
        best: Where the state of the best epoch's network goes; None for nowhere.
    """
    network.restore(folder / NETWORK)
    if best is not None and (folder / BEST).exists():
        shutil.copytree(folder / BEST, best, dirs_exist_ok=True)
