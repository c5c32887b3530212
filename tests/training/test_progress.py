from __future__ import annotations

import threading
from typing import Any

import pytest
import ray

from mlaas_ray.training.progress import Mailbox, delivered
from mlaas_ray.training.settings import EpochReport, StepReport

pytestmark = pytest.mark.usefixtures("ray_local")


def epoch(number: int) -> EpochReport:
    return EpochReport(number, 9, 0.5, 0.6, {"auc": 0.7}, 1e-3, 1000.0, 2.0, 0.1, 3.0)


def step(number: int) -> StepReport:
    return StepReport(1, 9, number, 1000, 0.5, 100.0)


def test_reports_come_out_in_their_order_and_then_the_end() -> None:
    mailbox = Mailbox()
    taken: list[Any] = []
    thread = threading.Thread(target=lambda: taken.append(mailbox.take()))
    thread.start()
    # it waits until there is one
    thread.join(0.3)
    assert taken == []
    reports = [step(1), step(2), epoch(1), step(3)]
    for report in reports:
        mailbox.post(report)
    mailbox.end()
    thread.join(20)
    assert [*taken, *(mailbox.take() for _ in range(4))] == [*reports, None]
    mailbox.close()


def test_a_worker_elsewhere_posts_and_functions_here_are_called() -> None:
    epochs: list[tuple[EpochReport, str]] = []
    steps: list[StepReport] = []
    with delivered(
        lambda one: epochs.append((one, threading.current_thread().name)), steps.append
    ) as mailbox:
        assert mailbox is not None
        ray.get(ray.remote(num_cpus=0)(work).remote(mailbox))
    assert epochs == [(epoch(1), "reports"), (epoch(2), "reports")]
    assert steps == [step(10), step(20)]
    assert not any(thread.name == "reports" for thread in threading.enumerate())


def work(mailbox: Mailbox) -> None:
    """Post as a worker does that is gone after its last report."""
    for number in (1, 2):
        mailbox.post(step(10 * number))
        mailbox.post(epoch(number))


@pytest.mark.parametrize("wanted", ["epochs", "steps"])
def test_what_nobody_wants_to_hear_is_dropped(wanted: str) -> None:
    heard: list[Any] = []
    functions = (heard.append, None) if wanted == "epochs" else (None, heard.append)
    with delivered(*functions) as mailbox:
        assert mailbox is not None
        for report in (step(1), epoch(1), step(2)):
            mailbox.post(report)
    assert heard == ([epoch(1)] if wanted == "epochs" else [step(1), step(2)])


def test_without_listeners_there_is_no_mailbox() -> None:
    with delivered(None, None) as mailbox:
        assert mailbox is None


def test_what_a_function_raises_comes_at_the_end() -> None:
    heard: list[int] = []

    def listen(report: EpochReport) -> None:
        heard.append(report.epoch)
        if report.epoch == 2:
            raise KeyboardInterrupt("enough")

    went_on: list[bool] = []

    def post(mailbox: Mailbox | None) -> None:
        assert mailbox is not None
        for number in range(1, 5):
            mailbox.post(epoch(number))
        went_on.append(True)

    with pytest.raises(KeyboardInterrupt, match="enough"), delivered(listen, None) as mailbox:
        post(mailbox)
    assert went_on
    assert heard == [1, 2]


def test_what_the_block_raises_is_not_hidden_by_a_listener() -> None:
    heard: list[int] = []

    def listen(report: EpochReport) -> None:
        heard.append(report.epoch)
        raise RuntimeError("of the listener")

    def fail(mailbox: Mailbox | None) -> None:
        assert mailbox is not None
        mailbox.post(epoch(1))
        raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"), delivered(listen, None) as mailbox:
        fail(mailbox)
    assert heard == [1]
