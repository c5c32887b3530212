"""The contract of all frameworks: mlaas_ray.training.framework says what each must do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlaas_ray.training.frameworks import FRAMEWORKS

OFFSET = np.array([1.0, -2.0, 0.0], np.float32)
SCALE = np.array([0.5, 0.1, 2.0], np.float32)


def events(count: int, seed: int = 0) -> Any:
    from mlaas_ray.training.batches import Batch

    random = np.random.default_rng(seed)
    y = (random.random(count) < 0.5).astype(np.float32)
    x = (random.normal(y[:, None], 1.0, (count, 3)) / SCALE + OFFSET).astype(np.float32)
    x[random.random(x.shape) < 0.2] = np.nan
    return Batch(x, y, random.uniform(0.5, 1.5, count).astype(np.float32))


def network(framework: str, module: Callable[[str], Any] | None = None, group: Any = None) -> Any:
    from mlaas_ray.training.frameworks import load_framework
    from mlaas_ray.training.group import Group

    chosen = load_framework(framework)
    chosen.prepare(threads=1, seed=7)
    bare = module(framework) if module else chosen.builtin("mlp", 3)
    return chosen.network(bare, OFFSET, SCALE, group or Group(), weight_decay=0.0)


def linear(framework: str) -> Any:
    """One node with all weights 0.1: what it answers can be calculated."""
    if framework == "torch":
        import torch

        layer = torch.nn.Linear(3, 1)
        torch.nn.init.constant_(layer.weight, 0.1)
        torch.nn.init.zeros_(layer.bias)
        return torch.nn.Sequential(layer, torch.nn.Sigmoid())
    import keras

    dense = keras.layers.Dense(1, "sigmoid", kernel_initializer=keras.initializers.Constant(0.1))
    return keras.Sequential([keras.layers.Input((3,)), dense])


def expected(x: np.ndarray) -> np.ndarray:
    normalised = np.where(np.isfinite(x), (x - OFFSET) * SCALE, 0)
    return 1 / (1 + np.exp(-0.1 * normalised.sum(axis=1)))


def learn(framework: str) -> tuple[float, float]:
    from mlaas_ray.training.metrics import Scores

    trained, batch = network(framework), events(400)
    answers = []
    for step in range(101):
        trained.begin_epoch(3e-3, step)
        answers.append(trained.collect([trained.step(batch, 400)]))
    first, last = Scores(), Scores()
    first.add(answers[0], batch.y, batch.weight)
    last.add(answers[-1], batch.y, batch.weight)
    return first.summary()["loss"], last.summary()["loss"]


def edges(framework: str) -> tuple[Any, Any]:
    x = np.array(
        [[1, 2, 3], [np.nan, 2, 3], [np.inf, -np.inf, 1], [np.nan] * 3, [3e38, -3e38, 0]], np.float32
    )
    return network(framework, linear).predict(x), x


def exported(framework: str) -> list[tuple[Any, Any]]:
    from mlaas_ray.training.frameworks import load_framework

    trained, chosen = network(framework), load_framework(framework)
    trained.step(events(64), 64)
    with tempfile.TemporaryDirectory() as folder:
        trained.export(Path(folder))
        names = sorted(path.name for path in Path(folder).iterdir())
        assert names == ["model.onnx" if framework == "torch" else "model"], names
        rows = [events(count, seed=3).x for count in (1, 2, 100)]
        rows.append(np.array([[np.nan] * 3, [np.inf, -np.inf, 1]], np.float32))
        return [(chosen.answer(Path(folder), x), trained.predict(x)) for x in rows]


def continued(framework: str) -> tuple[Any, Any]:
    def steps(trained: Any, first: int, last: int) -> None:
        for epoch in range(first, last):
            trained.begin_epoch(1e-3 / (epoch + 1), epoch)
            for i in range(3):
                trained.step(events(32, 10 * epoch + i), 32)

    through, broken = network(framework), network(framework)
    steps(through, 0, 4)
    steps(broken, 0, 2)
    with tempfile.TemporaryDirectory() as folder:
        broken.save(Path(folder))
        again = network(framework)
        again.restore(Path(folder))
    steps(again, 2, 4)
    return through.predict(events(50).x), again.predict(events(50).x)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_steps_make_the_loss_smaller(in_a_process: Callable[..., Any], framework: str) -> None:
    first, last = in_a_process(framework, learn, framework)
    assert last < 0.8 * first


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_raw_values_are_normalised_and_what_is_not_finite_is_nothing(
    in_a_process: Callable[..., Any], framework: str
) -> None:
    answers, x = in_a_process(framework, edges, framework)
    assert answers[:4] == pytest.approx(expected(x[:4]), abs=1e-6)
    assert np.isfinite(answers).all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_exported_model_answers_as_the_network_does(
    in_a_process: Callable[..., Any], framework: str
) -> None:
    for stranger, own in in_a_process(framework, exported, framework):
        assert stranger == pytest.approx(own, abs=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_restored_network_goes_on_as_if_nothing_had_been(
    in_a_process: Callable[..., Any], framework: str
) -> None:
    through, again = in_a_process(framework, continued, framework)
    assert through.tolist() == again.tolist()


def answers_together(config: dict[str, str]) -> Any:
    """On each of two workers: steps with unequal shares, some of them empty."""
    from mlaas_ray.training.batches import Batch
    from mlaas_ray.training.group import Group

    group = Group.joined()
    trained = network(config["framework"], linear, group)
    return run_steps(trained, group.rank, group.size, Batch)


def run_steps(trained: Any, rank: int, size: int, batch_type: Any) -> Any:
    trained.begin_epoch(1e-2, 0)
    # events of the step, and where rank 0's end
    for step, (count, cut) in enumerate([(40, 20), (40, 33), (40, 39), (7, 0), (1, 1)]):
        whole = events(count, step)
        part = slice(0, count) if size == 1 else slice(0, cut) if rank == 0 else slice(cut, count)
        trained.step(batch_type(whole.x[part], whole.y[part], whole.weight[part]), count)
    trained.settle()
    return trained.predict(events(30, 99).x)


def answers_alone(framework: str) -> Any:
    from mlaas_ray.training.batches import Batch

    return run_steps(network(framework, linear), 0, 1, Batch)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_two_workers_with_unequal_shares_learn_what_one_learns(
    in_a_process: Callable[..., Any], tmp_path: Path, framework: str
) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    alone = in_a_process(framework, answers_alone, framework)
    result = TorchTrainer(
        answers_together,
        train_loop_config={"framework": framework},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(
            storage_path=str(tmp_path), worker_runtime_env={"env_vars": {"TF_CPP_MIN_LOG_LEVEL": "3"}}
        ),
    ).fit()
    assert result.return_value == pytest.approx(alone, abs=1e-6)
    assert np.std(alone) > 0.01
