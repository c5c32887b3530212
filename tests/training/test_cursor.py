from __future__ import annotations

import json

import numpy as np
import pytest

from mlaas_ray.training.cursor import Cursor, Part, Position, joined


def dealt(cursor: Cursor, blocks: int, size: int) -> list[list[int]]:
    """The blocks that each of some ranks has still to read."""
    deals = [cursor.deal(blocks, rank, size) for rank in range(size)]
    return [deal.blocks[deal.taken :].tolist() for deal in deals]


def test_blocks_are_dealt_in_turn() -> None:
    assert dealt(Cursor.start(3), 7, 3) == [[0, 3, 6], [1, 4], [2, 5]]


def test_the_same_group_goes_on_where_it_was() -> None:
    parts = (Part((0, 3), 100, 40),), (Part((1,), 50, 50), Part((4,), 60, 0)), ()
    cursor = joined(2, 2, (), [Position(n, p) for n, p in zip((2, 2, 0), parts, strict=True)])
    assert dealt(cursor, 10, 3) == [[6, 9], [7], [2, 5, 8]]
    for rank in range(3):
        assert cursor.deal(10, rank, 3).parts == list(parts[rank])


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_another_group_takes_over_what_is_left(size: int) -> None:
    parts = (Part((0, 3), 100, 40),), (Part((1,), 50, 50),), (Part((2,), 70, 10), Part((5,), 9, 0))
    cursor = joined(0, 0, (), [Position(n, p) for n, p in zip((2, 1, 2), parts, strict=True)])
    deals = [cursor.deal(12, rank, size) for rank in range(size)]
    assert sorted(block for blocks in dealt(cursor, 12, size) for block in blocks) == [4, 6, 7, 8, 9, 10, 11]
    # windows that are used up are nobody's
    left = [part for deal in deals for part in deal.parts]
    assert sorted(left, key=lambda part: part.blocks) == [parts[0][0], parts[2][0], parts[2][1]]
    assert all(deal.before == ((2, 1, 2),) for deal in deals)


def test_groups_may_change_again_and_again() -> None:
    random = np.random.default_rng(0)
    cursor, read, blocks = Cursor.start(0), [], 40
    for size in (3, 3, 1, 4, 2):
        positions, before = [], ()
        for rank in range(size):
            deal = cursor.deal(blocks, rank, size)
            before = deal.before
            more = int(random.integers(0, 3))
            rest = deal.blocks[deal.taken :]
            read += rest[:more].tolist()
            positions.append(Position(deal.taken + min(more, len(rest))))
        cursor = joined(0, 0, before, positions)
    read += [block for rest in dealt(cursor, blocks, 2) for block in rest]
    assert sorted(read) == list(range(blocks))


def test_it_survives_as_json() -> None:
    cursor = joined(1, 0, ((3, 4),), [Position(2, (Part((7, 8), 10, 3),)), Position(1)])
    assert Cursor.of(json.loads(json.dumps(cursor.document()))) == cursor
