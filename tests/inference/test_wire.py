import random
import re
from pathlib import Path

import numpy as np
import pytest

from mlaas_ray.core.errors import EventError
from mlaas_ray.inference import wire
from mlaas_ray.inference.rows import place_row
from tests.serving import SPEC, WIDTH

NAN = float("nan")
KEYS = list(SPEC.columns)
X = np.random.default_rng(1).normal(size=(20, WIDTH)).astype(np.float32)


def row(values, keys=(), model="toy"):
    return wire.Row(key=keys, value=values, model=model)


def frame(*rows):
    return wire.DataFrame(row=rows).SerializeToString()


def declared(text):
    """The messages of a .proto file: name -> fields in the order of their numbers."""
    messages = {}
    for name, content in re.findall(r"message (\w+) \{(.*?)\n\}", text, re.DOTALL):
        fields = re.findall(r"^\s*(repeated )?(\w+) (\w+) = (\d+);$", content, re.MULTILINE)
        assert [int(number) for *_, number in fields] == list(range(1, len(fields) + 1))
        messages[name] = tuple(wire.Field(field, kind, bool(many)) for many, kind, field, _ in fields)
    return messages


def test_the_file_for_other_programs_declares_the_same_messages():
    text = Path(wire.__file__).with_name("tfaas.proto").read_text()
    assert "package tfaaspb;" in text
    assert declared(text) == wire.MESSAGES


def test_the_numbers_are_those_of_tfaas():
    # as its C++ client writes it: keys, packed values, model
    body = b"\x0a\x01a\x0a\x01b\x12\x08\x00\x00\x80\x3f\x00\x00\x00\x40\x1a\x03toy"
    found = wire.read_row_message(body)
    assert (found.keys, found.values.tolist(), found.model) == (("a", "b"), [1, 2], "toy")
    assert wire.write_predictions(np.float32([[0.5]]), [], many=False) == b"\x0a\x05\x15\x00\x00\x00\x3f"


@pytest.mark.parametrize(
    ("keys", "values", "placed"),
    [
        ((), [1, 2, NAN, 4, 5], [1, 2, NAN, 4, 5]),
        (["Jet_pt_1", "MET_pt"], [4, 1.5], [1.5, NAN, NAN, 4, NAN]),
        (KEYS[::-1], [5, 4, 3, 2, 1], [1, 2, 3, 4, 5]),
    ],
)
def test_a_row_is_placed_by_its_keys_or_in_the_models_order(keys, values, placed):
    body = row(values, keys).SerializeToString()
    for _ in range(2):  # the second time its layout is known
        found = place_row(wire.read_row_message(body), SPEC, WIDTH)
        np.testing.assert_array_equal(found, np.float32(placed))
    table = wire.read_message(body)
    assert (table.model, table.many) == ("toy", False)
    np.testing.assert_array_equal(table.rows(SPEC, WIDTH)[0], np.float32([placed]))


def test_values_lie_where_any_runtime_can_read_them():
    for length in range(1, 5):
        body = row([1, 2, 3, 4, 5], ["k" * length]).SerializeToString()
        assert wire.read_row_message(body).values.flags.aligned
        assert wire.read_message(body).rows(None, WIDTH)[0].flags.aligned


def test_rows_of_one_length_and_other_keys_are_not_taken_for_each_other():
    bodies = {
        names: row([1, 2], names, model).SerializeToString()
        for names, model in [(("run_x", "a"), "toy"), (("a", "run_x"), "toy"), (("a", "run_x"), "boy")]
    }
    assert len({len(body) for body in bodies.values()}) == 1
    for _ in range(3):
        for names, body in bodies.items():
            assert wire.read_row_message(body).keys == names


def test_values_that_are_not_packed_or_come_in_pieces_are_read_too():
    single = b"".join(b"\x15" + value.tobytes() for value in np.float32([1, 2, 3, 4, 5]))
    pieces = (
        b"\x12\x08" + np.float32([1, 2]).tobytes() + b"\x1a\x03toy\x12\x0c" + np.float32([3, 4, 5]).tobytes()
    )
    for body in (single, pieces):
        assert wire.read_row_message(body) is None
        table = wire.read_message(body)
        assert (table.values.tolist(), table.many) == ([[1, 2, 3, 4, 5]], False)


@pytest.mark.parametrize("which", ["no keys", "keys in the first", "keys in all", "model in all", "one row"])
def test_a_data_frame_is_many_rows(which):
    keys = KEYS[::-1] if "keys" in which and which != "no keys" else []
    rows = X[:1] if which == "one row" else X
    body = frame(
        *(
            row(
                values,
                keys if number == 0 or which == "keys in all" else (),
                "toy" if number == 0 or which == "model in all" else "",
            )
            for number, values in enumerate(rows.tolist())
        )
    )
    table = wire.read_message(body)
    assert (table.model, table.many) == ("toy", True)
    found, many = table.rows(SPEC, WIDTH)
    assert many
    np.testing.assert_array_equal(found, rows[:, ::-1] if keys else rows)


