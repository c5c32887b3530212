"""The worker's loop: epochs of steps, validation, checkpoints, and at the end the export.

It knows no framework (see :mod:`mlaas_ray.training.framework`). The workers agree by a few numbers every
``ROUND`` steps on what each gives to each step; so they take equally many steps, however many events each
has, and every event is seen once an epoch.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
from ray.train import Checkpoint

from mlaas_ray.core import FeatureSpec
from mlaas_ray.core.errors import EmptyDataError, ModelError
from mlaas_ray.training.batches import Batch, share_out
from mlaas_ray.training.check import build_network
from mlaas_ray.training.framework import Framework, Network
from mlaas_ray.training.frameworks import load_framework
from mlaas_ray.training.group import Group
from mlaas_ray.training.metrics import Scores, cross_entropy
from mlaas_ray.training.sample import Sampler, write_sample
from mlaas_ray.training.settings import TrainSettings
from mlaas_ray.training.shards import TableReader, TrainingEvents, ValidationEvents, read_tables
from mlaas_ray.training.source import ModelSource

ROUND = 64
STATE = "state.json"
# the largest difference allowed between the exported model and the network it was made from
EXPORT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Run:
    """What every worker of a run is told."""

    source: ModelSource
    framework: str
    features: FeatureSpec
    settings: TrainSettings
    seed: int
    reader: TableReader | None = None


@dataclass
class Progress:
    """How far a run has come; what a checkpoint keeps beside the network's own state.

    Attributes:
        history: One entry for each finished epoch.
        events: Training events seen by all workers.
        seconds: Wall time of the training parts.
        training: Scores of the last epoch's training events, as they were seen.
        validation: Scores of the validation events after the last epoch.
    """

    history: list[dict[str, float]]
    events: int = 0
    seconds: float = 0.0
    training: dict[str, Any] | None = None
    validation: dict[str, Any] | None = None


def train_worker(config: dict[str, Run]) -> None:
    """Train on this worker, together with the others of its Ray Train group."""
    run = config["run"]
    if run.reader is not None:
        run.reader.prepare()
    group = Group.joined()
    framework = load_framework(run.framework)
    # Ray Train logs every report to the root logger, and the exporters all they do.
    logging.getLogger().setLevel(logging.WARNING)
    framework.prepare(threads=max(1, int(run.settings.cpus_per_worker or 1)), seed=run.seed)
    width = run.features.width
    network = framework.network(
        build_network(run.source, framework, width),
        *run.features.affine(),
        group,
        weight_decay=run.settings.weight_decay,
    )
    sampler = Sampler(width)
    training = TrainingEvents(
        lambda: read_tables(ray.train.get_dataset_shard("train"), run.reader),
        width,
        run.settings.shuffle_bytes,
        batch_size=run.settings.batch_size,
        group=group,
        seed=run.seed,
    )
    validation = ValidationEvents(
        lambda: sampler.watch(read_tables(ray.train.get_dataset_shard("validation"), run.reader)),
        run.settings.shuffle_bytes // 2,
        group=group,
    )
    progress = _restore(network)
    if progress is None:
        return  # the last checkpoint was the finished model
    for epoch in range(len(progress.history), run.settings.epochs):
        _epoch(epoch, run, network, training, validation, group, progress)
        _report(network, group, progress)
    if not sampler.seen:
        for _ in validation:  # a restart after the last epoch
            pass
    _finish(framework, network, sampler, group, progress)


def learning_rate(first: float, epoch: int, epochs: int) -> float:
    """Return the step size of an epoch (from 0): half a cosine from ``first`` towards zero."""
    return first * 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))


def train_epoch(
    network: Network, events: TrainingEvents, batch_size: int, group: Group, epoch: int
) -> Scores:
    """Take the steps of one epoch (from 0).

    Returns:
        The scores of this rank's events, as they were when seen.

    Raises:
        ModelError: When the loss is no longer a number.
    """
    scores = Scores()
    events.start(epoch)
    pool = events.pool
    done = 0
    while True:
        pool.refill()
        offers = group.gather([pool.ready, int(pool.ended)])
        last = bool(offers[:, 1].all())
        plan = share_out(offers[:, 0].tolist(), batch_size, last=last, most=ROUND)
        if len(plan) == 0 and last:
            return scores
        outputs, labels, weights, sizes = [], [], [], plan[:, group.rank].tolist()
        for batch, total in zip(pool.take(sizes), plan.sum(axis=1).tolist(), strict=True):
            outputs.append(network.step(batch, total))
            labels.append(batch.y)
            weights.append(batch.weight)
        if outputs:
            taken = Batch(network.collect(outputs)[:, None], np.concatenate(labels), np.concatenate(weights))
            _check_finite(taken, sizes, epoch, done)
            scores.add(taken.x[:, 0], taken.y, taken.weight)
        done += len(sizes)


def validate(network: Network, events: Iterable[Batch]) -> Scores:
    """Return the scores of this rank's validation events."""
    scores = Scores()
    for block in events:
        for batch in _pieces(block):
            scores.add(network.predict(batch.x), batch.y, batch.weight)
    return scores


