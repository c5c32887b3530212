from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from mlaas_ray.streaming.plan import BLOCK_BYTES, OPEN_FILES, Extent, Piece, Plan, cut, row_order


def extents(*files: tuple[int, int, int]) -> tuple[Extent, ...]:
    """Make files of (dataset, entries, entries of a cluster)."""
    return tuple(
        Extent(dataset, (*range(0, entries, cluster), entries)) for dataset, entries, cluster in files
    )


def plan(*files: tuple[int, int, int], **options: Any) -> Plan:
    return Plan(extents(*files), **{"row_bytes": 2_000, "shuffle": True, **options})


def entries(pieces: list[tuple[Piece, ...]]) -> Counter[tuple[int, int]]:
    return Counter(
        (piece.file, entry) for block in pieces for piece in block for entry in range(piece.start, piece.stop)
    )


def by_dataset(block: tuple[Piece, ...], files: tuple[Extent, ...]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for piece in block:
        counts[files[piece.file].dataset] += piece.entries
    return counts


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_entry_comes_once_an_epoch(shuffle: bool) -> None:
    made = plan((0, 70_001, 10_000), (1, 33_333, 7_000), (0, 5, 5), (1, 0, 1), shuffle=shuffle)
    for epoch in (0, 1):
        seen = entries(made.epoch(epoch))
        assert set(seen.values()) == {1}
        assert len(seen) == 70_001 + 33_333 + 5


def test_every_block_holds_every_dataset_in_its_natural_proportion() -> None:
    made = plan((0, 600_000, 10_000), (1, 300_000, 10_000), (2, 30_000, 10_000), shuffle=True)
    for block in made.epoch(3):
        counts = by_dataset(block, made.extents)
        total = sum(counts.values())
        assert counts[0] / total == pytest.approx(600 / 930, abs=0.18)
        assert counts[1] / total == pytest.approx(300 / 930, abs=0.18)
        assert 0.01 < counts[2] / total < 0.08


def test_given_shares_are_kept_in_every_block_and_the_scarcest_dataset_is_used_up() -> None:
    made = plan((0, 400_000, 10_000), (1, 50_000, 10_000), shares={0: 3.0, 1: 1.0})
    assert made.planned == {0: 150_000, 1: 50_000}
    first, second = made.epoch(0), made.epoch(1)
    for block in first:
        counts = by_dataset(block, made.extents)
        assert counts[0] == pytest.approx(3 * counts[1], rel=0.35)
    chosen, other = ({key for key in entries(epoch) if key[0] == 0} for epoch in (first, second))
    assert len(chosen) == len(other) == 150_000
    assert chosen != other


def test_a_dataset_with_no_share_is_left_out() -> None:
    made = plan((0, 1_000, 100), (1, 1_000, 100), shares={0: 1.0, 1: 0.0})
    assert {piece.file for block in made.epoch(0) for piece in block} == {0}


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    def made(seed: int, epoch: int) -> Any:
        return plan((0, 200_000, 5_000), (1, 100_000, 5_000), seed=seed).epoch(epoch)

    assert made(1, 2) == made(1, 2)
    assert made(1, 2) != made(1, 3)
    assert made(1, 2) != made(2, 2)


def test_few_files_are_read_at_the_same_time_and_each_comes_once() -> None:
    made = plan(*[(dataset, 100_000, 1_000) for dataset in (0, 1) for _ in range(40)], row_bytes=7_200)
    order = [piece.file for block in made.epoch(0) for piece in block if piece.file < 40]
    first, last = (
        {file: at for at, file in sequence}
        for sequence in (reversed(list(enumerate(order))), enumerate(order))
    )
    alive = [sum(first[file] <= at <= last[file] for file in first) for at in range(len(order))]
    assert max(alive) <= OPEN_FILES // 2 + 1
    assert sorted(set(order), key=order.index) != sorted(set(order))


def test_without_shuffling_events_keep_the_order_of_the_files() -> None:
    made = plan((0, 50_000, 1_000), (0, 30_000, 1_000), shuffle=False)
    pieces = [piece for block in made.epoch(0) for piece in block]
    assert made.epoch(0) == made.epoch(5)
    assert pieces == sorted(pieces, key=lambda piece: (piece.file, piece.start))


def test_no_cluster_is_cut_where_a_block_of_whole_ones_is_not_much_too_large() -> None:
    # 20,000 events of 7,200 bytes are 1.8 blocks: dearer in memory, but no basket is decoded twice
    made = plan((0, 500_000, 10_000), (1, 500_000, 10_000), row_bytes=7_200)
    assert {piece.entries for block in made.epoch(0) for piece in block} == {10_000}
    assert {sum(piece.entries for piece in block) for block in made.epoch(0)} == {20_000}


def test_blocks_stay_small_when_clusters_are_huge() -> None:
    made = plan((0, 3_000_000, 1_000_000), row_bytes=7_200)
    sizes = [sum(piece.entries for piece in block) * 7_200 for block in made.epoch(0)]
    assert max(sizes) <= 2 * BLOCK_BYTES


def test_small_data_come_in_several_blocks() -> None:
    assert plan((0, 4_000, 4_000), (1, 4_000, 4_000)).blocks == 8


def test_no_more_than_max_events_of_each_dataset_are_planned() -> None:
    made = plan((0, 5_000, 1_000), (0, 5_000, 1_000), (1, 300, 100), max_events=6_500)
    seen = entries(made.epoch(0))
    assert made.planned == {0: 6_500, 1: 300}
    assert {key for key in seen if key[0] == 1} == {(1, entry) for entry in range(1_500)}
    assert len(seen) == 6_800


def test_files_without_entries_make_one_empty_block() -> None:
    assert plan((0, 0, 1)).epoch(0) == [()]


@pytest.mark.parametrize("share", [0.3, 1, 7, 100, 999, 5_000])
def test_ranges_cover_every_entry_once_in_order(share: float) -> None:
    ranges = cut([0, 10, 400, 401, 1_000, 3_000], share)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 3_000
    assert all(one[1] == other[0] for one, other in pairwise(ranges))
    assert all(stop - start <= max(1, 1.25 * share) for start, stop in ranges)


def test_small_clusters_are_taken_together_and_large_ones_cut() -> None:
    ranges = cut([0, 10, 20, 30, 220, 1_000, 1_005], 80)
    assert ranges[:4] == [(0, 20), (20, 30), (30, 93), (93, 156)]
    assert ranges[-1] == (1_000, 1_005)


def test_the_rows_of_a_block_are_a_permutation() -> None:
    order = row_order(1, 0, 4, 1_000)
    np.testing.assert_array_equal(np.sort(order), np.arange(1_000))
    assert (row_order(1, 1, 4, 1_000) != order).any()
    assert (row_order(1, 0, 5, 1_000) != order).any()
