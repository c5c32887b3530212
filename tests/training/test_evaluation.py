"""What the finished network answers: scores of all events, the same ones kept by any number of ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlaas_ray.core import Feature, FeatureSpec
from mlaas_ray.core.task import Task
from mlaas_ray.streaming.blocks import table_of
from mlaas_ray.training import evaluation
from mlaas_ray.training.batches import Floats
from mlaas_ray.training.evaluation import (
    Chosen,
    Evaluation,
    evaluate,
    importance,
    telling,
    write_evaluation,
    write_rows,
)
from mlaas_ray.training.framework import Network
from mlaas_ray.training.group import Group
from mlaas_ray.training.settings import Weighting
from tests.training.test_stream import OneOf, Ranks

BINARY = Task()
TARGETS = Task(kind="regression", names=("m", "n"))
# MET (one column), and jets of two variables, two kept of each event
SPEC = FeatureSpec.of(
    [
        Feature(name="MET", kind="flat"),
        Feature(name="Jet_pt", kind="jagged", length=2),
        Feature(name="Jet_id", kind="jagged", length=2),
        Feature(name="empty", kind="jagged", length=0),
    ]
)
# columns: MET, Jet_id_0, Jet_id_1, Jet_pt_0, Jet_pt_1


class Formula(Network):
    """Answers by a formula of the values."""

    def __init__(self, formula: Callable[[Floats], Floats]) -> None:
        self.formula = formula
        self.asked = 0

    def predict(self, x: Floats) -> Floats:
        self.asked += len(x)
        answers = self.formula(x)
        return (answers if answers.ndim == 2 else answers[:, None]).astype(np.float32)

    def save(self, folder: Path) -> None: ...

    def restore(self, folder: Path) -> None: ...

    def export(self, folder: Path) -> list[str]:
        return []


def probability(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x[:, 0] - 0.5 * x[:, 3]))


class Blocks:
    """Events in blocks of some sizes; entries number them through."""

    def __init__(self, sizes: Sequence[int], targets: int = 1) -> None:
        self.starts = np.cumsum([0, *sizes])
        random = np.random.default_rng(2)
        count = int(self.starts[-1])
        self.x = random.normal(0, 1, (count, SPEC.width)).astype(np.float32)
        label = (random.random(count) < probability(self.x)).astype(np.float32)
        self.y = label if targets == 1 else self.x[:, :targets] * 2
        self.weight = random.uniform(-0.2, 1.0, count).astype(np.float32)
        self.read: list[int] = []

    def prepare(self) -> None: ...

    def blocks(self, epoch: int) -> int:
        assert epoch == 0
        return len(self.starts) - 1

    def tables(self, epoch: int, blocks: Sequence[int]) -> Iterator[pa.Table]:
        for index in blocks:
            self.read.append(index)
            rows = np.arange(self.starts[index], self.starts[index + 1])
            ids = (rows % 2).astype(np.int32), (rows % 3).astype(np.int32), rows.astype(np.int64)
            yield table_of(self.x[rows], self.y[rows], self.weight[rows], *ids)


def asked(source: Blocks, group: Group | None = None, task: Task = BINARY, **options: Any) -> Evaluation:
    weighting = options.pop("weighting", Weighting((2.0, 1.0), "absolute"))
    formula = probability if task is BINARY else lambda x: x[:, :2] * 2 + 1
    group = group or Group()
    tables = source.tables(0, range(group.rank, source.blocks(0), group.size))
    return evaluate(Formula(formula), tables, SPEC, task, weighting, group, **options)


def on_ranks(size: int, run: Callable[[Group], Any]) -> list[Any]:
    """Run something on some ranks at once."""
    ranks, results = Ranks(size), [None] * size

    def one(rank: int) -> None:
        results[rank] = run(OneOf(ranks, rank))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_scores_are_of_all_events_with_the_weights_that_count() -> None:
    source = Blocks([70, 1, 200, 129])
    found = asked(source)
    p, y = probability(source.x.astype(np.float64)), source.y
    w = np.abs(source.weight) * np.where(y == 0, 2, 1)
    loss = -np.where(y == 1, np.log(p), np.log(1 - p))
    summary = found.scores.summary()
    assert found.events == summary["events"] == 400
    assert summary["loss"] == pytest.approx((w * loss).sum() / w.sum(), rel=1e-5)
    assert summary["accuracy"] == pytest.approx((w * ((p > 0.5) == y)).sum() / w.sum(), rel=1e-5)
    pairs = np.outer(w[y == 1], w[y == 0])
    above = p[y == 1][:, None] > p[y == 0]
    assert summary["auc"] == pytest.approx((above * pairs).sum() / pairs.sum(), rel=1e-5)


def test_answers_are_kept_with_their_events_and_the_weights_as_read() -> None:
    source = Blocks([70, 1, 200, 129])
    found = asked(source)
    entry = found.sample["entry"]
    assert sorted(entry) == list(range(400))
    # kept by a hash, and not in the order they came in
    assert entry.tolist() != sorted(entry)
    np.testing.assert_allclose(
        found.answers["used_weight"],
        np.abs(source.weight[entry]) * np.where(source.y[entry] == 0, 2, 1),
        rtol=1e-6,
    )
    np.testing.assert_array_equal(found.inputs, source.x[entry])
    for rows in (found.answers, found.sample):
        np.testing.assert_array_equal(rows["y"], source.y[entry])
        np.testing.assert_array_equal(rows["weight"], source.weight[entry])
        np.testing.assert_array_equal(rows["dataset"], entry % 2)
        np.testing.assert_allclose(rows["prediction"][:, 0], probability(source.x[entry]), rtol=1e-5)
    np.testing.assert_array_equal(found.sample["x"], source.x[entry])
    np.testing.assert_array_equal(found.sample["file"], entry % 3)
    assert set(found.answers) == {"prediction", "y", "weight", "used_weight", "dataset"}


def test_several_targets_are_kept_as_they_are() -> None:
    source = Blocks([30, 20], targets=2)
    found = asked(source, task=TARGETS, weighting=Weighting())
    entry = found.sample["entry"]
    np.testing.assert_array_equal(found.answers["y"], source.y[entry])
    assert found.answers["prediction"].shape == (50, 2)
    # each answer is one too large
    summary = found.scores.summary()
    assert (summary["mae"], summary["rmse"]) == (pytest.approx(1.0, rel=1e-5), pytest.approx(1.0, rel=1e-5))


@pytest.mark.parametrize("size", [2, 3])
def test_the_same_events_are_kept_by_any_number_of_ranks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(evaluation, "EVENTS", 150)
    monkeypatch.setattr(evaluation, "SAMPLE", 40)
    sizes = [70, 1, 200, 129, 50]
    alone = asked(Blocks(sizes))
    assert (len(alone.answers["y"]), len(alone.sample["y"])) == (150, 40)
    for found in on_ranks(size, lambda group: asked(Blocks(sizes), group)):
        assert found.events == 450
        assert found.scores.summary() == pytest.approx(alone.scores.summary())
        for ours, theirs in ((alone.answers, found.answers), (alone.sample, found.sample)):
            assert ours.keys() == theirs.keys()
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_rank_without_events_changes_nothing() -> None:
    alone = asked(Blocks([60, 0]))
    assert alone.events == 60
    for found in on_ranks(3, lambda group: asked(Blocks([60]), group)):
        assert found.events == 60
        np.testing.assert_array_equal(found.sample["entry"], alone.sample["entry"])


def test_no_more_blocks_are_read_than_are_wanted() -> None:
    source = Blocks([100] * 8)
    assert asked(source, most=250).events == 300
    assert source.read == [0, 1, 2]
    sources = [Blocks([100] * 8) for _ in range(2)]
    found = on_ranks(2, lambda group: asked(sources[group.rank], group, most=300))
    assert [one.events for one in found] == [400, 400]
    assert [one.read for one in sources] == [[0, 2], [1, 3]]


@pytest.mark.parametrize("parts", [1, 3, 40])
def test_what_is_chosen_are_the_smallest_keys_in_their_order(parts: int) -> None:
    random = np.random.default_rng(6)
    keys = random.permutation(np.arange(1000, dtype=np.uint64) << np.uint64(50))
    chosen = Chosen(100)
    for some in np.array_split(np.arange(1000), parts):
        chosen.add({"number": some, "pair": np.stack([some, -some], axis=1)}, keys[some])
    expected = np.argsort(keys)[:100]
    assert chosen.rows["number"].tolist() == expected.tolist()
    assert chosen.rows["pair"].tolist() == np.stack([expected, -expected], axis=1).tolist()


def test_only_a_branch_that_is_looked_at_is_missed() -> None:
    found = asked(Blocks([2000]), weighting=Weighting())
    network = Formula(probability)
    missed = importance(network, found.sample, SPEC, BINARY, Weighting(), Group())
    # the branch without columns cannot be asked about
    assert missed.keys() == {"MET", "Jet_pt", "Jet_id"}
    assert missed["Jet_id"] == [0.0, 0.0]
    assert missed["MET"][0] > missed["Jet_pt"][0] > 0.01
    assert missed["MET"][1] > missed["Jet_pt"][1] > 0.01


def test_what_is_missed_is_the_loss_that_other_events_values_cost() -> None:
    task = Task(kind="regression", names=("m",), loss="mae")
    y = np.array([1, 2, 4, 8, 16, 32], np.float32)
    x = np.zeros((6, SPEC.width), np.float32)
    x[:, 0] = y
    sample = {"x": x, "y": y, "weight": np.array([1, 1, 2, 1, 1, 3], np.float32)}
    before = x.copy()
    missed = importance(Formula(lambda x: x[:, 0]), sample, SPEC, task, Weighting(), Group())
    other = y[np.random.default_rng(0).permutation(6)].astype(float)
    w = sample["weight"].astype(float)
    cost = float((w * np.abs(other - y)).sum() / w.sum())
    assert cost > 0
    mean = (w * y).sum() / w.sum()
    unexplained = (w * (other - y) ** 2).sum() / (w * (y - mean) ** 2).sum()
    assert missed["MET"] == pytest.approx([cost, unexplained], rel=1e-5)
    assert missed["Jet_pt"] == [0.0, 0.0]
    np.testing.assert_array_equal(x, before)


def test_ranks_share_the_branches_and_all_learn_of_each() -> None:
    sample = asked(Blocks([500]), weighting=Weighting()).sample
    alone = importance(Formula(probability), sample, SPEC, BINARY, Weighting(), Group())
    networks = [Formula(probability) for _ in range(2)]
    found = on_ranks(
        2, lambda group: importance(networks[group.rank], sample, SPEC, BINARY, Weighting(), group)
    )
    assert found[0] == found[1] == alone
    # once as they are, and once for each branch of one's own
    assert [network.asked for network in networks] == [3 * 500, 2 * 500]


def test_without_events_nothing_is_missed() -> None:
    assert importance(Formula(probability), {}, SPEC, BINARY, Weighting(), Group()) == {}


def test_answers_and_a_few_whole_events_are_written(tmp_path: Path) -> None:
    judged, trained = asked(Blocks([300, 100])), asked(Blocks([50]))
    columns = telling(SPEC, {"MET": [0.1, 0.2], "Jet_id": [0.0, None], "Jet_pt": [0.3, 0.4]})
    assert columns == {"Jet_pt_0": 3, "MET": 0, "Jet_id_0": 1}
    write_evaluation(tmp_path, judged, trained, columns)
    with np.load(tmp_path / "evaluation.npz") as arrays:
        assert set(arrays) == {"validation_inputs", "validation_columns"} | {
            f"{part}_{name}"
            for part in ("validation", "training")
            for name in ("prediction", "y", "weight", "used_weight", "dataset", "events")
        }
        assert arrays["validation_columns"].tolist() == list(columns)
        np.testing.assert_array_equal(arrays["validation_inputs"], judged.inputs[:, [3, 0, 1]])
        assert (int(arrays["validation_events"]), int(arrays["training_events"])) == (400, 50)
        for part, kept in (("validation", judged), ("training", trained)):
            for name, values in kept.answers.items():
                np.testing.assert_array_equal(arrays[f"{part}_{name}"], values)
    with np.load(tmp_path / "sample.npz") as arrays:
        # 256: what a package carries
        assert {name: len(arrays[name]) for name in arrays} == dict.fromkeys(
            ("x", "dataset", "file", "entry", "prediction"), 256
        )
        np.testing.assert_array_equal(arrays["x"], judged.sample["x"][:256])
        np.testing.assert_allclose(arrays["prediction"][:, 0], probability(arrays["x"]), rtol=1e-5)


def test_arrays_of_any_name_and_order_are_written(tmp_path: Path) -> None:
    rows = {"file": np.arange(3), "x": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "one": np.array(7)}
    write_rows(tmp_path / "rows.npz", rows)
    with np.load(tmp_path / "rows.npz", allow_pickle=False) as arrays:
        for name, values in rows.items():
            np.testing.assert_array_equal(arrays[name], values)
