from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlaas_ray.core.errors import JobError
from mlaas_ray.training.cursor import Cursor
from mlaas_ray.training.loop import _Worker
from mlaas_ray.training.seen import Places, Seen, ShardCursor
from mlaas_ray.training.state import Progress, _progress


def places(block: int, rows: list[int], size: int) -> Places:
    return np.array([[block] * len(rows), rows, [size] * len(rows)], np.int32)


def every(sizes: list[int]) -> Places:
    return np.concatenate(
        [places(block, list(range(size)), size) for block, size in enumerate(sizes)], axis=1
    )


@settings(max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_what_was_not_seen_is_what_no_rank_was_given(sizes: list[int], seed: int, ranks: int) -> None:
    everything = every(sizes)
    random = np.random.default_rng(seed)
    # each row to a rank, or to none, whichever rank has the others of its block
    owner = random.integers(-1, ranks, everything.shape[1])
    told = []
    for rank in range(ranks):
        seen = Seen()
        for part in np.array_split(everything[:, owner == rank], 3, axis=1):
            seen.add(part)
        told.append(seen)
    cursor = ShardCursor.joined(2, 1, told)
    again = ShardCursor(**json.loads(json.dumps(cursor.document())))
    seen = Seen.of(again.seen)
    wanted = seen.unseen(everything)
    expected = owner == -1
    assert (np.ones(len(owner), bool) if wanted is None else wanted).tolist() == expected.tolist()
    whole = {block for block in range(len(sizes)) if not expected[everything[0] == block].any()}
    assert {block for first, last in seen.ranges for block in range(first, last + 1)} == whole


def test_the_beginning_of_an_epoch_wants_everything() -> None:
    assert Seen.of(ShardCursor.start(3).seen).unseen(every([3, 2])) is None


@pytest.mark.parametrize("cursor", [Cursor.start(4), ShardCursor.start(4)])
def test_a_checkpoint_knows_which_kind_of_cursor_it_holds(cursor: Cursor | ShardCursor) -> None:
    read = _progress(json.dumps({"cursor": cursor.document(), "steps": 3}).encode())
    assert type(read.cursor) is type(cursor)
    assert read.cursor.epoch == 4


@pytest.mark.parametrize(
    ("kept", "wanted", "mode"), [(ShardCursor, Cursor, "cluster"), (Cursor, ShardCursor, "workers")]
)
def test_an_epoch_is_gone_on_with_in_the_mode_that_began_it(kept: Any, wanted: Any, mode: str) -> None:
    worker = _Worker.__new__(_Worker)
    worker._cursors = wanted
    worker.progress = Progress(kept.start(2), steps=7)
    with pytest.raises(
        JobError, match=f"within epoch 3, .* reading.mode: {mode}. .*--set reading.mode={mode}"
    ):
        worker._adopt()
    # where it has begun nothing, either will do
    worker.progress.steps = 0
    worker._adopt()
    assert worker.progress.cursor == wanted.start(2)
