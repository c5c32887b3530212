"""Rows in their usual form: read once and remembered, and placed into a model's columns."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlaas_ray.core.errors import EventError
from mlaas_ray.inference import rows as module
from mlaas_ray.inference.events import Query
from mlaas_ray.inference.rows import (
    KNOWN_FRAMES,
    LONGEST_FRAME,
    ArrayRow,
    SingleRow,
    place,
    place_row,
    placement_of,
    read_row,
)
from tests.serving import SPEC, WIDTH

COLUMNS = SPEC.columns


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing is remembered of other tests' bodies."""
    monkeypatch.setattr(module, "_frames", {})


def plainly(body: bytes) -> SingleRow | None:
    """Read a body with nothing remembered."""
    try:
        return msgspec.json.decode(body, type=SingleRow)
    except (ValueError, RecursionError):
        return None


# Frames

SPACE = st.text(" \t\r\n", max_size=2)
PLAIN = st.sampled_from(
    ["1", "-0", "0.5", "1e5", "-2.5E-3", "null", "12345678901234567890", "1e300", "1e-400"]
)
ODD = st.sampled_from(['"x"', "[1]", "true", "1e999", "{}", "01", "NaN", '"]"', '"[1]"', ""])
STRING = st.sampled_from(
    ["a", "values", r"\"values\"", "[", "]", "[1]", r"\u0076alues", r"\\", "µ", ":", '\\"values\\":[1]', ""]
)
NAME = st.sampled_from(
    [
        "values",
        "values",
        "values",
        r"val\u0075es",
        "model",
        "keys",
        "Values",
        r"\"values",
        r"values\\",
        "more",
    ]
)


@st.composite
def lists(draw, item):
    parts = draw(st.lists(st.tuples(SPACE, item, SPACE), max_size=4))
    return "[" + draw(SPACE) + ",".join("".join(part) for part in parts) + draw(SPACE) + "]"


NUMBERS = lists(PLAIN)
QUOTED = STRING.map(lambda text: f'"{text}"')
# Where the marker stands, the values of siblings differ.
MARK = "\0"


@st.composite
def bodies(draw):
    """A body with a mark in place of its values, or of one of several lists."""
    kinds = draw(st.permutations(["values", *draw(st.lists(NAME, max_size=3))]))
    pairs = []
    for name in kinds:
        if name == "values":
            content = draw(st.sampled_from([MARK, MARK, MARK, None]))
            content = content or draw(st.one_of(NUMBERS, QUOTED, st.just("[[1],[2]]")))
        elif name.endswith("es"):
            content = draw(st.one_of(NUMBERS, st.just(MARK), lists(QUOTED)))
        elif name == "keys":
            content = draw(st.one_of(lists(QUOTED), lists(QUOTED), st.just("null"), st.just(MARK)))
        else:
            content = draw(st.one_of(QUOTED, QUOTED, NUMBERS))
        space = [draw(SPACE) for _ in range(3)]
        pairs.append(f'{space[0]}"{name}"{space[1]}:{space[2]}{content}{draw(SPACE)}')
    return draw(SPACE) + "{" + ",".join(pairs) + "}" + draw(SPACE) + draw(st.sampled_from(["", "", "", "x"]))


@settings(max_examples=600)
@given(
    bodies(),
    st.lists(NUMBERS, min_size=1, max_size=3),
    st.lists(st.one_of(NUMBERS, lists(st.one_of(PLAIN, ODD)), QUOTED, st.just("null")), max_size=4),
)
def test_a_row_is_read_as_if_nothing_were_remembered(body, before, after):
    """Siblings that are read first leave what they may; whatever is read then must not show it."""
    module._frames.clear()
    for values in [*before, *after, *before]:
        text = body.replace(MARK, values).encode()
        assert read_row(text) == plainly(text), text


@settings(max_examples=200)
@given(
    st.lists(STRING.filter(lambda text: "\\" not in text), max_size=3),
    st.lists(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers()))),
    st.permutations(["model", "keys", "values"]),
    st.sampled_from([None, 1, "\t"]),
)
def test_what_a_json_library_writes_is_read_whatever_came_before(keys, values, order, indent):
    module._frames.clear()
    for one in [[1.0], *values]:
        content = {"model": "toy", "keys": keys, "values": one}
        body = json.dumps({name: content[name] for name in order}, indent=indent).encode()
        assert read_row(body) == plainly(body)


def test_values_in_a_known_frame_are_read_alone_and_the_keys_are_the_same_object():
    body = b'{"model": "toy", "keys": ["a", "b"], "values": [%d, null]}'
    rows = [read_row(body % number) for number in range(5)]
    assert [row.values for row in rows] == [[number, None] for number in range(5)]
    assert len(module._frames) == 1
    # the second time: what is read first is what is remembered
    assert len({id(row.keys) for row in rows}) == 1


