"""The contract of all frameworks: mlaas_ray.training.framework says what each must do.

The one of docs/training/sklearn_framework.py passes it too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlaas_ray.training.frameworks import FRAMEWORKS

EXAMPLE = str(Path(__file__).parents[2] / "docs" / "training" / "sklearn_framework.py")
ALL = [*FRAMEWORKS, EXAMPLE]
LAYERED = ["torch", "keras"]
OFFSET = np.array([1.0, -2.0, 0.0], np.float32)
SCALE = np.array([0.5, 0.1, 2.0], np.float32)

pytestmark = pytest.mark.filterwarnings("ignore")


def spec() -> Any:
    """Columns that are normalised by OFFSET and SCALE."""
    from mlaas_ray.core import Feature, FeatureSpec, Statistics

    features = [
        Feature(
            name=f"v{i}",
            kind="flat",
            statistics=Statistics(count=2, min=float(a), max=float(a + 1 / b), mean=float(a), std=1.0),
        )
        for i, (a, b) in enumerate(zip(OFFSET, SCALE, strict=True))
    ]
    return FeatureSpec.of(features)


def task_of(kind: str) -> Any:
    from mlaas_ray.core.task import Task

    if kind == "binary":
        return Task()
    if kind == "multiclass":
        return Task(kind="multiclass", names=("a", "b", "c"))
    if kind == "targets":
        return Task(kind="regression", names=("m", "n"), offset=(100.0, -1.0), scale=(30.0, 2.0))
    return Task(kind="regression", names=("m",), offset=(100.0,), scale=(30.0,))


def events(count: int, seed: int = 0, kind: str = "binary") -> Any:
    """Events whose classes or targets the three values tell, with noise."""
    from mlaas_ray.training.batches import Batch

    random = np.random.default_rng(seed)
    task = task_of(kind)
    if task.classes:
        y = random.integers(0, task.classes, count).astype(np.float32)
        x = random.normal(y[:, None] * [1.0, -1.0, 0.5], 1.0, (count, 3))
    else:
        x = random.normal(0.0, 1.0, (count, 3))
        y = x[:, :1] * 20 - x[:, 1:2] * 10 + 100 + random.normal(0, 3, (count, 1))
        y = np.concatenate([y, x[:, 2:] - 1], axis=1) if kind == "targets" else y[:, 0]
    x = (x / SCALE + OFFSET).astype(np.float32)
    x[random.random(x.shape) < 0.1] = np.nan
    return Batch(x, y.astype(np.float32), random.uniform(0.5, 1.5, count).astype(np.float32))


def setup_of(framework: Any, kind: str = "binary", model: str | None = None, **changes: Any) -> Any:
    from mlaas_ray.training.framework import Setup
    from mlaas_ray.training.frameworks import find_model
    from mlaas_ray.training.group import Group
    from mlaas_ray.training.settings import TrainSettings

    group = changes.pop("group", None) or Group()
    options = changes.pop("options", {})
    settings = TrainSettings(weight_decay=0.0, **changes).filled(framework.defaults)
    return Setup(find_model(model, framework), options, spec(), task_of(kind), settings, group)


def network(name: str, kind: str = "binary", **changes: Any) -> Any:
    from mlaas_ray.training.frameworks import load_framework

    chosen = load_framework(name)
    chosen.prepare(threads=1, seed=7, precision="float32")
    if name == "xgboost":
        changes.setdefault("parameters", {"max_depth": 3, "trees_per_epoch": 10})
    return chosen.network(setup_of(chosen, kind, **changes)), chosen


class Given:
    """A batch of events as a source of one block."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def prepare(self) -> None: ...

    def blocks(self, epoch: int) -> int:
        return 1

    def tables(self, epoch: int, blocks: Any) -> Any:
        from mlaas_ray.streaming.blocks import table_of

        count = len(self.batch)
        ids = [np.zeros(count, np.int32), np.zeros(count, np.int32), np.arange(count, dtype=np.int64)]
        for _ in blocks:
            yield table_of(self.batch.x, self.batch.y, self.batch.weight, *ids)


