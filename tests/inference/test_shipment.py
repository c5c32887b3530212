"""Rows of many models in one message."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlaas_ray.core.errors import ModelError, ModelMissingError
from mlaas_ray.inference.shipment import ModelKey, Outcome, pack, pack_outcomes, unpack, unpack_outcomes

KEYS = st.builds(
    ModelKey, st.text(min_size=1, max_size=5), st.integers(1, 2**40), st.text("0123456789abcdef", max_size=8)
)
ROWS = arrays.arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 6)))
ANSWERS = st.one_of(
    *(
        arrays.arrays(dtype, arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
        for dtype in (np.float32, np.float64, np.int64, np.bool_, np.float16)
    )
)


def carried(packed):
    """As Ray carries it to another process."""
    return pickle.loads(pickle.dumps(packed))


@given(st.lists(st.tuples(KEYS, ROWS), max_size=6))
def test_rows_arrive_as_they_were_sent(loads):
    found = unpack(carried(pack(loads)))
    assert [key for key, _ in found] == [key for key, _ in loads]
    for (_, sent), (key, rows) in zip(loads, found, strict=True):
        assert isinstance(key, ModelKey)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, sent, strict=True)


def test_rows_arrive_in_the_types_of_their_models_and_aligned():
    loads = [
        (ModelKey("m", number, "d"), np.array([[1, 0, 1]], dtype))
        for number, dtype in enumerate([np.int8, np.float64, np.bool_, np.uint64, np.float16, np.float32])
    ]
    for (_, sent), (_, rows) in zip(loads, unpack(carried(pack(loads))), strict=True):
        np.testing.assert_array_equal(rows, sent, strict=True)
        assert rows.flags.aligned


@given(st.lists(st.one_of(ANSWERS, st.none(), st.builds(ModelError, st.just("broken"))), max_size=6))
def test_answers_arrive_as_they_were_given(answers):
    outcomes = [Outcome(answer, number / 8) for number, answer in enumerate(answers)]
    found = unpack_outcomes(carried(pack_outcomes(outcomes)))
    assert [outcome.seconds for outcome in found] == [outcome.seconds for outcome in outcomes]
    for sent, outcome in zip(answers, found, strict=True):
        if isinstance(sent, np.ndarray):
            np.testing.assert_array_equal(outcome.answer, sent, strict=True)
        elif sent is None:
            assert outcome.answer is None
        else:
            assert type(outcome.answer) is ModelError


def test_rows_that_do_not_lie_end_to_end_are_packed_as_they_read():
    table = np.arange(24, dtype=np.float32).reshape(4, 6)
    key = ModelKey("m", 1, "d")
    found = unpack(carried(pack([(key, table[::2, ::3]), (key, table.T), (key, table[:0])])))
    np.testing.assert_array_equal(found[0][1], table[::2, ::3])
    np.testing.assert_array_equal(found[1][1], table.T)
    assert found[2][1].shape == (0, 6)


def test_nan_and_infinity_arrive():
    rows = np.array([[np.nan, np.inf, -np.inf, -0.0]], dtype=np.float32)
    (_, found), *_ = unpack(carried(pack([(ModelKey("m", 1, "d"), rows)])))
    assert found.tobytes() == rows.tobytes()


def test_an_error_arrives_with_its_remedy():
    error = ModelMissingError("m:3 was replaced meanwhile", "Ask again")
    (found,) = unpack_outcomes(carried(pack_outcomes([Outcome(error, 0.5)])))
    assert type(found.answer) is ModelMissingError
    assert str(found.answer) == "m:3 was replaced meanwhile. Ask again."


def test_whether_an_error_came_of_the_rows_arrives():
    outcomes = [Outcome(ModelError("it failed"), 0.1, by_rows=True), Outcome(ModelError("it does not load"))]
    outcomes.append(Outcome(None))
    found = unpack_outcomes(pack_outcomes(outcomes))
    assert [outcome.by_rows for outcome in found] == [True, False, False]


def test_rows_are_not_copied_when_they_are_unpacked():
    _, data = packed = pack([(ModelKey("m", 1, "d"), np.ones((1000, 10), np.float32))])
    ((_, rows),) = unpack(packed)
    assert np.shares_memory(rows, np.frombuffer(data, np.float32))


@pytest.mark.parametrize(("key", "text"), [(ModelKey("higgs", 3, "abc"), "higgs:3")])
def test_a_key_is_written_as_one_names_a_version(key, text):
    assert str(key) == text
    assert key != key._replace(digest="abd")
