"""The worker's loop: epochs of learning and judging, checkpoints, and at the end the export.

It knows no framework (see :mod:`mlaas_ray.training.framework`). What a checkpoint holds is all there is to
know: who starts from one goes on with the step after it, and sees the rest of the epoch's events, each once.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
from ray.train import Checkpoint

from mlaas_ray.core import FeatureSpec
from mlaas_ray.core.errors import EmptyDataError, JobError, ModelError
from mlaas_ray.core.storage import check_room, writing
from mlaas_ray.core.task import Task
from mlaas_ray.training.cursor import Cursor
from mlaas_ray.training.evaluation import (
    EVENTS,
    Evaluation,
    evaluate,
    importance,
    telling,
    write_evaluation,
)
from mlaas_ray.training.events import EventSource, Shards
from mlaas_ray.training.exporting import export
from mlaas_ray.training.framework import Network, Setup
from mlaas_ray.training.frameworks import load_framework
from mlaas_ray.training.group import Group
from mlaas_ray.training.metrics import Scores, scores_of
from mlaas_ray.training.progress import Mailbox
from mlaas_ray.training.refusal import refusal
from mlaas_ray.training.seen import ShardCursor
from mlaas_ray.training.settings import EpochReport, StepReport, TrainSettings, Weighting
from mlaas_ray.training.shards import ShardEvents, ShardStream, tables
from mlaas_ray.training.source import Source
from mlaas_ray.training.state import BEST, LAST, NETWORK, Progress, load_progress, restore, save_state
from mlaas_ray.training.steps import Epoch
from mlaas_ray.training.stream import EventStream, OrderedEvents

# Seconds between reports within an epoch.
_REPORT_S = 1.0
# Bytes that must be free beside a checkpoint, for the logs and lists that are written with it.
_SPARE = 1_000_000
# Validation events that are judged at once.
_PIECE = 65536
# Folder of a trained model with the state from which another run can begin.
STATE = "state"


@dataclass(frozen=True)
class Run:
    """What every worker of a run is told.

    Attributes:
        framework: The framework, or a user's code for one.
        model: The model, or a user's code for one.
        options: What the job says about the model.
        features: The columns, and how they are normalised.
        task: What is learnt.
        settings: How; every value is given.
        weighting: How weights count.
        seed: Of initial weights, order and dropout.
        train: Events to learn from.
        validation: Events to judge by.
        expected: Training events of an epoch, about; 0 for not known.
        first_weights: Files of another run's state to begin with.
        mailbox: Where to tell how far it has come.
        storage: Where checkpoints go.
    """

    framework: Source
    model: Source
    options: Mapping[str, Any]
    features: FeatureSpec
    task: Task
    settings: TrainSettings
    weighting: Weighting
    seed: int
    train: EventSource | Shards
    validation: EventSource | Shards
    expected: int = 0
    first_weights: Mapping[str, bytes] = field(default_factory=dict)
    mailbox: Mailbox | None = None
    storage: str = ""


def train_worker(config: dict[str, Run]) -> None:
    """Train on this worker, together with the others of its Ray Train group."""
    run = config["run"]
    run.train.prepare()
    run.validation.prepare()
    with tempfile.TemporaryDirectory() as folder:
        best = Path(folder) / "best"
        best.mkdir()
        _Worker(run, best).work()


class _Worker:
    """One worker, from its start to its end.

    Args:
        run: What it is told.
        best: Folder for the state of the best epoch's network; on rank 0.
    """

    def __init__(self, run: Run, best: Path) -> None:
        self.run = run
        self._best = best
        # Ray Train logs every report to the root logger, and the exporters all they do.
        logging.getLogger().setLevel(logging.WARNING)
        self.framework = load_framework(run.framework)
        settings = run.settings
        # NCCL wants a GPU for each
        on_gpus = settings.gpus_per_worker >= 1
        self.group = Group.joined(self.framework.collective_on_gpu if on_gpus else "gloo")
        self._setup = Setup(run.model, run.options, run.features, run.task, settings, self.group)
        self.network: Network
        limit, train, validation = settings.shuffle_bytes, run.train, run.validation
        kind: dict[str, Any] = {"targets": run.task.target_shape, "seed": run.seed, "group": self.group}
        self.stream: Any = (  # each takes the cursors that it gives
            ShardStream(train, run.features.width, limit, **kind)
            if isinstance(train, Shards)
            else EventStream(train, run.features.width, limit, **kind)
        )
        self.validation = (
            ShardEvents(validation, limit // 2, group=self.group)
            if isinstance(validation, Shards)
            else OrderedEvents(validation, limit // 2, group=self.group)
        )
        self._cursors = ShardCursor if isinstance(train, Shards) else Cursor
        self.progress = Progress(self._cursors.start(0))
        self._epochs = settings.epochs or 1
        self._told = (time.monotonic(), 0)

    def work(self) -> None:
        """Train, judge, and export."""
        try:
            if not self._restore():
                return  # the last checkpoint was the finished model
            while self.progress.cursor.epoch < self._epochs and not self.progress.stopped:
                self._epoch()
        finally:
            self.stream.close()
        self._finish()
        self.group.leave()

    def _restore(self) -> bool:
        """Go on where the last checkpoint was made; False when that is the finished model, and stays so."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            self._begin()
            if self.run.first_weights:
                with _written(self.run.first_weights) as folder:
                    self.network.warm_start(folder)
            return True
        with checkpoint.as_directory() as name:
            folder, task = Path(name), self.run.task
            found = load_progress(folder, task)
            if finished := found is None:
                folder = folder / LAST
                found = load_progress(folder, task)
            if found is None or (not found.go_on(self.run.settings) and finished):
                return False
            self.progress = found
            self._adopt()
            self._begin()
            restore(folder, self.network, self._best if found.best else None)
        return True

    def _adopt(self) -> None:
        """Begin the epoch as these events want it, where the last checkpoint was made with others."""
        progress = self.progress
        if isinstance(progress.cursor, self._cursors):
            return
        if progress.steps:
            before = "workers" if isinstance(progress.cursor, Cursor) else "cluster"
            epoch = progress.cursor.epoch + 1
            raise JobError(
                f"the last checkpoint lies within epoch {epoch}, which was read with reading.mode: {before}",
                f"Go on with it: --set reading.mode={before}",
            )
        progress.begin(self._cursors.start(progress.cursor.epoch))

    def _begin(self) -> None:
        """Make the network, while the first events are read."""
        run = self.run
        self.stream.start(self.progress.cursor)
        self._read_ahead()
        threads = max(1, int(run.settings.cpus_per_worker or 1))
        self.framework.prepare(threads, run.seed, run.settings.precision)
        self.network = self.framework.network(self._setup)

    def _read_ahead(self) -> None:
        """Begin to read the epoch that was started, if it will be seen in steps."""
        by_steps = getattr(self.framework, "by_steps", True)
        if by_steps and self.stream.epoch < self._epochs:
            self.stream.read_ahead()

    def _epoch(self) -> None:
        """Train what is left of an epoch, judge, and report."""
        progress = self.progress
        epoch = self._begun(progress.cursor.epoch)
        self._reseed(epoch)
        began, events = time.perf_counter(), epoch.events
        saving, waited = progress.seconds["saving"], self.stream.waited
        self.network.learn(epoch)
        training = time.perf_counter() - began - (progress.seconds["saving"] - saving)
        spent = self._spent(training, self.stream.waited - waited, epoch.computed)
        trained = self._merged(epoch.scores)
        _weighed(trained, "training", "Check the selection and the split")
        self.network.settle()
        # the next epoch's first events are read while this one's network is judged and kept
        following = self.stream.following()
        self.stream.start(following)
        self._read_ahead()
        judged = self._judged()
        progress.training, progress.validation = trained.summary(), judged.summary()
        progress.events += trained.events
        seconds = time.perf_counter() - began
        entry = self._entry(epoch, events, spent, seconds)
        progress.history.append(entry)
        if progress.judge(entry, self.run.settings) and self.group.rank == 0:
            self.network.save(self._best)
        progress.begin(following)
        self._checkpoint()
        self._post(
            EpochReport(**entry, epochs=self._epochs, left_s=seconds * (self._epochs - epoch.number - 1))
        )

    def _begun(self, number: int) -> Epoch:
        """Return an epoch as far as it has come."""
        run, progress = self.run, self.progress
        epoch = Epoch(
            number=number,
            task=run.task,
            stream=self.stream,
            group=self.group,
            batch_size=run.settings.batch_size,
            weighting=run.weighting,
            scores=self._counted(),
            rate=self._rate,
            every_steps=run.settings.checkpoint.every_steps,
            on_round=lambda due: self._between(epoch, due),
            on_loss=lambda step: self._diverged(number, step),
            steps=progress.steps,
            events=progress.epoch_events,
        )
        self._told = (time.monotonic(), epoch.events)
        return epoch

    def _counted(self) -> Scores:
        """Return what scores are added to from here on: on rank 0 to those of all ranks so far."""
        before = self.progress.scores
        return before if before is not None and self.group.rank == 0 else scores_of(self.run.task)

    def _between(self, epoch: Epoch, due: bool) -> None:
        """Between rounds of steps: write a checkpoint that is due, and tell how far it is."""
        progress = self.progress
        if due:
            progress.steps, progress.epoch_events = epoch.steps, epoch.events
            progress.cursor = self.stream.cursor()
            progress.scores = self._merged(epoch.scores)
            self._checkpoint()
            # as who goes on from here will: sums of the same numbers in another order end in other digits
            epoch.scores = self._counted()
            self._reseed(epoch)
        now, (before, events) = time.monotonic(), self._told
        if self.group.rank == 0 and now - before >= _REPORT_S:
            rate = (epoch.events - events) / (now - before)
            loss = epoch.recent_loss()
            expected = self._expected
            self._post(StepReport(epoch.number + 1, self._epochs, epoch.events, expected, loss, rate))
            self._told = (now, epoch.events)

    @property
    def _expected(self) -> int:
        """Events of an epoch, as far as that is known."""
        progress = self.progress
        return self.run.expected or progress.events // max(1, len(progress.history))

    def _rate(self, events: int) -> float:
        """Return the step size after so many events of the epoch."""
        settings, progress = self.run.settings, self.progress
        share = min(1.0, events / self._expected) if self._expected else 0.0
        passed = progress.cursor.epoch + share
        return (settings.learning_rate or 0.0) * settings.rates.rate(passed, self._epochs, progress.drops)

    def _reseed(self, epoch: Epoch) -> None:
        """Give dropout a seed that who goes on from here will find again."""
        key = [self.run.seed, epoch.number, epoch.steps, self.group.rank]
        self.network.reseed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def _diverged(self, epoch: int, step: int) -> ModelError:
        checkpoint = ray.train.get_checkpoint()
        last = f"; the last good checkpoint is {checkpoint.path}" if checkpoint is not None else ""
        return ModelError(
            f"the loss is not a number in epoch {epoch + 1}, step {step}{last}",
            "Lower train.learning_rate, set train.clip, or look for weights that are not finite",
        )

    def _spent(self, *seconds: float) -> dict[str, float]:
        """Add to the record what an epoch's training took the slowest worker."""
        slowest = np.max(self.group.gather([int(1e6 * one) for one in seconds]), axis=0) / 1e6
        spent = dict(zip(("training", "waiting", "computing"), slowest.tolist(), strict=True))
        for name, value in spent.items():
            self.progress.seconds[name] += value
        return spent

    def _entry(self, epoch: Epoch, before: int, spent: dict[str, float], seconds: float) -> dict[str, Any]:
        """Return what the history tells of an epoch."""
        assert self.progress.training is not None
        assert self.progress.validation is not None
        judged = dict(self.progress.validation)
        training = max(spent["training"], 1e-9)
        return {
            "epoch": epoch.number + 1,
            "loss": self.progress.training["loss"],
            "validation_loss": judged.pop("loss"),
            "scores": {name: value for name, value in judged.items() if isinstance(value, float)},
            "without": judged.get("without", []),
            "learning_rate": self._rate(epoch.events),
            "events_per_s": (epoch.events - before) / training,
            "seconds": seconds,
            "waited": min(1.0, spent["waiting"] / training),
        }

    def _judged(self) -> Scores:
        """Return the scores of the validation events, of all ranks."""
        begun = time.perf_counter()
        scores = scores_of(self.run.task)
        for events in self.validation:
            for start in range(0, len(events), _PIECE):
                part = events[slice(start, start + _PIECE)]
                weight = self.run.weighting.of(part.y, part.weight)
                scores.add(self.network.predict(part.x), part.y, weight)
        total = self._merged(scores)
        _weighed(total, "validation", "Enlarge split.validation")
        self.progress.seconds["judging"] += time.perf_counter() - begun
        return total

    def _merged(self, own: Scores) -> Scores:
        """Add up all ranks' scores, in the order of ranks."""
        total = scores_of(self.run.task)
        for scores in self.group.gather_objects(own):
            total.merge(scores)
        return total

    def _checkpoint(self) -> None:
        """Report, with a checkpoint by rank 0."""
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.group.rank == 0:
                with writing(folder):
                    save_state(Path(folder), self.progress, self.network, self._best)
                checkpoint = Checkpoint.from_directory(folder)
            self._report({}, checkpoint)
        self.progress.seconds["saving"] += time.perf_counter() - begun

    def _post(self, report: EpochReport | StepReport) -> None:
        if self.run.mailbox is not None and self.group.rank == 0:
            self.run.mailbox.post(report)

    def _finish(self) -> None:
        """Ask the network about all there is, export it on rank 0, and report it as the last checkpoint."""
        run = self.run
        last = self._best.parent / LAST  # before the network becomes that of the best epoch
        if self.group.rank == 0:
            last.mkdir()
            save_state(last, self.progress, self.network, self._best)
        files = self.group.from_first_object(_read(self._best))
        if files:
            with _written(files) as folder:
                self.network.warm_start(folder)
        asked = (run.features, run.task, run.weighting, self.group)
        judged = evaluate(self.network, self._tables(run.validation), *asked)
        trained = evaluate(self.network, self._tables(run.train), *asked, most=EVENTS)
        needed = importance(self.network, judged.sample, *asked)
        with tempfile.TemporaryDirectory() as name:
            report: dict[str, Any] = {}
            checkpoint = None
            if self.group.rank == 0:
                folder, report = self._exported(Path(name), last, judged, trained, needed)
                checkpoint = Checkpoint.from_directory(folder)
            self._report(report, checkpoint)

    def _tables(self, events: EventSource | Shards) -> Iterator[Any]:
        """Return this rank's tables of the first epoch."""
        if isinstance(events, Shards):
            return tables(events, self.group)
        return events.tables(0, range(self.group.rank, events.blocks(0), self.group.size))

    def _report(self, metrics: dict[str, Any], checkpoint: Checkpoint | None) -> None:
        """Report to Ray Train, which copies the checkpoint into the storage.

        A disk that runs full meanwhile would take the list of checkpoints, too, which Ray Train writes anew.
        """
        storage = self.run.storage
        with writing(storage):
            if checkpoint is not None and Path(storage).is_absolute():
                files = (path for path in Path(checkpoint.path).rglob("*") if path.is_file())
                check_room(storage, sum(file.stat().st_size for file in files) + _SPARE)
            ray.train.report(metrics, checkpoint=checkpoint)

    def _exported(
        self,
        model: Path,
        last: Path,
        judged: Evaluation,
        trained: Evaluation,
        needed: dict[str, list[float | None]],
    ) -> tuple[Path, dict[str, Any]]:
        """Write the finished model, with the state ``last`` from which it could be trained on.

        Returns:
            What to keep, and what to report with it. When the network cannot be exported, it is ``last`` that
            is kept: who starts from that tries the export again.
        """
        progress, source = self.progress, self.run.framework if self.run.model.builtin else self.run.model
        try:
            differences = export(self.framework, self.network, model, judged.sample["x"], source)
        except Exception as error:
            why = refusal(source, error, "the network cannot be exported:")
            kept = BEST if (last / BEST).exists() else NETWORK
            return last, {"unexported": [why.message, why.remedy, kept]}
        (model / STATE).mkdir()
        self.network.save(model / STATE)
        write_evaluation(model, judged, trained, telling(self.run.features, needed))
        last.rename(model / LAST)
        result = {
            "history": progress.history,
            "events": progress.events,
            "seconds": progress.seconds,
            "training": progress.training,
            "validation": judged.scores.summary(),
            "best_epoch": progress.best and progress.best["epoch"],
            "export_difference": differences,
            "importance": needed,
        }
        return model, {"result": result}


def _weighed(scores: Scores, part: str, remedy: str) -> None:
    """Refuse events that no mean can be taken of.

    Raises:
        EmptyDataError: When there are none, or when their weights do not come to more than 0.
    """
    if scores.events == 0:
        raise EmptyDataError(f"there are no {part} events", remedy)
    if not scores.weight > 0:
        raise EmptyDataError(
            f"the weights of the {scores.events:,} {part} events come to {scores.weight:g}",
            f"{remedy}; or look at weights",
        )


def _read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@contextmanager
def _written(files: Mapping[str, bytes]) -> Iterator[Path]:
    """Give a folder that holds some files, for a while."""
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        yield Path(name)
