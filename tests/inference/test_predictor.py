"""Where rows go, and what is known of who answers."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from mlaas_ray.core.errors import ModelError
from mlaas_ray.inference import predictor as module
from mlaas_ray.inference.busy import BusyError
from mlaas_ray.inference.catalog import Catalog
from mlaas_ray.inference.predictor import BULK_ROWS, HERE, LEAST_BATCH, SHARED, SLOW_S, Predictor
from mlaas_ray.inference.settings import ServiceSettings
from mlaas_ray.inference.shipment import Outcome
from mlaas_ray.repository import Repository
from tests.serving import WIDTH, expected


class Fake:
    """Holds every model there is; takes as long as it is told, and answers what it is told."""

    def __init__(self, *, processes: int = 1, **facts) -> None:
        self.processes = processes
        self.facts = {"seconds": {"1": 1e-4}, "batch_rows": 64} | facts
        self.prepared: list[str] = []
        self.calls: list[tuple[list[tuple[str, int]], bool]] = []
        self.seconds = 1e-4
        self.absent: set[str] = set()
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        self.under_way = self.most = 0

    async def run(self, loads, *, patient, waited_s, behind):
        assert waited_s >= 0 <= behind
        self.calls.append(([(key.name, len(rows)) for key, rows in loads], patient))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.open.wait()
        finally:
            self.under_way -= 1
        if self.error:
            raise self.error
        return [
            Outcome(None if key.name in self.absent and not patient else expected(rows), self.seconds)
            for key, rows in loads
        ]

    async def prepare(self, key):
        if self.error:
            raise self.error
        self.prepared.append(key.name)
        return self.facts

    async def loaded(self):
        return [{"models": []} for _ in range(self.processes)]


@pytest.fixture
def entries(onnx_package, tmp_path):
    repository = Repository(tmp_path / "models")
    for name in ("toy", "other"):
        repository.publish(onnx_package, name)
    return {name: Catalog(repository).find(name) for name in ("toy", "other")}


@pytest.fixture
def heavy(monkeypatch):
    """Names of models that are not light."""
    heavy = set()
    monkeypatch.setattr(module, "light", lambda package, _settings: package.path.parent.name not in heavy)
    return heavy


def rows(count=1):
    return np.ones((count, WIDTH), np.float32)


def predictor_of(shared=None, here=None, **options):
    return Predictor(ServiceSettings.of({"linger_ms": 0.5, **options}), shared=shared, here=here)


async def ask(predictor, entry, count=1):
    answer = await predictor.predict(entry, rows(count))
    np.testing.assert_allclose(answer, expected(rows(count)))


def test_light_models_are_here_and_heavy_ones_in_the_replicas_for_all(entries, heavy):
    heavy.add("other")

    async def main():
        shared, here = Fake(), Fake()
        predictor = predictor_of(shared, here)
        for entry in entries.values():
            await predictor.prepare(entry)
            await ask(predictor, entry)
        assert (here.prepared, shared.prepared) == (["toy"], ["other"])
        assert here.calls == [([("toy", 1)], False)]
        assert shared.calls == [([("other", 1)], False)]
        assert predictor.facts(entries["toy"].key) == here.facts

    asyncio.run(main())


@pytest.mark.parametrize("which", [SHARED, HERE])
def test_where_there_is_one_place_every_model_is_there_and_none_is_examined_for_it(
    entries, monkeypatch, which
):
    monkeypatch.setattr(module, "light", None)

    async def main():
        holder = Fake()
        predictor = predictor_of(**{"shared" if which == SHARED else "here": holder})
        for entry in entries.values():
            await predictor.prepare(entry)
        await asyncio.gather(*(ask(predictor, entry) for entry in entries.values()))
        assert holder.calls == [([("toy", 1), ("other", 1)], False)]
        assert set(await predictor.loaded()) == {which}

    asyncio.run(main())


def test_replicas_of_a_models_own_answer_for_it_and_what_was_known_is_forgotten(entries, heavy):
    async def main():
        shared, here, own = Fake(), Fake(), Fake(batch_rows=999)
        predictor = predictor_of(shared, here)
        for entry in entries.values():
            await predictor.prepare(entry)
        assert predictor.set_holders({"toy": own}) == ["toy"]
        assert predictor.set_holders({"toy": own}) == []
        toy, other = entries["toy"], entries["other"]
        assert predictor.facts(toy.key) == {}
        assert predictor.facts(other.key) != {}
        # not known to be there, so they wait for it
        await ask(predictor, toy)
        assert own.calls == [([("toy", 1)], True)]
        await predictor.prepare(toy)
        await ask(predictor, toy)
        await ask(predictor, other)
        assert own.calls[1:] == [([("toy", 1)], False)]
        assert here.calls == [([("other", 1)], False)]
        assert (await predictor.loaded()).keys() == {SHARED, HERE, "toy"}
        assert predictor.set_holders({}) == ["toy"]
        await ask(predictor, toy)
        assert shared.calls == [([("toy", 1)], True)]
        await predictor.prepare(toy)
        await ask(predictor, toy)
        assert here.calls[1:] == [([("toy", 1)], False)]

    asyncio.run(main())


def test_rows_that_wait_for_replicas_that_go_are_answered_by_those_for_all(entries):
    async def main():
        shared, own = Fake(), Fake()
        predictor = predictor_of(shared)
        predictor.set_holders({"toy": own})
        await predictor.prepare(entries["toy"])
        asked = asyncio.create_task(ask(predictor, entries["toy"]))
        await asyncio.sleep(0)  # it waits now, for the next turn
        predictor.set_holders({})
        await asked
        assert own.calls == []
        assert len(shared.calls) == 1

    asyncio.run(main())


async def most_calls(predictor, entry, holder):
    """Return how many calls are under way when there is much to do."""
    holder.most = 0
    holder.open.clear()
    asked = []
    for _ in range(10):
        asked.append(asyncio.create_task(ask(predictor, entry, LEAST_BATCH)))
        await asyncio.sleep(0.002)
    holder.open.set()
    await asyncio.gather(*asked)
    return holder.most


def test_calls_under_way_are_one_more_than_there_are_processes_and_here_one(entries, heavy):
    async def main():
        shared, here = Fake(), Fake()
        predictor = predictor_of(shared, here)
        heavy.add("toy")
        for entry in entries.values():
            await predictor.prepare(entry)
        assert await most_calls(predictor, entries["toy"], shared) == 2
        shared.processes = here.processes = 4
        await predictor.loaded()
        assert await most_calls(predictor, entries["toy"], shared) == 5
        assert await most_calls(predictor, entries["other"], here) == 1
        shared.processes = 0  # none is up: the next one is waited for
        await predictor.loaded()
        assert await most_calls(predictor, entries["toy"], shared) == 2

    asyncio.run(main())


def test_a_slow_model_has_a_lane_of_its_own_until_it_is_quick_again(entries):
    async def main():
        shared = Fake()
        predictor = predictor_of(shared)
        for entry in entries.values():
            await predictor.prepare(entry)
        toy, other = entries["toy"], entries["other"]

        async def both():
            shared.calls.clear()
            await asyncio.gather(ask(predictor, toy), ask(predictor, other))
            return shared.calls

        assert await both() == [([("toy", 1), ("other", 1)], False)]
        shared.seconds = 50 * SLOW_S
        await ask(predictor, toy)
        shared.seconds = 1e-4
        assert await both() == [([("toy", 1)], True), ([("other", 1)], False)]
        for _ in range(30):
            await ask(predictor, toy)
        assert await both() == [([("toy", 1), ("other", 1)], False)]

    asyncio.run(main())


def test_a_model_that_is_slow_when_it_is_loaded_has_its_lane_at_once(entries):
    async def main():
        shared = Fake(seconds={"1": 0.5})
        predictor = predictor_of(shared)
        await predictor.prepare(entries["toy"])
        await ask(predictor, entries["toy"])
        assert shared.calls == [([("toy", 1)], True)]

    asyncio.run(main())


def test_many_rows_of_one_caller_and_versions_unknown_go_alone(entries):
    async def main():
        shared = Fake()
        predictor = predictor_of(shared)
        for entry in entries.values():
            await predictor.prepare(entry)
        toy, other = entries["toy"], entries["other"]
        shared.seconds = 5.0  # of which nothing is learnt
        await asyncio.gather(ask(predictor, toy, BULK_ROWS), ask(predictor, other, BULK_ROWS))
        shared.seconds = 1e-4
        assert shared.calls == [([("toy", BULK_ROWS)], True), ([("other", BULK_ROWS)], True)]
        await asyncio.gather(
            ask(predictor, toy, BULK_ROWS), ask(predictor, toy, BULK_ROWS - 1), ask(predictor, other)
        )
        assert shared.calls[2:] == [
            ([("toy", BULK_ROWS)], True),
            ([("toy", BULK_ROWS - 1), ("other", 1)], False),
        ]
        assert predictor_of(shared).facts(toy.key) == {}
        await ask(predictor_of(shared), toy)
        assert shared.calls[-1] == ([("toy", 1)], True)

    asyncio.run(main())


def test_a_model_that_left_memory_is_waited_for_by_its_own_callers_only(entries):
    async def main():
        shared = Fake()
        shared.absent = {"toy"}
        predictor = predictor_of(shared)
        for entry in entries.values():
            await predictor.prepare(entry)
        told = []

        async def one(name):
            await ask(predictor, entries[name])
            told.append(name)

        await asyncio.gather(one("toy"), one("other"))
        assert told == ["other", "toy"]
        assert shared.calls == [([("toy", 1), ("other", 1)], False), ([("toy", 1)], True)]

    asyncio.run(main())


@pytest.mark.parametrize("absent", [False, True])
def test_who_never_answers_is_given_up(entries, absent):
    async def main():
        shared = Fake()
        predictor = predictor_of(shared, predict_timeout_s=0.1)
        await predictor.prepare(entries["toy"])
        if absent:
            shared.absent = {"toy"}

            async def never(loads, *, patient, plain=shared.run, **more):
                if patient:
                    await asyncio.Event().wait()
                return await plain(loads, patient=patient, **more)

            shared.run = never
        else:
            shared.open.clear()
        with pytest.raises(TimeoutError):
            await ask(predictor, entries["toy"])
        assert shared.under_way == predictor.batcher.ongoing == predictor.batcher.waiting == 0

    asyncio.run(main())


@pytest.mark.parametrize(("facts", "batch"), [({"batch_rows": 700}, 700), ({"batch_rows": 8}, LEAST_BATCH)])
def test_a_call_is_worth_as_many_rows_as_the_model_likes(entries, facts, batch):
    async def main():
        shared = Fake(**facts)
        predictor = predictor_of(shared, linger_ms=10_000)
        toy = entries["toy"]
        await predictor.prepare(toy)
        shared.open.clear()
        asked = [asyncio.create_task(ask(predictor, toy))]
        await asyncio.sleep(0.005)
        asked.append(asyncio.create_task(ask(predictor, toy, batch - 1)))
        await asyncio.sleep(0.005)
        assert len(shared.calls) == 1  # there are too few
        asked.append(asyncio.create_task(ask(predictor, toy)))
        await asyncio.sleep(0.005)
        assert shared.calls[1:] == [([("toy", batch)], False)]
        shared.open.set()
        await asyncio.gather(*asked)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "raised"), [(TimeoutError(), BusyError), (ModelError("it fails"), ModelError)]
)
def test_what_does_not_load_is_said(entries, error, raised):
    async def main():
        shared = Fake()
        shared.error = error
        with pytest.raises(raised):
            await predictor_of(shared).prepare(entries["toy"])

    asyncio.run(main())


class Picky(Fake):
    """Fails with rows that begin with a negative number, and notes how many calls of the model it made."""

    def __init__(self) -> None:
        super().__init__()
        self.tries = 0

    async def run(self, loads, *, patient, waited_s, behind):
        self.tries += len(loads)
        outcomes = await super().run(loads, patient=patient, waited_s=waited_s, behind=behind)
        for number, (_, given) in enumerate(loads):
            if outcomes[number].answer is not None and (given[:, 0] < 0).any():
                outcomes[number] = Outcome(ModelError(f"of {len(given)} rows"), 1e-4, by_rows=True)
        return outcomes


def numbered(count, bad=()):
    """Rows that differ, the bad ones negative."""
    values = np.arange(1, count + 1, dtype=np.float32)
    values[list(bad)] *= -1
    return np.repeat(values[:, None], WIDTH, axis=1)


async def ask_apart(predictor, entry, given):
    """What each of many callers of one row each is told, by their number."""
    return await asyncio.gather(
        *(predictor.predict(entry, row[None]) for row in given), return_exceptions=True
    )


@pytest.mark.parametrize("bad", [[0], [99], [3, 4], [0, 7, 50, 51, 99], range(0, 100, 2), range(1, 100)])
@pytest.mark.parametrize("known", [True, False])
def test_rows_that_a_model_fails_with_are_found_and_all_others_answered(entries, bad, known):
    async def main():
        fake, entry = Picky(), entries["toy"]
        predictor = Predictor(ServiceSettings(), shared=fake, here=None)
        if known:
            await predictor.prepare(entry)
        given = numbered(100, bad)
        answers = await ask_apart(predictor, entry, given)
        for number, answer in enumerate(answers):
            if number in bad:
                assert isinstance(answer, ModelError)
                assert "of 1 rows" in str(answer)
            else:
                np.testing.assert_array_equal(answer, expected(given[number : number + 1]))
        # once together, and as often as 100 can be halved
        if known:
            assert len(fake.calls) <= 1 + 7
            assert fake.tries <= 1 + 2 * 7 * min(len(bad), 64)

    asyncio.run(main())


def test_a_callers_rows_are_answered_together_or_not_at_all(entries):
    async def main():
        fake, entry = Picky(), entries["toy"]
        predictor = Predictor(ServiceSettings(), shared=fake, here=None)
        await predictor.prepare(entry)
        given = [numbered(3), numbered(5, [4]), numbered(1), numbered(7, [0, 1])]
        told: list[list[object]] = []
        predictor.add(entry, numbered(4, [2]), told.append)
        answers = await asyncio.gather(
            *(predictor.predict(entry, rows) for rows in given), return_exceptions=True
        )
        assert [isinstance(answer, ModelError) for answer in answers] == [False, True, False, True]
        for number in (0, 2):
            np.testing.assert_array_equal(answers[number], expected(given[number]))
        (each,) = told
        assert [isinstance(answer, ModelError) for answer in each] == [False, False, True, False]
        np.testing.assert_array_equal(each[3], expected(numbered(4)[3:]))

    asyncio.run(main())


def test_one_callers_rows_are_not_taken_apart(entries):
    async def main():
        fake, entry = Picky(), entries["toy"]
        predictor = Predictor(ServiceSettings(), shared=fake, here=None)
        await predictor.prepare(entry)
        with pytest.raises(ModelError, match="of 500 rows"):
            await predictor.predict(entry, numbered(500, [7]))
        assert fake.tries == 1

    asyncio.run(main())


def test_a_model_that_always_fails_costs_a_bounded_number_of_tries(entries):
    async def main():
        fake, entry = Picky(), entries["toy"]
        predictor = Predictor(ServiceSettings(), shared=fake, here=None)
        await predictor.prepare(entry)
        answers = await ask_apart(predictor, entry, -numbered(4000))
        assert fake.tries <= 12 * 2 * (module.MOST_PARTS + 1)
        assert {type(answer) for answer in answers} == {ModelError, BusyError}
        assert all("of 1 rows" in str(answer) for answer in answers if isinstance(answer, ModelError))

    asyncio.run(main())


def test_what_is_known_is_told_when_the_replicas_die_meanwhile(entries):
    async def main():
        fake, entry = Picky(), entries["toy"]
        predictor = Predictor(ServiceSettings(), shared=fake, here=None)
        await predictor.prepare(entry)
        run = fake.run

        async def dies(loads, **more):
            if len(fake.calls) == 3:
                raise RuntimeError("it died")
            return await run(loads, **more)

        fake.run = dies
        answers = await ask_apart(predictor, entry, numbered(8, [0]))
        assert [isinstance(answer, np.ndarray) for answer in answers] == [False] * 2 + [True] * 6
        assert all("it died" in str(answer) for answer in answers[:2])

    asyncio.run(main())


def test_an_error_that_is_not_of_the_rows_is_told_to_all_at_once(entries):
    async def main():
        fake, entry = Fake(), entries["toy"]
        predictor = Predictor(ServiceSettings(), shared=fake, here=None)
        await predictor.prepare(entry)

        async def run(loads, **_):
            fake.calls.append(([], False))
            return [Outcome(ModelError("it does not load")) for _ in loads]

        fake.run = run
        answers = await ask_apart(predictor, entry, numbered(50))
        assert all(isinstance(answer, ModelError) for answer in answers)
        assert len(fake.calls) == 1

    asyncio.run(main())


def test_few_versions_are_remembered(entries, monkeypatch):
    monkeypatch.setattr(module, "MOST_VERSIONS", 1)

    async def main():
        shared = Fake()
        predictor = predictor_of(shared)
        for entry in entries.values():
            await predictor.prepare(entry)
        assert predictor.facts(entries["toy"].key) == {}
        await ask(predictor, entries["toy"])  # it is answered all the same
        assert predictor.facts(entries["other"].key) == shared.facts

    asyncio.run(main())