def test_rows_of_other_layouts_in_one_data_frame_are_read_too():
    body = frame(row([1, 2], ["a", "b"]), row([3, 4]), row([5, 6], ["a", "b"], ""), row([7, 8], model=""))
    assert wire.read_message(body).values.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


@pytest.mark.parametrize("value", [0.0, 1.0, 2.2615336e-7])  # zeros are text
def test_a_row_and_a_data_frame_are_told_apart_by_what_fields_there_are(value):
    values = [value] * WIDTH
    assert wire.read_message(row(values, model="").SerializeToString()).many is False
    assert wire.read_message(row(values, KEYS).SerializeToString()).many is False
    assert wire.read_message(frame(row(values, model=""), row(values, model=""))).many is True
    assert wire.read_message(frame(row(values, KEYS), row(values, KEYS))).many is True


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no rows"),
        (b"\xff", "no protobuf message"),
        (b'{"values": [1]}', "no protobuf message"),
        (row([1, 2]).SerializeToString()[:-1], "no protobuf message"),
        (row([]).SerializeToString(), "the row has no values"),
        (frame(row([])), "row 0 has no values"),
        (frame(row([1, 2]), row([1])), "row 1 has 1 values, the first has 2"),
        (frame(row([1, 2]), row([1, 2]), row([])), "row 2 has no values"),
        (frame(row([1]), row([1], model="other")), "row 1 is for 'other', the first for 'toy'"),
        (frame(row([1], ["a"]), row([1], ["b"])), "row 1 has other keys"),
    ],
)
def test_what_is_no_table_is_refused(body, said):
    with pytest.raises(EventError, match=said):
        wire.read_message(body)


@pytest.mark.parametrize(
    ("values", "keys", "said"),
    [
        ([1, 2], (), "2 values were sent, but the model takes 5"),
        ([1, 2], ["MET_pt"], "2 values were sent, but 1 keys"),
        ([1], ["MET"], "no key 'MET'. Did you mean 'MET_pt'"),
        ([1, 2], ["run", "run"], "'run' is given twice"),
        ([1, 2, float("inf"), 4, 5], (), "row 0: the value of Jet_pt_0 is too large"),
    ],
)
def test_a_row_that_does_not_fit_is_not_placed_and_is_refused_saying_why(values, keys, said):
    body = row(values, keys).SerializeToString()
    assert place_row(wire.read_row_message(body), SPEC, WIDTH) is None
    with pytest.raises(EventError, match=said):
        wire.read_message(body).rows(SPEC, WIDTH)


@pytest.mark.parametrize("seed", range(5))
def test_a_damaged_message_is_read_as_protobuf_reads_it_or_refused(seed):
    chance = random.Random(seed)
    whole = [row(X[0].tolist(), KEYS).SerializeToString(), frame(*(row(v.tolist()) for v in X[:4]))]
    for _ in range(1000):
        body = bytearray(chance.choice(whole))
        for _ in range(chance.randint(0, 3)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        if chance.random() < 0.3:
            del body[chance.randrange(len(body)) :]
        body = bytes(body)
        try:
            table = wire.read_message(body)
        except EventError:
            continue
        messages = wire.DataFrame.FromString(body).row if table.many else [wire.Row.FromString(body)]
        np.testing.assert_array_equal(table.values, np.float32([list(message.value) for message in messages]))
        assert table.model == messages[0].model
        assert table.keys == (tuple(messages[0].key) or None)


@pytest.mark.parametrize(
    ("outputs", "labels", "named"),
    [
        (1, [], [""]),
        (1, ["background", "signal"], ["signal"]),
        (1, ["signal"], ["signal"]),
        (3, ["a", "µ" * 100, "c"], ["a", "µ" * 100, "c"]),
        (3, ["a", "b"], ["", "", ""]),
        (300, [], [""] * 300),
    ],
)
def test_answers_carry_the_names_of_the_classes(outputs, labels, named):
    answers = np.random.default_rng(2).random((7, outputs), dtype=np.float32)
    one = wire.Predictions.FromString(wire.write_predictions(answers[:1], labels, many=False))
    many = wire.PredictionsList.FromString(wire.write_predictions(answers, labels, many=True))
    assert [entry.label for entry in one.prediction] == named
    assert [entry.probability for entry in one.prediction] == answers[0].tolist()
    assert len(many.predictions) == 7
    for answer, predictions in zip(answers, many.predictions, strict=True):
        assert [entry.label for entry in predictions.prediction] == named
        assert [entry.probability for entry in predictions.prediction] == answer.tolist()


@pytest.mark.parametrize("labels", [[], ["a", "b"], ["a", "µ" * 100, "c"], ["x"]])
@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 2), (5, 3), (5, 0), (5, 1, 3), (1, 300)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_answers_written_at_once_are_those_written_one_by_one(shape, labels, dtype):
    answers = (np.random.default_rng(4).normal(size=shape) * 9).astype(dtype)
    for given in (answers, np.asfortranarray(answers)):
        one_by_one = [
            wire.write_predictions(given[number : number + 1], labels, many=False)
            for number in range(len(given))
        ]
        assert wire.write_each(given, labels) == one_by_one
