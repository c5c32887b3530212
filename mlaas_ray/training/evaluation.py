"""Evaluation: what the finished network answers to events, kept for the report; and which inputs it needs."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core import FeatureSpec, GridSpec
from mlaas_ray.core.hashing import mix
from mlaas_ray.core.task import Task
from mlaas_ray.training.batches import Floats, block_arrays
from mlaas_ray.training.framework import Network
from mlaas_ray.training.group import Group
from mlaas_ray.training.metrics import Scores, scores_of
from mlaas_ray.training.settings import Weighting

# Events whose answers are kept, of each part of the split.
EVENTS = 200_000
# Events that are kept whole: the exported files are compared on them.
SAMPLE = 1000
# Events whose inputs are kept for the report, in so many bytes at most; and the columns that are written.
INPUTS = 20_000
INPUT_BYTES = 32 * 1024**2
DRAWN = 12
# Events of the sample that a package carries.
PACKAGED = 256
# Answers that may be asked for to learn which inputs count.
_ANSWERS = 1_000_000

_COLUMNS = ("x", "y", "weight", "dataset", "file", "entry")

Rows = dict[str, npt.NDArray[Any]]


@dataclass
class Evaluation:
    """What a network answered.

    Attributes:
        scores: Over all events.
        answers: Of the events kept: ``prediction`` ``(events, outputs)``, ``y``, ``weight`` (as the job
            defines it), ``used_weight`` (as it counts in training and in all scores) and ``dataset``.
        events: How many there were in all.
        sample: Some events whole, with ``prediction``.
        inputs: Columns ``(events, columns)`` of the first of the events kept.
    """

    scores: Scores
    answers: Rows
    events: int
    sample: Rows
    inputs: Floats


def evaluate(
    network: Network,
    tables: Iterable[Any],
    features: FeatureSpec,
    task: Task,
    weighting: Weighting,
    group: Group,
    *,
    most: int | None = None,
) -> Evaluation:
    """Ask a network about events; all ranks together, each about its own.

    Args:
        network: In training or not.
        tables: This rank's.
        features: The columns.
        task: What is asked.
        weighting: How weights count in the scores.
        group: The ranks.
        most: Events to ask about, about; None for all.
    """
    scores = scores_of(task)
    kept = Chosen(EVENTS)
    whole = max(SAMPLE, min(INPUTS, INPUT_BYTES // (4 * features.width)))
    sample = Chosen(whole)
    seen = 0
    for table in tables:
        for rows in _pieces(block_arrays(table, _COLUMNS)):
            rows["prediction"] = network.predict(rows["x"])
            used = weighting.of(rows["y"], rows["weight"])
            scores.add(rows["prediction"], rows["y"], used)
            key = key_of(rows)
            answers = {name: rows[name] for name in ("prediction", "y", "weight", "dataset")}
            kept.add({**answers, "used_weight": used}, key)
            sample.add(rows, key)
            seen += len(key)
        if most is not None and seen >= most // group.size:
            break
    everyone = group.gather_objects((scores, kept, sample, seen))
    total = scores_of(task)
    for other in everyone:
        total.merge(other[0])
    rows = Chosen.joined(whole, [other[2] for other in everyone]).rows
    return Evaluation(
        total,
        Chosen.joined(EVENTS, [other[1] for other in everyone]).rows,
        sum(other[3] for other in everyone),
        {name: values[:SAMPLE] for name, values in rows.items()},
        rows.get("x", np.empty((0, features.width), np.float32)),
    )


class Chosen:
    """Some of many events, by a hash of their identifiers: the same ones, whichever rank holds them.

    Args:
        most: How many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._keys: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self.rows: Rows = {}

    @classmethod
    def joined(cls, most: int, parts: Sequence[Chosen]) -> Chosen:
        """Choose among what others chose."""
        chosen = cls(most)
        for part in parts:
            chosen.add(part.rows, part._keys)
        return chosen

    def add(self, rows: Rows, keys: npt.NDArray[np.uint64]) -> None:
        """Choose among these events too; what is kept is copied, and in the order of the keys."""
        few = np.argsort(keys, kind="stable")[: self._most]
        if len(self._keys) >= self._most:
            few = few[keys[few] < self._keys[-1]]
        if not len(few) and self.rows:
            return
        joined = np.concatenate([self._keys, keys[few]])
        order = np.argsort(joined, kind="stable")[: self._most]
        self.rows = {
            name: np.concatenate([self.rows[name], values[few]])[order] if self.rows else values[few][order]
            for name, values in rows.items()
        }
        self._keys = joined[order]


