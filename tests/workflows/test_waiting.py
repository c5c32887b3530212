"""What a run waits for, and who holds it, in one line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import ray

from mlaas_ray.workflows import waiting
from mlaas_ray.workflows.waiting import told_from, waited_for, waits_told

pytestmark = pytest.mark.usefixtures("ray_local")  # of four CPUs


class Holder:
    """An actor that holds what it was made with."""

    def there(self) -> bool:
        return True


def until(line: Callable[[], bool]) -> None:
    for _ in range(300):
        if line():
            return
        time.sleep(0.1)
    raise AssertionError(waited_for())


def test_who_waits_for_workers_says_how_many_and_what_holds_the_cpus() -> None:
    assert waited_for() is None
    holder = ray.remote(num_cpus=3)(Holder).remote()
    ray.get(holder.there.remote())
    group = ray.util.placement_group([{"CPU": 1}] * 2)
    try:
        until(lambda: waited_for() is not None)
        assert waited_for() == ("waiting for 2 workers of 1 CPU each: 3 of 4 CPUs are held by this run (3)")
        ray.kill(holder)
        until(lambda: waited_for() is None)
    finally:
        ray.util.remove_placement_group(group)


def test_gpus_that_are_nowhere_are_said_to_be() -> None:
    group = ray.util.placement_group([{"CPU": 1, "GPU": 1}])
    try:
        until(lambda: waited_for() is not None)
        assert waited_for() == "waiting for a worker of 1 CPU and 1 GPU: the cluster has no GPU"
    finally:
        ray.util.remove_placement_group(group)
        until(lambda: waited_for() is None)


def test_other_jobs_are_named_by_their_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = ray.remote(num_cpus=4)(Holder).remote()
    ray.get(holder.there.remote())
    held, _ = waiting._held("")
    try:
        # as another job would see it, which has neither workers nor a CPU for the tasks that read
        monkeypatch.setattr(waiting, "_held", lambda job: (held, []))
        monkeypatch.setattr(type(ray.get_runtime_context()), "get_job_id", lambda self: "99000000")
        line = waited_for()
    finally:
        ray.kill(holder)
    assert line is not None
    assert line.startswith("waiting for a CPU to read files with: 4 of 4 CPUs are held by ")
    assert "pytest" in line
    assert ", pid " in line


def test_a_wait_is_told_when_it_lasts_and_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_LOOK_S", 0.01)
    monkeypatch.setattr(waiting, "_PATIENCE_S", 0.2)
    lines = iter([None, "short", None, *["long"] * 10_000])
    monkeypatch.setattr(waiting, "waited_for", lambda: next(lines))
    told: list[str] = []
    with waits_told(told.append):
        time.sleep(1)
    assert told == ["long"]
    monkeypatch.setattr(waiting, "_AGAIN_S", 0.3)
    with waits_told(told.append):
        time.sleep(1.5)
    assert 3 <= len(told) <= 7


def test_a_cluster_that_is_gone_is_asked_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_LOOK_S", 0.01)
    gone = threading.Event()
    looks = iter([["one", "two"], ["three"]])
    told: list[str] = []

    def look() -> list[str]:
        lines = next(looks, None)
        if lines is None:
            gone.set()
            raise ConnectionError("gone")
        return lines

    with told_from(look, told.append):
        assert gone.wait(60)
    # an error that a thread leaves behind would fail the test
    assert told == ["one", "two", "three"]
