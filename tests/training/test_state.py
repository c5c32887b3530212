"""What a checkpoint knows of a run: it comes back whole, and decides when a run ends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlaas_ray.core import FeatureSpec
from mlaas_ray.core.errors import EmptyDataError, JobError
from mlaas_ray.core.task import Task
from mlaas_ray.training.check import check_model
from mlaas_ray.training.cursor import Cursor, Part
from mlaas_ray.training.metrics import scores_of
from mlaas_ray.training.settings import TrainSettings
from mlaas_ray.training.state import Progress, load_progress, reached, restore, save_state

BINARY = Task()
TARGETS = Task(kind="regression", names=("m", "n"), offset=(100.0, -1.0), scale=(30.0, 2.0))


def entry(epoch: int, loss: float, **scores: float) -> dict[str, Any]:
    return {"epoch": epoch, "validation_loss": loss, "scores": scores}


def judged(rule: Any, values: list[dict[str, Any]], **settings: Any) -> tuple[list[bool], Progress]:
    """Judge epochs until the run is stopped; return which were the best so far."""
    wanted = TrainSettings.of({"early_stopping": rule, **settings}, "test")
    progress, best = Progress(Cursor.start(0)), []
    for one in values:
        best.append(progress.judge(one, wanted))
        if progress.stopped:
            break
    return best, progress


def falling(*losses: float) -> list[dict[str, Any]]:
    return [entry(number, loss, auc=0.5) for number, loss in enumerate(losses, start=1)]


def test_a_run_ends_after_as_many_epochs_without_improvement_as_are_allowed() -> None:
    best, progress = judged({"patience": 2}, falling(0.9, 0.7, 0.8, 0.6, 0.6, 0.65, 0.1))
    # equal is no improvement; the seventh epoch never comes
    assert best == [True, True, False, True, False, False]
    assert progress.stopped
    assert progress.best == {"epoch": 4, "value": 0.6, "monitor": "validation_loss"}


def test_an_improvement_must_be_large_enough() -> None:
    best, progress = judged({"patience": 2, "min_delta": 0.125}, falling(1.0, 0.9, 0.75, 0.74, 0.625))
    # against the best of before, not the last: 1.0, then 0.75, which 0.625 does not beat by more than 0.125
    assert best == [True, False, True, False, False]
    assert progress.stopped


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        ("auc", [0.6, 0.7, 0.65, 0.7], [True, True, False, False]),
        ("accuracy", [0.6, 0.5, 0.7], [True, False, True]),
        ("r2", [-3.0, -1.0, 0.2], [True, True, True]),
        ("mae", [3.0, 2.0, 2.5], [True, True, False]),
        ("rmse", [3.0, 4.0, 2.5], [True, False, True]),
    ],
)
def test_scores_are_better_when_larger_and_errors_when_smaller(
    monitor: str, values: list[float], best: list[bool]
) -> None:
    # the loss says the opposite
    found, _ = judged(
        {"monitor": monitor, "patience": 9},
        [
            entry(n, -value if monitor in ("mae", "rmse") else value, **{monitor: value})
            for n, value in enumerate(values)
        ],
    )
    assert found == best


@pytest.mark.parametrize(("task", "monitor"), [(BINARY, "r2"), (TARGETS, "accuracy"), (TARGETS, "auc")])
def test_a_measure_of_another_task_is_refused_before_a_run(
    toy_features: FeatureSpec, task: Task, monitor: str
) -> None:
    settings = TrainSettings.of({"early_stopping": monitor}, "test")
    with pytest.raises(JobError, match=rf"early_stopping\.monitor: {monitor} is no measure of {task.kind}"):
        check_model(None, "torch", toy_features, task=task, settings=settings)


def test_a_measure_that_the_events_do_not_define_stops_nothing_silently() -> None:
    settings = TrainSettings.of({"early_stopping": {"monitor": "auc"}}, "train")
    entry = {"epoch": 1, "validation_loss": 0.3, "scores": {"accuracy": 1.0}, "without": ["signal"]}
    with pytest.raises(EmptyDataError, match=r"looks at auc, .* nothing to judge signal by"):
        Progress(Cursor.start(0)).judge(entry, settings)


def test_without_a_rule_no_epoch_is_kept_and_no_run_stopped() -> None:
    best, progress = judged(None, falling(0.5, 0.6, 0.7, 0.8, 0.9, 1.0))
    assert best == [False] * 6
    assert (progress.stopped, progress.best) == (False, None)


def test_a_loss_that_stands_still_lowers_the_step_size() -> None:
    settings = TrainSettings.of({"schedule": {"kind": "plateau", "every": 2, "factor": 0.5}}, "test")
    progress, drops = Progress(Cursor.start(0)), []
    for one in falling(0.9, 0.8, 0.8, 0.85, 0.81, 0.7, 0.9, 0.9, 0.9, 0.9):
        progress.judge(one, settings)
        drops.append(progress.drops)
    # the count begins anew after each drop, and after each fall
    assert drops == [0, 0, 0, 1, 1, 1, 1, 2, 2, 3]
    assert settings.rates.rate(9.0, 10, progress.drops) == 0.125


def test_an_epoch_begins_without_what_belonged_to_the_last() -> None:
    progress = Progress(Cursor.start(0), steps=3, epoch_events=90, scores=scores_of(BINARY), events=7)
    progress.begin(Cursor.start(1))
    assert progress == Progress(Cursor.start(1), events=7)


def scored(task: Task) -> Any:
    """Scores of some events."""
    random = np.random.default_rng(1)
    scores, shape = scores_of(task), (200, task.outputs)
    y = random.integers(0, 2, 200) if task.classes else random.normal(0, 1, shape)
    prediction = random.random(shape) if task.classes else random.normal(0, 1, shape)
    scores.add(prediction.astype(np.float32), y.astype(np.float32), random.random(200).astype(np.float32))
    return scores


def run_so_far(task: Task) -> Progress:
    """A run in the middle of its third epoch; every value is another than at the start."""
    return Progress(
        Cursor(2, 1, ((3, 2), (1, 0)), ((Part((0, 4), 100, 64),), (Part((1,), 7, 7), Part((5,), 9, 2)))),
        steps=11,
        epoch_events=350,
        scores=scored(task),
        history=[entry(1, 0.7, auc=0.6), entry(2, 0.1 + 0.2, auc=0.625)],
        events=2000,
        seconds={"training": 1.5, "waiting": 0.25, "computing": 1.0, "judging": 0.125, "saving": 0.1},
        training={"loss": 0.5, "events": 1000},
        validation={"loss": 0.6, "events": 100},
        best={"epoch": 2, "value": 0.625},
        stood=1,
        lowest=0.3,
        flat=1,
        drops=2,
        stopped=True,
    )


def network(**changes: Any) -> Any:
    """A small network of PyTorch's."""
    from mlaas_ray.core import Feature, FeatureSpec
    from mlaas_ray.core.task import Task
    from mlaas_ray.training.framework import Setup
    from mlaas_ray.training.frameworks import find_model, load_framework
    from mlaas_ray.training.group import Group
    from mlaas_ray.training.settings import TrainSettings

    torch = load_framework("torch")
    torch.prepare(threads=1, seed=3, precision="float32")
    features = FeatureSpec.of([Feature(name=f"v{i}", kind="flat") for i in range(3)])
    settings = TrainSettings(**changes).filled(torch.defaults)
    options = {"hidden": (8,), "dropout": 0.0}
    return torch.network(Setup(find_model("mlp", torch), options, features, Task(), settings, Group()))


