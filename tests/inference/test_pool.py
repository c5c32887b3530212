"""Models in a process's memory."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from mlaas_ray.core.errors import ModelError, ModelMissingError, PackageError
from mlaas_ray.core.package import MANIFEST, write_package
from mlaas_ray.inference import pool as room
from mlaas_ray.inference.onnx_runtime import OnnxRuntime
from mlaas_ray.inference.pool import PART_ROWS, ModelPool
from mlaas_ray.inference.shipment import ModelKey
from mlaas_ray.repository import Repository
from tests.serving import WIDTH, expected, signature

MEBIBYTE = 1 << 20
ROW = np.arange(WIDTH, dtype=np.float32)[None]


class Opened:
    """Opens ONNX files without examining them, and notes it; or gives other runtimes in their place."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.runtimes: dict[str, object] = {}
        self.seconds = 0.0

    def __call__(self, package, threads, **_options):
        name = package.path.parent.name
        self.names.append(name)
        time.sleep(self.seconds)
        if name in self.fails:
            raise self.fails[name]
        return self.runtimes.get(name) or OnnxRuntime(package.model_path, threads)


class Slow:
    """A model that takes its time, and notes whether two threads ran it at once."""

    def __init__(self, seconds: float = 0.0, until: Callable[[], object] = lambda: None) -> None:
        self.signature = signature()
        self.seconds, self.until = seconds, until
        self.inside = self.most = self.calls = 0
        self.guard = threading.Lock()

    def run(self, batch):
        with self.guard:
            self.calls += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(self.seconds)
        self.until()
        with self.guard:
            self.inside -= 1
        return expected(batch)


@pytest.fixture
def repository(onnx_package, tmp_path):
    repository = Repository(tmp_path / "models")
    for name in ("a", "b", "c"):
        repository.publish(onnx_package, name)
    return repository


@pytest.fixture
def opened():
    return Opened()


@pytest.fixture
def pool(repository, opened):
    return ModelPool(repository, threads=1, memory_bytes=1024 * MEBIBYTE, load=opened)


@pytest.fixture
def key(repository):
    def key(name: str, version: int = 1) -> ModelKey:
        return ModelKey(name, version, repository.get(name, version).digest)

    return key


def test_rows_run_through_their_models(pool, key):
    async def main():
        loads = [(key("a"), ROW), (key("b"), ROW * 2), (key("a"), np.repeat(ROW, 3, axis=0))]
        found = await pool.run(loads, patient=True)
        for (_, rows), outcome in zip(loads, found, strict=True):
            np.testing.assert_allclose(outcome.answer, expected(rows), rtol=1e-6)
            assert outcome.seconds > 0
        again = await pool.run(loads, patient=False)
        for before, outcome in zip(found, again, strict=True):
            np.testing.assert_array_equal(outcome.answer, before.answer)

    asyncio.run(main())


def test_the_models_runtime_is_the_one_found_fastest_unless_told_otherwise(repository, key):
    async def main():
        pool = ModelPool(repository, threads=1, memory_bytes=MEBIBYTE)
        runtime = await pool.prepare(key("a"))
        assert runtime.examination.chosen == "onnxruntime"
        (outcome,) = await pool.run([(key("a"), ROW)], patient=False)
        np.testing.assert_allclose(outcome.answer, expected(ROW), rtol=1e-6)

    asyncio.run(main())


def test_a_model_is_loaded_once_for_all_that_come_meanwhile(pool, opened, key):
    opened.seconds = 0.1

    async def main():
        runs = [pool.run([(key("a"), ROW)], patient=True) for _ in range(50)]
        found = await asyncio.gather(*runs, *(pool.prepare(key("a")) for _ in range(50)))
        assert len({id(runtime) for runtime in found[50:]}) == 1
        assert all(outcome.answer is not None for (outcome,) in found[:50])

    asyncio.run(main())
    assert opened.names == ["a"]


def test_a_caller_that_goes_away_does_not_take_the_load_from_the_others(pool, opened, key):
    opened.seconds = 1.0

    async def main():
        first, second = (asyncio.create_task(pool.prepare(key("a"))) for _ in range(2))
        await asyncio.sleep(0.02)
        first.cancel()
        assert await second is not None
        assert first.cancelled()

    asyncio.run(main())
    assert opened.names == ["a"]


