from __future__ import annotations

import numpy as np
import pytest

from mlaas_ray.streaming.split import entry_numbers, identifier_numbers, within


def test_an_entry_has_one_number_however_the_file_is_cut() -> None:
    whole = entry_numbers("a-uuid", 0, 1_000, 3)
    np.testing.assert_array_equal(
        np.concatenate([entry_numbers("a-uuid", 0, 10, 3), entry_numbers("a-uuid", 10, 1_000, 3)]), whole
    )
    assert (entry_numbers("another", 0, 1_000, 3) != whole).any()
    assert (entry_numbers("a-uuid", 0, 1_000, 4) != whole).any()


def test_an_event_has_one_number_whatever_the_types_of_its_identifiers() -> None:
    run, event = np.full(500, 3), np.arange(500)
    small = identifier_numbers([run.astype(np.int32), event.astype(np.uint32)], 0)
    large = identifier_numbers([run.astype(">u8"), event.astype(np.int64)], 0)
    np.testing.assert_array_equal(small, large)


def test_identifiers_count_in_their_order() -> None:
    one, other = np.arange(100), np.arange(100, 200)
    assert (identifier_numbers([one, other], 0) != identifier_numbers([other, one], 0)).all()


@pytest.mark.parametrize(
    "numbers",
    [
        entry_numbers("file", 0, 200_000, 0),
        identifier_numbers([np.ones(200_000, np.uint32), np.arange(200_000) // 100, np.arange(200_000)], 0),
    ],
)
def test_numbers_are_even_and_parts_cover_every_event_once(numbers: np.ndarray) -> None:
    assert numbers.min() >= 0
    assert numbers.max() < 1
    np.testing.assert_allclose(np.histogram(numbers, 10, (0, 1))[0], 20_000, rtol=0.03)
    np.testing.assert_array_equal(within(numbers, (0.0, 0.7)), ~within(numbers, (0.7, 1.0)))