def learn(trained: Any, steps: range) -> None:
    """Take some steps, each on events of its own."""
    from mlaas_ray.training.batches import Batch

    trained.set_rate(1e-2)
    for step in steps:
        random = np.random.default_rng(step)
        y = random.integers(0, 2, 64).astype(np.float32)
        x = random.normal(y[:, None], 1.0, (64, 3)).astype(np.float32)
        trained.step(trained.stage(Batch(x, y, np.ones(64, np.float32))), 64)


def saved_and_loaded(task: Any, before: Any) -> Any:
    """Write a run's state, read it into another network, and go on with both."""
    from mlaas_ray.training.state import load_progress, restore, save_state

    x = np.random.default_rng(0).normal(0, 1, (20, 3)).astype(np.float32)
    through, again = network(), network()
    learn(through, range(5))
    with tempfile.TemporaryDirectory() as name:
        state, best, other = Path(name, "state"), Path(name, "best"), Path(name, "other")
        for folder in (state, best, other):
            folder.mkdir()
        through.save(best)
        at_best = through.predict(x)
        learn(through, range(5, 10))
        save_state(state, before, through, best)
        after = load_progress(state, task)
        restore(state, again, other)
        same = [through.predict(x).tolist() == again.predict(x).tolist()]
        # so does the optimiser, which remembers earlier steps
        learn(through, range(10, 15))
        learn(again, range(10, 15))
        same.append(through.predict(x).tolist() == again.predict(x).tolist())
        again.warm_start(other)
        same.append(again.predict(x).tolist() == at_best.tolist())
        moved = float(np.abs(through.predict(x) - at_best).max())
    return after, same, moved


def averaged_by_hand(steps: int) -> Any:
    """Return what a network answers, and what it does with the mean of its weights, by the formula."""
    import torch

    x = np.random.default_rng(0).normal(0, 1, (20, 3)).astype(np.float32)
    trained = network()
    mean = [parameter.detach().clone() for parameter in trained._full.parameters()]
    for step in range(steps):
        learn(trained, range(step, step + 1))
        decay = min(0.995, (step + 1) / (step + 10))
        own = [*trained._full.parameters()]
        mean = [decay * a + (1 - decay) * b.detach() for a, b in zip(mean, own, strict=True)]
    judged = trained.predict(x)
    with torch.no_grad():
        for parameter, value in zip(trained._full.parameters(), mean, strict=True):
            parameter.copy_(value)
        return judged, trained._full(torch.from_numpy(x)).numpy()