def test_who_is_not_patient_gets_no_answer_but_the_load_starts(pool, key):
    async def main():
        await pool.prepare(key("b"))
        away, here = await pool.run([(key("a"), ROW), (key("b"), ROW)], patient=False)
        assert away.answer is None
        assert here.answer is not None
        async with asyncio.timeout(60):
            while key("a") not in pool.loaded():
                await asyncio.sleep(0.005)
        (outcome,) = await pool.run([(key("a"), ROW)], patient=False)
        np.testing.assert_allclose(outcome.answer, expected(ROW), rtol=1e-6)

    asyncio.run(main())


def test_the_model_not_used_for_longest_makes_room_and_never_the_newest(repository, opened, key):
    size = sum(record.bytes for record in repository.get("a").manifest.files.values())

    async def main():
        # loads of so little do not always show in the process's memory: any two are too many
        pool = ModelPool(repository, threads=1, memory_bytes=size, load=opened)
        for name in ("a", "b", "c"):
            await pool.prepare(key(name))
            assert pool.loaded() == [key(name)]
        assert pool.bytes >= size

    asyncio.run(main())


def test_what_was_used_last_stays(repository, opened, key, monkeypatch):
    # every model takes one MiB
    mebibytes = iter(range(1, 1000))
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=next(mebibytes) * MEBIBYTE))
    monkeypatch.setattr("mlaas_ray.inference.pool.psutil.Process", lambda: process)

    async def main():
        pool = ModelPool(repository, threads=1, memory_bytes=2 * MEBIBYTE, load=opened)
        await pool.prepare(key("a"))
        await pool.prepare(key("b"))
        assert pool.bytes == 2 * MEBIBYTE
        await pool.run([(key("a"), ROW)], patient=False)
        assert pool.loaded() == [key("b"), key("a")]
        await pool.prepare(key("c"))
        assert pool.loaded() == [key("a"), key("c")]
        assert opened.names == ["a", "b", "c"]
        (outcome,) = await pool.run([(key("b"), ROW)], patient=True)
        assert outcome.answer is not None
        assert opened.names[-1] == "b"

    asyncio.run(main())


def test_a_load_that_failed_is_tried_again(pool, opened, key, caplog):
    opened.fails["a"] = ModelError("it does not load")

    async def main():
        with pytest.raises(ModelError, match="it does not load"):
            await pool.prepare(key("a"))
        failed, whole = await pool.run([(key("a"), ROW), (key("b"), ROW)], patient=True)
        assert isinstance(failed.answer, ModelError)
        assert isinstance(whole.answer, np.ndarray)
        opened.fails.clear()
        (outcome,) = await pool.run([(key("a"), ROW)], patient=True)
        assert isinstance(outcome.answer, np.ndarray)

    asyncio.run(main())
    assert opened.names.count("a") == 3
    assert "a:1 was not loaded: it does not load" in caplog.text


def test_a_damaged_package_is_refused(repository, key):
    (repository.root / "a" / "1" / "model.onnx").write_bytes(b"cut short")

    async def main():
        pool = ModelPool(repository, threads=1, memory_bytes=MEBIBYTE)
        with pytest.raises(PackageError, match=r"model\.onnx was changed"):
            await pool.prepare(key("a"))
        assert pool.loaded() == []

    asyncio.run(main())


def test_a_package_that_was_replaced_is_not_taken_for_the_one_before(repository, pool, key):
    before = key("a")
    manifest = repository.root / "a" / "1" / MANIFEST
    manifest.write_text(manifest.read_text() + "\n")
    assert key("a") != before

    async def main():
        with pytest.raises(ModelMissingError, match="a:1 was replaced meanwhile"):
            await pool.prepare(before)
        assert await pool.prepare(key("a"))

    asyncio.run(main())


def test_a_package_that_was_deleted_is_missing(repository, pool, key):
    gone = key("a")
    shutil.rmtree(repository.root / "a")

    async def main():
        (outcome,) = await pool.run([(gone, ROW)], patient=True)
        assert isinstance(outcome.answer, ModelMissingError)

    asyncio.run(main())


