from __future__ import annotations

import numpy as np
import pytest

from mlaas_ray.streaming.shards import cut, part_mask


@pytest.mark.parametrize("target", [1, 7, 100, 250, 999, 5000])
@pytest.mark.parametrize(
    "boundaries", [[0, 100, 200, 300, 1000], [0, 1000], [0], [0, 0], [0, 1, 2, 3], list(range(0, 1001, 10))]
)
def test_ranges_cover_every_entry_once_in_order(boundaries: list[int], target: int) -> None:
    covered = [entry for start, stop in cut(boundaries, target) for entry in range(start, stop)]
    assert covered == list(range(boundaries[-1]))


@pytest.mark.parametrize("target", [100, 250, 1000])
def test_ranges_end_on_cluster_boundaries(target: int) -> None:
    boundaries = [0, 90, 210, 300, 420, 500, 610]
    assert {stop for _, stop in cut(boundaries, target)} <= set(boundaries)


def test_ranges_are_about_as_long_as_asked() -> None:
    assert cut(list(range(0, 1001, 10)), 250) == [(0, 250), (250, 500), (500, 750), (750, 1000)]


def test_a_cluster_too_large_for_a_block_is_cut_into_equal_pieces() -> None:
    assert cut([0, 10, 1010], 250) == [(0, 10), (10, 260), (260, 510), (510, 760), (760, 1010)]


def test_parts_share_no_event_and_lose_none() -> None:
    parts = [part_mask("uuid", 0, 10_000, part, 3) for part in ((0.0, 0.7), (0.7, 0.9), (0.9, 1.0))]
    assert np.array_equal(sum(mask.astype(int) for mask in parts), np.ones(10_000))
    assert [mask.mean() for mask in parts] == pytest.approx([0.7, 0.2, 0.1], abs=0.02)


def test_an_event_stays_on_its_side_however_the_file_is_cut() -> None:
    whole = part_mask("uuid", 0, 1000, (0.0, 0.5), 3)
    pieces = [part_mask("uuid", start, start + 100, (0.0, 0.5), 3) for start in range(0, 1000, 100)]
    assert np.array_equal(whole, np.concatenate(pieces))


def test_the_split_depends_on_the_file_and_on_the_seed() -> None:
    masks = [part_mask(uuid, 0, 1000, (0.0, 0.5), seed) for uuid, seed in (("a", 0), ("b", 0), ("a", 1))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        # independent halves agree on about half of the events
        assert 0.4 < (masks[one] == masks[other]).mean() < 0.6


def test_neighbouring_events_are_split_independently() -> None:
    mask = part_mask("uuid", 0, 100_000, (0.0, 0.5), 0)
    assert (mask[1:] == mask[:-1]).mean() == pytest.approx(0.5, abs=0.01)