def test_what_is_judged_is_the_mean_of_the_weights_over_the_last_steps(
    in_a_process: Callable[..., Any],
) -> None:
    judged, by_hand = in_a_process("torch", averaged_by_hand, 30)
    assert judged == pytest.approx(by_hand, abs=1e-6)


def changed_on_resume(before: float, after: float) -> Any:
    """Return whether a network that goes on with another decay has the weights that the last step left."""
    import torch

    through, again = network(average=before), network(average=after)
    learn(through, range(5))
    with tempfile.TemporaryDirectory() as name:
        through.save(Path(name))
        again.restore(Path(name))
    pairs = zip(through._full.parameters(), again._full.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(("before", "after"), [(0.995, 0.0), (0.0, 0.995), (0.995, 0.9)])
def test_another_decay_leaves_the_weights_that_are_trained_as_they_were(
    in_a_process: Callable[..., Any], before: float, after: float
) -> None:
    assert in_a_process("torch", changed_on_resume, before, after)


@pytest.mark.parametrize("task", [BINARY, TARGETS], ids=lambda task: task.kind)
def test_a_run_goes_on_from_its_state_as_if_nothing_had_been(
    in_a_process: Callable[..., Any], task: Task
) -> None:
    before = run_so_far(task)
    after, same, moved = in_a_process("torch", saved_and_loaded, task, before)
    assert same == [True, True, True]
    assert moved > 0.01
    ours, theirs = vars(before), vars(after)
    assert {name: value for name, value in theirs.items() if name != "scores"} == {
        name: value for name, value in ours.items() if name != "scores"
    }
    assert after.scores.summary() == before.scores.summary()
    for name, values in before.scores.arrays().items():
        np.testing.assert_array_equal(after.scores.arrays()[name], values)


class Nothing:
    """A network without a state."""

    def save(self, folder: Path) -> None: ...

    def restore(self, folder: Path) -> None: ...


def test_the_first_state_has_neither_scores_nor_a_best_epoch(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("state", "best", "other")]
    for folder in folders:
        folder.mkdir()
    state, best, other = folders
    save_state(state, Progress(Cursor.start(0)), Nothing(), best)  # type: ignore[arg-type]
    assert sorted(path.name for path in state.iterdir()) == ["network", "state.json"]
    after = load_progress(state, BINARY)
    restore(state, Nothing(), other)  # type: ignore[arg-type]
    assert after == Progress(Cursor.start(0))
    assert list(other.iterdir()) == []


def test_a_folder_with_a_finished_model_holds_no_state(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    assert load_progress(tmp_path, BINARY) is None


def ended(rule: Any, losses: list[float], epochs: int = 8) -> Progress:
    """Return the progress of a run that early stopping, or its last epoch, has ended."""
    _, progress = judged(rule, falling(*losses), epochs=epochs)
    progress.cursor = Cursor.start(len(losses))
    return progress


RULE = {"patience": 2}
STOPPED = [0.9, 0.5, 0.6, 0.7]


@pytest.mark.parametrize(
    ("rule", "losses", "settings", "left", "stood"),
    [
        # as it was
        (RULE, STOPPED, {"early_stopping": RULE, "epochs": 8}, False, 2),
        (None, [0.9] * 8, {"epochs": 8}, False, 0),
        # more epochs, also after early stopping, whose patience begins anew
        (None, [0.9] * 8, {"epochs": 9}, True, 0),
        (RULE, STOPPED, {"early_stopping": RULE, "epochs": 20}, True, 0),
        # another patience, or no rule at all
        (RULE, STOPPED, {"early_stopping": {"patience": 3}, "epochs": 8}, True, 2),
        (RULE, STOPPED, {"early_stopping": {"patience": 1}, "epochs": 8}, False, 2),
        (RULE, STOPPED, {"epochs": 8}, True, 0),
        # all epochs are over, whatever the rule
        (RULE, STOPPED, {"early_stopping": {"patience": 9}, "epochs": 4}, False, 2),
        # another number is looked at, of which nothing is known so far
        (RULE, STOPPED, {"early_stopping": "auc", "epochs": 8}, True, 0),
        (None, [0.9] * 3, {"early_stopping": {"patience": 1}, "epochs": 8}, True, 0),
    ],
)
def test_what_is_left_to_train_follows_the_settings_of_now(
    rule: Any, losses: list[float], settings: dict[str, Any], left: bool, stood: int
) -> None:
    progress = ended(rule, losses)
    assert progress.go_on(TrainSettings.of(settings, "test")) is left
    assert progress.stood == stood


def test_the_best_epoch_so_far_counts_while_the_same_number_is_looked_at() -> None:
    progress = ended(RULE, STOPPED)
    progress.go_on(TrainSettings.of({"early_stopping": {"patience": 5}, "epochs": 8}, "test"))
    assert progress.best == {"epoch": 2, "value": 0.5, "monitor": "validation_loss"}
    progress.go_on(TrainSettings.of({"early_stopping": "auc", "epochs": 8}, "test"))
    assert progress.best is None


def test_a_folder_without_a_run_has_reached_nothing(tmp_path: Path) -> None:
    assert reached(str(tmp_path / "none")) == (None, False)
    assert reached(str(tmp_path)) == (None, False)