def importance(
    network: Network, sample: Rows, features: FeatureSpec, task: Task, weighting: Weighting, group: Group
) -> dict[str, list[float | None]]:
    """Learn what it costs to know a branch of another event in place of an event's own; all ranks together.

    Args:
        network: To be asked.
        sample: Events, as :class:`Evaluation` has them; the same on all ranks.
        features: The columns.
        task: What is asked.
        weighting: How weights count.
        group: The ranks, which share the work.

    Returns:
        By branch, how much the loss grows, and how much the task's score falls; None where these events do
        not define it.
    """
    starts = features.starts
    branches = [feature for feature in features.features if feature.name in starts and feature.columns]
    if not branches or not len(sample.get("y", ())):
        return {}
    most = max(100, _ANSWERS // len(branches))
    x, y = sample["x"][:most].copy(), sample["y"][:most]
    weight = weighting.of(y, sample["weight"][:most])
    order = np.random.default_rng(0).permutation(len(y))
    before = _judged(network, x, y, weight, task)
    found: dict[str, list[float | None]] = {}
    for feature in branches[group.rank :: group.size]:
        columns = slice(starts[feature.name], starts[feature.name] + len(feature.columns))
        own = x[:, columns].copy()
        x[:, columns] = own[order]
        after = _judged(network, x, y, weight, task)
        x[:, columns] = own
        found[feature.name] = [
            None if one is None or other is None else sign * (other - one)
            for sign, one, other in zip((1, -1), before, after, strict=True)
        ]
    return {name: values for part in group.gather_objects(found) for name, values in part.items()}


def _judged(network: Network, x: Floats, y: Floats, weight: Floats, task: Task) -> list[float | None]:
    scores = scores_of(task)
    scores.add(network.predict(x), y, weight)
    summary = scores.summary()
    return [summary["loss"], summary[task.score]]


def telling(features: FeatureSpec, importance: Mapping[str, Sequence[float | None]]) -> dict[str, int]:
    """Return the columns that a report draws, by name: the first of each of the most important branches."""
    if isinstance(features, GridSpec):
        return {}  # a pixel tells nothing
    starts, names = features.starts, features.columns
    order = sorted(importance, key=lambda name: max(value or 0.0 for value in importance[name]), reverse=True)
    return {names[starts[name]]: starts[name] for name in order[:DRAWN]}


def write_evaluation(
    folder: Path, judged: Evaluation, trained: Evaluation, columns: Mapping[str, int] | None = None
) -> None:
    """Write ``evaluation.npz``, the answers to both parts of the split, and ``sample.npz``, whole events.

    Args:
        folder: Where.
        judged: Of the validation events.
        trained: Of training events.
        columns: Inputs to be written beside the answers, by name.
    """
    columns = columns or {}
    inputs = {
        "validation_inputs": judged.inputs[:, list(columns.values())],
        "validation_columns": np.array(list(columns), dtype=np.str_),
    }
    answers = inputs | {
        f"{part}_{name}": values
        for part, evaluation in (("validation", judged), ("training", trained))
        for name, values in {**evaluation.answers, "events": np.array(evaluation.events)}.items()
    }
    write_rows(folder / "evaluation.npz", answers)
    names = ("x", "dataset", "file", "entry", "prediction")
    write_rows(folder / "sample.npz", {name: judged.sample[name][:PACKAGED] for name in names})


def write_rows(path: Path, rows: Rows) -> None:
    """Write arrays by name as ``.npz``, compressed."""
    # numpy.savez takes no array of the name "file"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in rows.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(values, order="C"), allow_pickle=False)


def _pieces(arrays: Iterator[Rows], rows: int = 65536) -> Iterator[Rows]:
    for own in arrays:
        for start in range(0, len(own["y"]), rows):
            yield {name: values[start : start + rows] for name, values in own.items()}


def key_of(arrays: Rows) -> npt.NDArray[np.uint64]:
    """Mix dataset, file and entry of events into one number each: that by which some are chosen."""
    value = np.zeros(len(arrays["entry"]), dtype=np.uint64)
    for name in ("dataset", "file", "entry"):
        value ^= arrays[name].astype(np.int64).view(np.uint64)
        value = mix(value + np.uint64(0x9E3779B97F4A7C15))
    return value