def _pieces(block: Batch, rows: int = 65536) -> Iterator[Batch]:
    for start in range(0, len(block), rows):
        part = slice(start, start + rows)
        yield Batch(block.x[part], block.y[part], block.weight[part])


def _check_finite(taken: Batch, sizes: list[int], epoch: int, done: int) -> None:
    loss = taken.weight * cross_entropy(taken.x[:, 0], taken.y)
    if np.isfinite(loss).all():
        return
    first = int(np.flatnonzero(~np.isfinite(loss))[0])
    step = done + int(np.searchsorted(np.cumsum(sizes), first, side="right")) + 1
    raise ModelError(
        f"the loss is not a number in epoch {epoch + 1}, step {step}",
        "Lower train.learning_rate, or look for weights that are not finite",
    )


def _epoch(
    epoch: int,
    run: Run,
    network: Network,
    training: TrainingEvents,
    validation: ValidationEvents,
    group: Group,
    progress: Progress,
) -> None:
    """Train and validate once, and write down what came of it."""
    settings = run.settings
    rate = learning_rate(settings.learning_rate, epoch, settings.epochs)
    seed = int(np.random.SeedSequence([run.seed, epoch, group.rank]).generate_state(1)[0])
    network.begin_epoch(rate, seed)
    begun = time.perf_counter()
    trained = _merged(train_epoch(network, training, settings.batch_size, group, epoch), group)
    seconds = time.perf_counter() - begun
    if trained.events == 0:
        raise EmptyDataError("there are no training events", "Check the selection and the split")
    network.settle()
    validated = _merged(validate(network, validation), group)
    if validated.events == 0:
        raise EmptyDataError("there are no validation events", "Enlarge split.validation")
    progress.training, progress.validation = trained.summary(), validated.summary()
    progress.events += trained.events
    progress.seconds += seconds
    progress.history.append(
        {
            "epoch": epoch + 1,
            "loss": progress.training["loss"],
            "validation_loss": progress.validation["loss"],
            "auc": progress.validation["auc"],
            "accuracy": progress.validation["accuracy"],
            "events_per_s": trained.events / seconds,
        }
    )


def _merged(own: Scores, group: Group) -> Scores:
    """Add up all ranks' scores, in the order of ranks."""
    total = Scores()
    for scores in group.gather_objects(own):
        total.merge(scores)
    return total


def _restore(network: Network) -> Progress | None:
    """Go on where the last checkpoint was made; None when that is the finished model."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress(history=[])
    with checkpoint.as_directory() as folder:
        state = Path(folder) / STATE
        if not state.exists():
            return None
        network.restore(Path(folder))
        return Progress(**json.loads(state.read_text()))


def _report(network: Network, group: Group, progress: Progress) -> None:
    """Report an epoch, with a checkpoint by rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if group.rank == 0:
            network.save(Path(folder))
            (Path(folder) / STATE).write_text(json.dumps(vars(progress)))
            checkpoint = Checkpoint.from_directory(folder)
        ray.train.report({"epoch": progress.history[-1]}, checkpoint=checkpoint)


def _finish(
    framework: Framework, network: Network, sampler: Sampler, group: Group, progress: Progress
) -> None:
    """Export on rank 0, compare what was exported with the network, and report it as the last checkpoint."""
    sample = sampler.chosen(group)
    with tempfile.TemporaryDirectory() as name:
        folder, checkpoint, result = Path(name), None, {}
        if group.rank == 0:
            prediction = network.predict(sample["x"])
            network.export(folder)
            difference = export_difference(framework, folder, sample["x"], prediction)
            write_sample(folder, sample, prediction)
            checkpoint = Checkpoint.from_directory(folder)
            result = {**vars(progress), "export_difference": difference}
        ray.train.report({"result": result}, checkpoint=checkpoint)


def export_difference(framework: Framework, folder: Path, x: Any, prediction: Any) -> float:
    """Load an exported model afresh and return the largest difference to the network's own predictions.

    Raises:
        ModelError: When it is over ``EXPORT_TOLERANCE``.
    """
    difference = float(np.max(np.abs(framework.answer(folder, x) - prediction), initial=0.0))
    if not difference <= EXPORT_TOLERANCE:
        raise ModelError(
            f"the exported model's answers differ by up to {difference:.2g} from the network's",
            "Leave out layers that behave at random, or otherwise, outside training",
        )
    return difference
