"""Rows of many callers, gathered."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict

import numpy as np
import pytest

from mlaas_ray.core.errors import ModelError
from mlaas_ray.inference.batcher import Batcher, Lane
from mlaas_ray.inference.busy import BusyError

LANE = Lane("shared")


def rows(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


class Calls:
    """A dispatch that notes its calls, and answers twice each row when it is let."""

    def __init__(self, *, held: bool = False) -> None:
        self.seen: list[tuple[object, dict[object, list[float]], float]] = []
        self.open = asyncio.Event()
        self.under_way: dict[object, int] = defaultdict(int)
        self.most: dict[object, int] = defaultdict(int)
        if not held:
            self.open.set()

    async def __call__(self, lane, groups, waited_s):
        self.seen.append((lane, {group.model: group.rows[:, 0].tolist() for group in groups}, waited_s))
        self.under_way[lane] += 1
        self.most[lane] = max(self.most[lane], self.under_way[lane])
        await self.open.wait()
        self.under_way[lane] -= 1
        return [group.rows * 2 for group in groups]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_lone_row_leaves_at_the_next_turn_of_the_loop():
    async def main():
        calls = Calls()
        batcher = Batcher(calls, linger_s=60)
        answer = asyncio.create_task(batcher.predict(LANE, "m", rows(3)))
        await turns()
        assert answer.done()
        assert answer.result().tolist() == [[6.0]]
        assert (batcher.calls, batcher.rows, batcher.waiting, batcher.ongoing) == (1, 1, 0, 0)

    asyncio.run(main())


def test_rows_of_one_turn_leave_together_grouped_by_model():
    async def main():
        calls = Calls()
        batcher = Batcher(calls)
        answers = await asyncio.gather(
            batcher.predict(LANE, "a", rows(1)),
            batcher.predict(LANE, "b", rows(2, 3)),
            batcher.predict(LANE, "a", rows(4)),
        )
        assert [answer[:, 0].tolist() for answer in answers] == [[2.0], [4.0, 6.0], [8.0]]
        assert [seen[:2] for seen in calls.seen] == [("shared", {"a": [1.0, 4.0], "b": [2.0, 3.0]})]
        assert (batcher.calls, batcher.rows) == (1, 4)

    asyncio.run(main())


def test_while_a_call_is_under_way_rows_linger_for_company():
    async def main():
        calls = Calls(held=True)
        batcher = Batcher(calls, linger_s=0.05)
        answers = [asyncio.create_task(batcher.predict(LANE, "m", rows(0)))]
        await turns()
        for value in (1, 2):
            answers.append(asyncio.create_task(batcher.predict(LANE, "m", rows(value))))
            await turns()
        assert len(calls.seen) == 1
        assert (batcher.waiting, batcher.ongoing) == (2, 1)
        async with asyncio.timeout(60):
            while len(calls.seen) < 2:
                await asyncio.sleep(0.01)
        assert calls.seen[1][1] == {"m": [1.0, 2.0]}
        assert 0.03 < calls.seen[1][2] < 60
        calls.open.set()
        await asyncio.gather(*answers)

    asyncio.run(main())


def test_enough_rows_do_not_linger():
    async def main():
        calls = Calls(held=True)
        batcher = Batcher(calls, linger_s=60)
        lane = Lane("shared", batch_rows=3)
        answers = [asyncio.create_task(batcher.predict(lane, "m", rows(value))) for value in range(1)]
        await turns()
        answers += [asyncio.create_task(batcher.predict(lane, "m", rows(value))) for value in (1, 2)]
        await turns()
        assert len(calls.seen) == 1
        answers.append(asyncio.create_task(batcher.predict(lane, "m", rows(3))))
        await turns()
        assert [seen[1]["m"] for seen in calls.seen] == [[0.0], [1.0, 2.0, 3.0]]
        calls.open.set()
        await asyncio.gather(*answers)

    asyncio.run(main())


def test_rows_leave_with_the_next_answer_when_no_more_calls_may_be_under_way():
    async def main():
        calls = Calls(held=True)
        batcher = Batcher(calls, linger_s=0)
        lane = Lane("shared", calls=1, batch_rows=1)
        first = asyncio.create_task(batcher.predict(lane, "m", rows(0)))
        await turns()
        others = [asyncio.create_task(batcher.predict(lane, "m", rows(value))) for value in range(1, 6)]
        await asyncio.sleep(0.02)
        assert len(calls.seen) == 1
        calls.open.set()
        await asyncio.gather(first, *others)
        assert [seen[1]["m"] for seen in calls.seen] == [[0.0], [1.0, 2.0, 3.0, 4.0, 5.0]]
        assert calls.most["shared"] == 1

    asyncio.run(main())


def test_a_lane_that_is_slow_does_not_hold_up_another():
    async def main():
        held, free = Calls(held=True), Calls()

        async def dispatch(lane, groups, waited_s):
            return await (held if lane == "slow" else free)(lane, groups, waited_s)

        batcher = Batcher(dispatch, linger_s=0)
        slow = [
            asyncio.create_task(batcher.predict(Lane("slow", calls=1), "m", rows(value))) for value in (1, 2)
        ]
        await turns()
        for value in range(20):
            answer = await asyncio.wait_for(batcher.predict(Lane("quick"), "m", rows(value)), 60)
            assert answer.tolist() == [[2.0 * value]]
        assert not any(task.done() for task in slow)
        held.open.set()
        assert [answer.tolist() for answer in await asyncio.gather(*slow)] == [[[2.0]], [[4.0]]]

    asyncio.run(main())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_each_of_2000_callers_gets_the_answers_to_its_own_rows(seed):
    choose = random.Random(seed)
    most: dict[object, int] = defaultdict(int)
    under_way: dict[object, int] = defaultdict(int)
    sizes = []

    async def dispatch(lane, groups, waited_s):
        under_way[lane] += 1
        most[lane] = max(most[lane], under_way[lane])
        sizes.append([len(group.rows) for group in groups])
        await asyncio.sleep(choose.choice([0, 0, 0.001, 0.003]))
        under_way[lane] -= 1
        if choose.random() < 0.1:

            async def later(group):
                await asyncio.sleep(choose.random() * 0.003)
                return group.rows * 10 + group.model

            return [later(group) for group in groups]
        return [group.rows * 10 + group.model for group in groups]

    async def caller(batcher, number):
        await asyncio.sleep(choose.random() * 0.2)
        model = choose.randrange(7)
        lane = Lane(model % 3, calls=1 + model % 3, batch_rows=16)
        sent = rows(*(number * 10 + np.arange(choose.choice([1, 1, 1, 2, 5, 40]))))
        assert (await batcher.predict(lane, model, sent)).tolist() == (sent * 10 + model).tolist()
        return len(sent)

    async def main():
        batcher = Batcher(dispatch, call_rows=64)
        sent = await asyncio.gather(*(caller(batcher, number) for number in range(2000)))
        assert batcher.rows == sum(sent) == sum(map(sum, sizes))
        assert batcher.calls == len(sizes) < 2000
        await turns()
        assert (batcher.waiting, batcher.ongoing, batcher._lanes, batcher._tasks) == (0, 0, {}, set())

    asyncio.run(main())
    assert all(most[lane] <= lane + 1 for lane in (0, 1, 2))
    assert all(sum(size) <= 64 for size in sizes)


def test_too_many_rows_are_refused_but_not_those_of_a_lone_caller():
    async def main():
        calls = Calls(held=True)
        batcher = Batcher(calls, queue_rows=4)
        lane = Lane("shared", calls=1)
        answers = [asyncio.create_task(batcher.predict(lane, "m", rows(*range(100))))]
        await turns()
        assert batcher.waiting == 0
        answers += [asyncio.create_task(batcher.predict(lane, "m", rows(1))) for _ in range(4)]
        await turns()
        with pytest.raises(BusyError, match="4 rows are waiting already"):
            await batcher.predict(lane, "other", rows(1))
        # another lane has room of its own
        answers.append(asyncio.create_task(batcher.predict(Lane("other"), "m", rows(1))))
        calls.open.set()
        assert [len(answer) for answer in await asyncio.gather(*answers)] == [100, 1, 1, 1, 1, 1]
        assert len(await batcher.predict(lane, "m", rows(1))) == 1

    asyncio.run(main())


def test_rows_that_waited_too_long_are_told_so_and_not_sent():
    async def main():
        calls = Calls(held=True)
        batcher = Batcher(calls, timeout_s=1, linger_s=0)
        lane = Lane("shared", calls=1)
        first = asyncio.create_task(batcher.predict(lane, "m", rows(1)))
        await turns()
        late = [asyncio.create_task(batcher.predict(lane, model, rows(2))) for model in ("m", "n")]
        await asyncio.sleep(1.1)
        fresh = asyncio.create_task(batcher.predict(lane, "m", rows(3)))
        await turns()
        calls.open.set()
        assert (await first).tolist() == [[2.0]]
        assert (await fresh).tolist() == [[6.0]]
        for one in late:
            with pytest.raises(TimeoutError):
                await one
        assert [seen[1] for seen in calls.seen] == [{"m": [1.0]}, {"m": [3.0]}]
        assert batcher.rows == 2

    asyncio.run(main())


def test_a_lane_whose_rows_all_waited_too_long_is_forgotten():
    async def main():
        calls = Calls(held=True)
        batcher = Batcher(calls, timeout_s=0.01, linger_s=0)
        lane = Lane("shared", calls=1)
        first = asyncio.create_task(batcher.predict(lane, "m", rows(1)))
        await turns()
        late = asyncio.create_task(batcher.predict(lane, "m", rows(2)))
        await asyncio.sleep(0.05)
        calls.open.set()
        await first
        with pytest.raises(TimeoutError):
            await late
        assert batcher._lanes == {}

    asyncio.run(main())


def test_who_is_told_of_an_error_may_ask_again_at_once():
    async def main():
        calls = Calls(held=True)
        batcher = Batcher(calls, timeout_s=1, linger_s=0, call_rows=1)
        lane = Lane("shared", calls=1)
        first = asyncio.create_task(batcher.predict(lane, "m", rows(0)))
        await turns()
        answers: list[object] = []

        def again(answer):
            assert isinstance(answer, TimeoutError)
            batcher.add(lane, "m", rows(9), answers.append)

        batcher.add(lane, "m", rows(1), again)
        await asyncio.sleep(1.1)
        batcher.add(lane, "m", rows(2), answers.append)
        batcher.add(lane, "m", rows(3), answers.append)
        calls.open.set()
        await first
        async with asyncio.timeout(60):
            while len(answers) < 3:
                await asyncio.sleep(0.01)
        assert [answer.tolist() for answer in answers] == [[[4.0]], [[6.0]], [[18.0]]]
        assert calls.most["shared"] == 1

    asyncio.run(main())


def test_a_failed_call_reaches_each_of_its_callers_and_no_other():
    async def main():
        async def dispatch(lane, groups, waited_s):
            if any(group.model == "broken" for group in groups):
                raise ModelError("the model is broken")
            return [group.rows * 2 for group in groups]

        batcher = Batcher(dispatch)
        found = await asyncio.gather(
            batcher.predict(LANE, "broken", rows(1)),
            batcher.predict(LANE, "beside", rows(2)),
            batcher.predict(Lane("other"), "beside", rows(3)),
            return_exceptions=True,
        )
        assert [type(answer).__name__ for answer in found] == ["ModelError", "ModelError", "ndarray"]
        assert (await batcher.predict(LANE, "beside", rows(4))).tolist() == [[8.0]]
        assert batcher._lanes == {}

    asyncio.run(main())


def test_an_error_of_one_model_is_not_that_of_the_others_of_the_call():
    async def main():
        async def dispatch(lane, groups, waited_s):
            return [ModelError("broken") if group.model == "broken" else group.rows * 2 for group in groups]

        batcher = Batcher(dispatch)
        found = await asyncio.gather(
            batcher.predict(LANE, "broken", rows(1)),
            batcher.predict(LANE, "whole", rows(2)),
            batcher.predict(LANE, "broken", rows(3)),
            return_exceptions=True,
        )
        assert [type(answer).__name__ for answer in found] == ["ModelError", "ndarray", "ModelError"]
        assert found[1].tolist() == [[4.0]]

    asyncio.run(main())


def test_rows_that_cannot_be_joined_fail_and_leave_the_lane_in_order():
    async def main():
        batcher = Batcher(Calls())
        found = await asyncio.gather(
            batcher.predict(LANE, "m", np.zeros((1, 2), np.float32)),
            batcher.predict(LANE, "m", np.zeros((1, 3), np.float32)),
            return_exceptions=True,
        )
        assert [type(answer) for answer in found] == [ValueError, ValueError]
        assert (await batcher.predict(LANE, "m", rows(4))).tolist() == [[8.0]]
        assert batcher.ongoing == 0

    asyncio.run(main())


def test_the_trouble_of_one_caller_is_not_the_others(caplog):
    async def main():
        batcher = Batcher(Calls())
        answers: list[object] = []

        def fails(answer):
            raise ConnectionResetError

        for done in (answers.append, fails, answers.append):
            batcher.add(LANE, "m", rows(len(answers) + 1), done)
        await turns()
        assert [answer.tolist() for answer in answers] == [[[2.0]], [[2.0]]]

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "could not be handed over" in caplog.text


def test_an_answer_that_is_still_to_come_holds_up_nobody_else():
    async def main():
        load = asyncio.Event()

        async def coming(group, *, fails):
            await load.wait()
            if fails:
                raise ModelError("it does not load")
            return group.rows * 3

        async def dispatch(lane, groups, waited_s):
            return [
                group.rows * 2 if group.model == "here" else coming(group, fails=group.model == "broken")
                for group in groups
            ]

        batcher = Batcher(dispatch, linger_s=0)
        lane = Lane("shared", calls=1)
        loading = [
            asyncio.create_task(batcher.predict(lane, model, rows(1))) for model in ("away", "broken", "away")
        ]
        for value in range(5):
            here = await asyncio.wait_for(batcher.predict(lane, "here", rows(value)), 60)
            assert here.tolist() == [[2.0 * value]]
        assert batcher.ongoing == 0
        assert not any(task.done() for task in loading)
        load.set()
        found = await asyncio.gather(*loading, return_exceptions=True)
        assert [type(answer).__name__ for answer in found] == ["ndarray", "ModelError", "ndarray"]
        assert found[0].tolist() == found[2].tolist() == [[3.0]]

    asyncio.run(main())


def test_an_answer_to_come_that_is_cancelled_is_told_too():
    async def main():
        pending = asyncio.get_running_loop().create_future()

        async def dispatch(lane, groups, waited_s):
            return [pending]

        answer = asyncio.create_task(Batcher(dispatch).predict(LANE, "m", rows(1)))
        await turns()
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(answer, 60)

    asyncio.run(main())


def test_a_caller_that_goes_away_does_not_disturb_the_others():
    async def main():
        calls = Calls(held=True)
        batcher = Batcher(calls, linger_s=0)
        lane = Lane("shared", calls=1)
        tasks = [asyncio.create_task(batcher.predict(lane, "m", rows(value))) for value in range(3)]
        await turns()
        tasks += [asyncio.create_task(batcher.predict(lane, "m", rows(value))) for value in range(3, 6)]
        await turns()
        tasks[1].cancel()
        tasks[4].cancel()
        calls.open.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(found[number]) for number in (1, 4)] == [asyncio.CancelledError] * 2
        assert [found[number].tolist() for number in (0, 2, 3, 5)] == [[[0.0]], [[4.0]], [[6.0]], [[10.0]]]

    asyncio.run(main())


def test_a_call_has_no_more_rows_than_it_may_unless_one_caller_brings_more():
    async def main():
        calls = Calls(held=True)
        batcher = Batcher(calls, call_rows=10, linger_s=0)
        lane = Lane("shared", calls=1)
        first = asyncio.create_task(batcher.predict(lane, "m", rows(0)))
        await turns()
        sizes = [4, 4, 4, 25, 3, 8]
        others = [
            asyncio.create_task(batcher.predict(lane, number % 2, rows(*([number] * size))))
            for number, size in enumerate(sizes)
        ]
        await turns()
        calls.open.set()
        await first
        for number, answer in enumerate(await asyncio.gather(*others)):
            assert answer[:, 0].tolist() == [2.0 * number] * sizes[number]
        sent = [sum(map(len, seen[1].values())) for seen in calls.seen[1:]]
        assert sum(sent) == sum(sizes)
        assert all(count <= 10 or count == 25 for count in sent), sent

    asyncio.run(main())


def test_waiting_rows_are_counted_by_lane():
    async def main():
        calls = Calls(held=True)
        batcher = Batcher(calls, linger_s=60)
        tasks = []
        for _ in range(2):
            for number in (1, 2):
                lane = Lane(("pool", number), calls=1)
                tasks.append(asyncio.create_task(batcher.predict(lane, "m", rows(*range(number)))))
            await turns()
        assert batcher.waiting_in(lambda key: key == ("pool", 2)) == 2
        assert batcher.waiting_in(lambda key: key[0] == "pool") == batcher.waiting == 3
        assert batcher.waiting_in(lambda key: key[0] == "other") == 0
        calls.open.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_no_rows_at_all_are_answered_too():
    async def main():
        batcher = Batcher(Calls())
        answer = await asyncio.wait_for(batcher.predict(LANE, "m", np.zeros((0, 1), np.float32)), 60)
        assert answer.shape == (0, 1)
        assert batcher._lanes == {}

    asyncio.run(main())


def test_lanes_vanish_when_nothing_is_left_in_them():
    async def main():
        batcher = Batcher(Calls())
        for number in range(10_000):
            await batcher.predict(Lane(number), "m", rows(1))
        assert batcher._lanes == {}
        assert (batcher.calls, batcher.rows) == (10_000, 10_000)

    asyncio.run(main())
