from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlaas_ray.training.loop import learning_rate


def test_the_learning_rate_falls_from_its_value_towards_zero() -> None:
    rates = [learning_rate(1e-3, epoch, 10) for epoch in range(10)]
    assert rates[0] == 1e-3
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-4
    assert learning_rate(1e-3, 0, 1) == 1e-3


def one_epoch(table: Any, rate: float, limit: int, nan_weight: int | None = None) -> Any:
    """Train an epoch on this process alone; return the scores, or the error."""
    import numpy as np
    import pyarrow as pa

    from mlaas_ray.core import MlaasError
    from mlaas_ray.training.frameworks import load_framework
    from mlaas_ray.training.group import Group
    from mlaas_ray.training.loop import train_epoch
    from mlaas_ray.training.shards import TrainingEvents

    if nan_weight is not None:
        weight = np.ones(table.num_rows, np.float32)
        weight[nan_weight] = np.nan
        table = table.set_column(table.schema.get_field_index("weight"), "weight", pa.array(weight))
    framework = load_framework("torch")
    framework.prepare(threads=1, seed=1)
    zeros, ones = np.zeros(5, np.float32), np.ones(5, np.float32)
    network = framework.network(framework.builtin("mlp", 5), zeros, ones, Group(), weight_decay=0.0)
    network.begin_epoch(rate, 1)
    events = TrainingEvents(lambda: iter([table]), 5, limit, batch_size=32, group=Group(), seed=1)
    try:
        return train_epoch(network, events, 32, Group(), 0).summary()
    except MlaasError as error:
        return str(error)


@pytest.mark.parametrize("limit", [1 << 20, 4096])
def test_an_epoch_sees_every_event_once(
    in_a_process: Callable[..., Any], toy_events: Callable[..., Any], limit: int
) -> None:
    assert in_a_process("torch", one_epoch, toy_events(5000, 1), 1e-3, limit)["events"] == 5000


def test_a_loss_that_is_no_number_is_told_with_epoch_and_step(
    in_a_process: Callable[..., Any], toy_events: Callable[..., Any]
) -> None:
    told = in_a_process("torch", one_epoch, toy_events(3000, 1), 1e30, 1 << 20)
    assert "the loss is not a number in epoch 1, step 2. Lower train.learning_rate" in told
    told = in_a_process("torch", one_epoch, toy_events(3000, 1), 1e-3, 1 << 20, 5)
    assert "the loss is not a number in epoch 1, step " in told