def test_a_model_that_fails_does_not_take_the_others_of_its_call_along(pool, opened, key):
    class Broken(Slow):
        def run(self, batch):
            raise RuntimeError("kernel")

    opened.runtimes["a"] = Broken(0)

    async def main():
        await asyncio.gather(*(pool.prepare(key(name)) for name in ("a", "b")))
        wrong = np.zeros((2, WIDTH + 1), np.float32)
        for patient in (True, False):
            found = await pool.run([(key("a"), ROW), (key("b"), wrong), (key("b"), ROW)], patient=patient)
            assert [type(outcome.answer) for outcome in found] == [ModelError, ModelError, np.ndarray]

    asyncio.run(main())


def test_a_slow_model_that_is_run_patiently_does_not_hold_up_quick_ones(pool, opened, key):
    release = threading.Event()
    model = opened.runtimes["a"] = Slow(until=release.wait)

    async def main():
        await asyncio.gather(*(pool.prepare(key(name)) for name in ("a", "b")))
        slow = asyncio.create_task(pool.run([(key("a"), ROW)], patient=True))
        while not model.inside:
            await asyncio.sleep(0.001)
        for _ in range(20):
            await pool.run([(key("b"), ROW)], patient=False)
        assert not slow.done()
        release.set()
        await slow

    asyncio.run(main())


def test_the_rows_of_many_do_not_keep_one_of_the_same_model_waiting_for_all_of_them(pool, opened, key):
    opened.runtimes["a"] = Slow(0.02)

    async def main():
        await pool.prepare(key("a"))
        many = np.zeros((60 * PART_ROWS, WIDTH), np.float32)
        bulk = asyncio.create_task(pool.run([(key("a"), many)], patient=True))
        await asyncio.sleep(0.05)
        await pool.run([(key("a"), ROW)], patient=False)
        assert not bulk.done()
        await bulk

    asyncio.run(main())


class Measured(Slow):
    """A model that was examined, and notes which threads run it."""

    def __init__(self, seconds: dict[int, float], takes: float = 0.0) -> None:
        super().__init__(takes)
        self.examination = SimpleNamespace(seconds=seconds)
        self.threads: list[str] = []

    def run(self, batch):
        self.threads.append(threading.current_thread().name.rpartition("_")[0])
        return super().run(batch)


def test_what_takes_less_than_a_hand_over_is_not_handed_over(pool, opened, key):
    # brief in small batches; never; brief alone
    opened.runtimes = {
        "a": Measured({1: 1e-5, 8: 1e-4}),
        "b": Measured({1: 0.002}),
        "c": Measured({1: 4.5e-4}),
    }

    async def main():
        await asyncio.gather(*(pool.prepare(key(name)) for name in "abc"))

        async def threads(*asked: tuple[str, int]) -> list[str]:
            loads = [(key(name), np.repeat(ROW, rows, axis=0)) for name, rows in asked]
            for outcome, (_, rows) in zip(await pool.run(loads, patient=False), loads, strict=True):
                np.testing.assert_array_equal(outcome.answer, expected(rows))
            return [opened.runtimes[name].threads[-1] for name, _ in asked]

        # the name of the main thread has no number
        assert await threads(("a", 1)) == await threads(("a", 8)) == await threads(("c", 1)) == [""]
        # more rows than were timed
        assert await threads(("a", 9)) == await threads(("b", 1)) == ["quick"]
        # each for itself
        assert await threads(("a", 8), ("b", 1), ("c", 1)) == ["", "quick", ""]

    asyncio.run(main())


def test_many_brief_calls_let_others_in_between(pool, opened, key):
    opened.runtimes = {name: Measured({1: 1e-4}, takes=0.003) for name in "abc"}

    async def main():
        await asyncio.gather(*(pool.prepare(key(name)) for name in "abc"))
        turns = [0]

        async def others():
            while True:
                turns[0] += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(others())
        await asyncio.sleep(0)
        before = turns[0]
        outcomes = await pool.run([(key(name), ROW) for name in "abc"], patient=False)
        beside.cancel()
        # each call is longer than a stretch: between two of them the others have a turn
        assert turns[0] - before == 2
        return outcomes

    for outcome in asyncio.run(main()):
        np.testing.assert_array_equal(outcome.answer, expected(ROW))
    assert {thread for model in opened.runtimes.values() for thread in model.threads} == {""}