def epochs(
    trained: Any, batch: Any, kind: str, numbers: Any, rate: float | None = None, size: int = 50
) -> Any:
    """Train some epochs; return the scores of each, as its events were seen."""
    from mlaas_ray.training.cursor import Cursor
    from mlaas_ray.training.group import Group
    from mlaas_ray.training.metrics import scores_of
    from mlaas_ray.training.settings import Weighting
    from mlaas_ray.training.steps import Epoch
    from mlaas_ray.training.stream import EventStream

    task, found = task_of(kind), []
    stream = EventStream(Given(batch), 3, 1 << 22, targets=task.target_shape, seed=1, group=Group())
    for number in numbers:
        stream.start(Cursor.start(number))
        epoch = Epoch(
            number=number,
            task=task,
            stream=stream,
            group=Group(),
            batch_size=size,
            weighting=Weighting(),
            scores=scores_of(task),
            rate=lambda seen: rate or 1e-2,
        )
        trained.reseed(number)
        trained.learn(epoch)
        found.append({**epoch.scores.summary(), "seen": epoch.events})
    stream.close()
    return found


def learn(name: str, kind: str) -> Any:
    trained, _ = network(name, kind)
    batch = events(2000, 1, kind)
    found = epochs(trained, batch, kind, range(6), 0.1 if name == "xgboost" else None)
    return found, trained.predict(events(7, 2, kind).x)


KINDS = ["binary", "multiclass", "regression", "targets"]
CASES = [(name, kind) for name in FRAMEWORKS for kind in KINDS] + [(EXAMPLE, "binary")]


@pytest.mark.parametrize(("framework", "kind"), CASES)
def test_it_learns_every_task(in_a_process: Callable[..., Any], framework: str, kind: str) -> None:
    found, answers = in_a_process(framework, learn, framework, kind)
    assert [one["events"] for one in found] == [one["seen"] for one in found] == [2000] * 6
    assert found[-1]["loss"] < 0.97 * found[0]["loss"]
    score = "r2" if kind in ("regression", "targets") else "auc"
    assert found[-1][score] > 0.8
    assert answers.shape == (7, {"multiclass": 3, "targets": 2}.get(kind, 1))
    assert answers.dtype == np.float32


def exported(name: str, kind: str) -> list[Any]:
    trained, chosen = network(name, kind)
    epochs(trained, events(300, 1, kind), kind, range(1))
    with tempfile.TemporaryDirectory() as folder:
        files = trained.export(Path(folder))
        assert all((Path(folder) / file).exists() for file in files)
        rows = [events(count, seed=3, kind=kind).x for count in (1, 2, 100)]
        rows.append(np.array([[np.nan] * 3, [np.inf, -np.inf, 1], [1e30, -1e30, 0]], np.float32))
        return [
            (file, chosen.answer(Path(folder), file, x), trained.predict(x)) for file in files for x in rows
        ]


@pytest.mark.parametrize(("framework", "kind"), CASES)
def test_exported_files_answer_as_the_network_does(
    in_a_process: Callable[..., Any], framework: str, kind: str
) -> None:
    answers = in_a_process(framework, exported, framework, kind)
    assert answers
    for file, stranger, own in answers:
        assert stranger.shape == own.shape
        assert np.isfinite(own).all()
        assert stranger == pytest.approx(own, rel=1e-5, abs=1e-5), file


def continued(name: str) -> tuple[Any, Any]:
    batch = events(500, 4)
    through, broken, again = (network(name)[0] for _ in range(3))
    epochs(through, batch, "binary", range(4))
    epochs(broken, batch, "binary", range(2))
    with tempfile.TemporaryDirectory() as folder:
        broken.save(Path(folder))
        again.restore(Path(folder))
    epochs(again, batch, "binary", range(2, 4))
    return through.predict(events(50).x), again.predict(events(50).x)


@pytest.mark.parametrize("framework", ALL)
def test_a_restored_network_goes_on_as_if_nothing_had_been(
    in_a_process: Callable[..., Any], framework: str
) -> None:
    through, again = in_a_process(framework, continued, framework)
    assert through.tolist() == again.tolist()