@pytest.mark.parametrize(
    "body",
    [
        rb'{"values": [1], "val\u0075es": [2]}',
        rb'{"values": [1], "values": [1]}',
        rb'{"keys": ["\"values\"", "values"], "values": [1, 2]}',
        rb'{"values": [1], "keys": ["\\"]}',
        b'{"values": [[1], [2]]}',
        b'{"values": ["]"]}',
        b'{"model": "values", "keys": ["values"], "values": [1]}',
        b'{"Values": [1]}',
        b"[",
        b"]",
        b'"values"',
        b'{"values":[',
        b"",
    ],
)
def test_what_could_be_misread_is_not_remembered(body):
    for _ in range(2):
        assert read_row(body) == plainly(body)
    assert not module._frames


def test_few_frames_are_remembered_and_none_that_is_long():
    for number in range(KNOWN_FRAMES + 10):
        assert read_row(b'{"model": "%d", "values": [1]}' % number).model == str(number)
        assert len(module._frames) <= KNOWN_FRAMES
    module._frames.clear()
    body = b'{"model": "%b", "values": [1]}' % (b"x" * LONGEST_FRAME)
    assert read_row(body) == plainly(body)
    assert not module._frames


# Placing

NUMBER = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6)


@st.composite
def same_keys(draw, value):
    """Rows with the same keys, all of which fit."""
    keys = draw(
        st.none()
        | st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=WIDTH, unique=True).map(tuple)
        | st.permutations(COLUMNS).map(tuple)
    )
    row = st.lists(value, min_size=len(keys or COLUMNS), max_size=len(keys or COLUMNS))
    return keys, draw(st.lists(row, min_size=1, max_size=5))


@settings(max_examples=300)
@given(same_keys(st.none() | NUMBER))
def test_rows_are_placed_alike_together_alone_and_in_general(table):
    keys, values = table
    rows = [SingleRow(row, "toy", keys) for row in values]
    (placement,) = {placement_of(row, SPEC, WIDTH) for row in rows}
    placed = place(rows, placement)
    assert (placed.dtype, placed.shape) == (np.float32, (len(rows), WIDTH))
    assert placed.flags.c_contiguous
    for row, together in zip(rows, placed, strict=True):
        body = json.dumps({"values": row.values} | ({"keys": keys} if keys else {})).encode()
        alone = place_row(row, SPEC, WIDTH)
        if np.isinf(together).any():
            assert alone is None
            for query in (Query.parse(body), Query(body)):
                with pytest.raises(EventError, match="too large for float32"):
                    query.rows(SPEC, WIDTH)
            continue
        np.testing.assert_array_equal(alone, together)
        for query in (Query.parse(body), Query(body)):
            general, many = query.rows(SPEC, WIDTH)
            assert not many
            np.testing.assert_array_equal(general, together[None])


@settings(max_examples=100)
@given(same_keys(st.floats(width=32)))
def test_numbers_are_placed_as_json_is(table):
    keys, values = table
    rows = [ArrayRow(np.float32(row), "toy", keys) for row in values]
    placement = placement_of(rows[0], SPEC, WIDTH)
    together = place(rows, placement)
    likewise = place([SingleRow(row, "toy", keys) for row in values], placement)
    np.testing.assert_array_equal(together, likewise)
    for row, placed in zip(rows, together, strict=True):
        alone = place_row(row, SPEC, WIDTH)
        assert (alone is None) == bool(np.isinf(placed).any())
        if alone is not None:
            np.testing.assert_array_equal(alone, placed)


@pytest.mark.parametrize("kind", [SingleRow, lambda values, *more: ArrayRow(np.float32(values), *more)])
@pytest.mark.parametrize(
    ("values", "keys", "spec", "fit"),
    [
        ([1, 2, 3, 4, 5], None, SPEC, True),
        ([1, 2, 3, 4, 5], ("any", "keys"), None, True),
        ([1, 2, 3, 4], None, SPEC, False),
        ([1, 2, 3, 4], None, None, False),
        ([], (), SPEC, False),
        ([1, 2], ("run", "MET_pt"), SPEC, True),
        ([1], ("run", "MET_pt"), SPEC, False),
        ([1, 2], ("run", "run"), SPEC, False),
        ([1], ("MET",), SPEC, False),
        ([1e300, 2, 3, 4, 5], None, SPEC, True),  # of the size nothing is said
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of the test's own 1e300
def test_what_fits_is_known_before_it_is_placed(kind, values, keys, spec, fit):
    row = kind(values, "toy", keys)
    for _ in range(2):
        placement = placement_of(row, spec, WIDTH)
        assert (placement is not None) is fit
    if fit:
        assert place([row, row], placement).shape == (2, WIDTH)
    else:
        assert place_row(row, spec, WIDTH) is None


def test_a_model_without_columns_gets_nan_for_null():
    row = SingleRow([1, 2, None, 4, 5])
    for spec in (SPEC, None):
        placed = place([row], placement_of(row, spec, WIDTH))
        np.testing.assert_array_equal(placed, np.float32([[1, 2, np.nan, 4, 5]]))