def test_a_brief_call_does_not_keep_the_event_loop_waiting_for_a_thread(pool, opened, key):
    opened.runtimes["a"] = model = Measured({1: 1e-5}, takes=0.1)

    async def main():
        await pool.prepare(key("a"))
        patient = asyncio.create_task(pool.run([(key("a"), ROW)], patient=True))
        while not model.inside:
            await asyncio.sleep(0.001)
        await pool.run([(key("a"), ROW)], patient=False)
        await patient

    asyncio.run(main())
    assert model.threads == ["patient", "quick"]


def test_a_patient_thread_has_less_of_a_cpu_than_others_but_never_more_than_it_had(pool, opened, key):
    class Niceness(Slow):
        def run(self, batch):
            return np.full((len(batch), 1), os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    opened.runtimes["a"] = Niceness(0)

    async def main():
        await pool.prepare(key("a"))
        return [(await pool.run([(key("a"), ROW)], patient=patient))[0].answer[0, 0] for patient in (0, 1)]

    quick, patient = asyncio.run(main())
    assert patient == min(19, quick + 10)


def test_a_model_is_never_run_by_two_threads_at_once(pool, opened, key):
    slow = opened.runtimes["a"] = Slow(0.003)

    async def main():
        await pool.prepare(key("a"))
        many = np.zeros((2 * PART_ROWS, WIDTH), np.float32)
        await asyncio.gather(
            *(pool.run([(key("a"), ROW)], patient=bool(number % 3)) for number in range(30)),
            *(pool.run([(key("a"), many)], patient=True) for _ in range(4)),
        )

    asyncio.run(main())
    assert slow.calls == 38
    assert slow.most == 1


def test_other_models_run_meanwhile(pool, opened, key):
    together = threading.Barrier(3)
    for name in ("a", "b", "c"):
        opened.runtimes[name] = Slow(until=lambda: together.wait(60))

    async def main():
        await asyncio.gather(*(pool.prepare(key(name)) for name in ("a", "b", "c")))
        outcomes = await pool.run([(key(name), ROW) for name in ("a", "b", "c")], patient=True)
        assert [type(outcome.answer) for outcome in outcomes] == [np.ndarray] * 3

    asyncio.run(main())


def test_many_rows_answer_as_they_would_in_one_piece(pool, key):
    rows = np.random.default_rng(1).normal(size=(10_000, WIDTH)).astype(np.float32)

    async def main():
        for patient in (True, False):
            await pool.prepare(key("a"))
            (outcome,) = await pool.run([(key("a"), rows)], patient=patient)
            np.testing.assert_allclose(outcome.answer, expected(rows), rtol=1e-4, atol=1e-6)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_deleted_and_replaced_versions_leave_memory(pool, key, repository, monkeypatch):
    monkeypatch.setattr(room, "TIDY_S", 0.05)
    freed = []
    monkeypatch.setattr(room, "_give_back", lambda: freed.append(1))

    async def main():
        for name in ("a", "b", "c"):
            await pool.prepare(key(name))
        repository.delete("b")
        (repository.root / "c" / "1" / MANIFEST).write_text("{}")  # another package under the same number
        await until(lambda: [key.name for key in pool.loaded()] == ["a"])
        await until(lambda: bool(freed))

    asyncio.run(main())


def test_an_older_version_stays_while_it_is_used_or_has_an_alias(
    pool, key, repository, onnx_package, tmp_path, monkeypatch
):
    monkeypatch.setattr(room, "TIDY_S", 0.05)
    monkeypatch.setattr(room, "UNUSED_S", 0.3)
    for number in (2, 3):  # the same package again would be the same version
        other = tmp_path / str(number)
        other.mkdir()
        shutil.copy(onnx_package.model_path, other)
        options = {"name": "a", "framework": "torch", "model_format": "onnx", "signature": signature()}
        package = write_package(other, **options, metrics={"number": number})
        assert repository.publish(package).version == number
    repository.set_alias("a", "kept", 1)

    async def main():
        for version in (1, 2, 3):
            await pool.prepare(key("a", version))
        for _ in range(20):
            await pool.run([(key("a", 2), ROW)], patient=False)
            await asyncio.sleep(0.05)
        assert sorted(key.version for key in pool.loaded()) == [1, 2, 3]
        await until(lambda: sorted(key.version for key in pool.loaded()) == [1, 3])
        # whoever asks for it has it again
        (outcome,) = await pool.run([(key("a", 2), ROW)], patient=True)
        np.testing.assert_allclose(outcome.answer, expected(ROW), rtol=1e-6)

    asyncio.run(main())