def warm(name: str) -> tuple[Any, Any]:
    first, second = network(name)[0], network(name)[0]
    epochs(first, events(500, 4), "binary", range(2))
    with tempfile.TemporaryDirectory() as folder:
        first.save(Path(folder))
        second.warm_start(Path(folder))
    return first.predict(events(50).x), second.predict(events(50).x)


@pytest.mark.parametrize("framework", ALL)
def test_another_run_can_begin_with_the_weights(in_a_process: Callable[..., Any], framework: str) -> None:
    first, second = in_a_process(framework, warm, framework)
    assert first.tolist() == second.tolist()


def weighted(name: str) -> tuple[float, float]:
    """Train where weights say that nearly all is signal, and the other way round."""
    from mlaas_ray.training.batches import Batch

    means = []
    for label in (0, 1):
        batch = events(1000, 5)
        weight = np.where(batch.y == label, 10.0, 0.1).astype(np.float32)
        trained, _ = network(name)
        epochs(trained, Batch(batch.x, batch.y, weight), "binary", range(4))
        means.append(float(trained.predict(batch.x).mean()))
    return means[0], means[1]


@pytest.mark.parametrize("framework", ALL)
def test_weights_count(in_a_process: Callable[..., Any], framework: str) -> None:
    background, signal = in_a_process(framework, weighted, framework)
    assert background < 0.25
    assert signal > 0.75


def linear(name: str) -> str:
    """A file with one node, all weights 0.1: what it answers can be calculated."""
    if name == "torch":
        return (
            "import torch\n\ndef model(n):\n    layer = torch.nn.Linear(n, 1)\n"
            "    torch.nn.init.constant_(layer.weight, 0.1)\n    torch.nn.init.zeros_(layer.bias)\n"
            "    return torch.nn.Sequential(layer, torch.nn.Sigmoid())\n"
        )
    return (
        "import keras\n\ndef model(n):\n    start = keras.initializers.Constant(0.1)\n"
        "    dense = keras.layers.Dense(1, 'sigmoid', kernel_initializer=start)\n"
        "    return keras.Sequential([keras.layers.Input((n,)), dense])\n"
    )


def expected(x: np.ndarray) -> np.ndarray:
    normalised = np.where(np.isfinite(x), (x - OFFSET) * SCALE, 0)
    return 1 / (1 + np.exp(-0.1 * normalised.sum(axis=1, keepdims=True)))


def edges(name: str) -> tuple[Any, Any]:
    x = np.array(
        [[1, 2, 3], [np.nan, 2, 3], [np.inf, -np.inf, 1], [np.nan] * 3, [3e38, -3e38, 0]], np.float32
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "linear.py")
        file.write_text(linear(name))
        return network(name, model=str(file))[0].predict(x), x


@pytest.mark.parametrize("framework", LAYERED)
def test_raw_values_are_normalised_and_what_is_not_finite_is_nothing(
    in_a_process: Callable[..., Any], framework: str
) -> None:
    answers, x = in_a_process(framework, edges, framework)
    assert answers[:4] == pytest.approx(expected(x[:4]), abs=1e-6)
    assert np.isfinite(answers).all()


def losses_beside_ours(name: str, kind: str, loss: str) -> Any:
    """The loss as the network has it, by its first step, and as it is measured."""
    from mlaas_ray.core.task import Task
    from mlaas_ray.training.metrics import losses

    task = task_of(kind)
    if kind in ("regression", "targets"):
        task = Task(**{**task.model_dump(), "loss": loss})
    trained, _ = network(name, kind)
    trained._task = task
    batch = events(200, 8, kind)
    answers = trained.predict(batch.x)
    if name == "torch":
        import torch

        own = trained._losses(torch.from_numpy(answers), torch.from_numpy(batch.y)).detach().numpy()
    else:
        own = trained._losses(answers, batch.y).numpy()
    return own, losses(task, answers, batch.y)


@pytest.mark.parametrize("framework", LAYERED)
@pytest.mark.parametrize(
    ("kind", "loss"),
    [("binary", ""), ("multiclass", ""), ("targets", "mse"), ("regression", "mae"), ("targets", "huber")],
)
def test_the_loss_that_is_minimised_is_the_one_that_is_told(
    in_a_process: Callable[..., Any], framework: str, kind: str, loss: str
) -> None:
    own, told = in_a_process(framework, losses_beside_ours, framework, kind, loss)
    assert own == pytest.approx(told, rel=1e-4, abs=1e-5)


def clipped(name: str) -> list[float]:
    """How long the gradient of events of weights 1e6 is, with and without a clip, by plain descent."""
    from mlaas_ray.training.batches import Batch

    moved = []
    for clip in (None, 1.0):
        trained, _ = network(name, clip=clip)
        batch = events(64, 9)
        huge = Batch(batch.x, batch.y, batch.weight * 1e6)
        if name == "torch":
            import torch

            trained._optimizer = torch.optim.SGD(trained._full.parameters(), lr=1e-3)
            before = torch.cat([p.detach().flatten().clone() for p in trained._full.parameters()])
            trained.step(trained.stage(huge), 64)
            after = torch.cat([p.detach().flatten() for p in trained._full.parameters()])
            moved.append(float((after - before).norm()) / 1e-3)
        else:
            import keras

            trained._optimizer = keras.optimizers.SGD(1e-3)
            trained._optimizer.build(trained._module.trainable_variables)
            trained._compile()
            before = np.concatenate([w.numpy().ravel() for w in trained._module.trainable_variables])
            trained.step(trained.stage(huge), 64)
            after = np.concatenate([w.numpy().ravel() for w in trained._module.trainable_variables])
            moved.append(float(np.linalg.norm(after - before)) / 1e-3)
    return moved


@pytest.mark.parametrize("framework", LAYERED)
def test_long_gradients_are_cut(in_a_process: Callable[..., Any], framework: str) -> None:
    free, cut = in_a_process(framework, clipped, framework)
    assert free > 100
    assert cut == pytest.approx(1.0, rel=0.01)


def answers_together(config: dict[str, Any]) -> Any:
    """On each of two workers: steps with unequal shares, some of them empty."""
    import tempfile as temporary

    from mlaas_ray.training.group import Group

    group = Group.joined()
    with temporary.TemporaryDirectory() as folder:
        file = Path(folder, "linear.py")
        file.write_text(linear(config["framework"]))
        trained, _ = network(config["framework"], model=str(file), group=group)
    return run_steps(trained, group.rank, group.size)


def run_steps(trained: Any, rank: int, size: int) -> Any:
    from mlaas_ray.training.batches import Batch

    trained.set_rate(1e-2)
    trained.reseed(0)
    # events of the step, and where rank 0's end
    for step, (count, cut) in enumerate([(40, 20), (40, 33), (40, 39), (7, 0), (1, 1)]):
        whole = events(count, step)
        part = slice(0, count) if size == 1 else slice(0, cut) if rank == 0 else slice(cut, count)
        trained.step(trained.stage(Batch(whole.x[part], whole.y[part], whole.weight[part])), count)
    trained.settle()
    return trained.predict(events(30, 99).x)


def answers_alone(name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "linear.py")
        file.write_text(linear(name))
        return run_steps(network(name, model=str(file))[0], 0, 1)


@pytest.mark.parametrize("framework", ["torch", pytest.param("keras", marks=pytest.mark.slow)])
def test_two_workers_with_unequal_shares_learn_what_one_learns(
    in_a_process: Callable[..., Any], tmp_path: Path, framework: str
) -> None:
    from ray.train import RunConfig, ScalingConfig

    from mlaas_ray.training.trainer import Trainer

    alone = in_a_process(framework, answers_alone, framework)
    result = Trainer(
        answers_together,
        datasets={},
        own_ray=True,
        train_loop_config={"framework": framework},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(
            storage_path=str(tmp_path), worker_runtime_env={"env_vars": {"TF_CPP_MIN_LOG_LEVEL": "3"}}
        ),
    ).fit()
    assert result.return_value == pytest.approx(alone, abs=1e-6)
    assert np.std(alone) > 0.01
