import numpy as np
import orjson
import pytest

from mlaas_ray.core.errors import EventError
from mlaas_ray.core.features import Feature, FeatureSpec, ObjectRule
from mlaas_ray.inference import rows as rows_module
from mlaas_ray.inference.events import Query
from mlaas_ray.inference.rows import KNOWN_KEYS, LONGEST_KEYS, SingleRow, place_row, read_row
from tests.serving import SPEC, WIDTH

NAN = float("nan")


def rows(document, spec=SPEC):
    return Query.parse(orjson.dumps(document)).rows(spec, WIDTH)


def test_keys_may_come_in_any_order_and_what_is_not_named_is_missing():
    found, many = rows({"keys": ["Jet_pt_1", "MET_pt"], "values": [4, 1.5]})
    assert not many
    np.testing.assert_array_equal(found, np.array([[1.5, NAN, NAN, 4, NAN]], dtype=np.float32))


def test_values_alone_are_in_the_models_order_and_null_is_missing():
    found, _ = rows({"values": [1, 2, None, 4, 5]})
    np.testing.assert_array_equal(found, np.array([[1, 2, NAN, 4, 5]], dtype=np.float32))


def test_a_raw_event_is_flattened_by_the_models_spec():
    found, many = rows({"event": {"MET_pt": 1.5, "Jet_pt": [3, 4]}})
    assert not many
    np.testing.assert_array_equal(found, np.array([[1.5, NAN, 3, 4, NAN]], dtype=np.float32))


@pytest.mark.parametrize(
    "document",
    [
        {"values": [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]},
        {"keys": ["run", "MET_pt", *SPEC.columns[2:]], "values": [[2, 1, 3, 4, 5], [7, 6, 8, 9, 10]]},
        {
            "events": [
                {"MET_pt": 1, "run": 2, "Jet_pt": [3, 4, 5]},
                {"MET_pt": 6, "run": 7, "Jet_pt": [8, 9, 10]},
            ]
        },
    ],
)
def test_many_rows_come_as_lists(document):
    found, many = rows(document)
    assert many
    np.testing.assert_array_equal(found, np.arange(1, 11, dtype=np.float32).reshape(2, 5))


def test_an_event_is_of_the_files_branches_and_keys_are_of_the_models_columns():
    spec = FeatureSpec.of(
        [Feature(name="HT", kind="flat"), Feature(name="Jet_pt", kind="jagged", length=4)],
        define={"HT": "sum(Jet_pt)"},
        objects={"Jet": ObjectRule(sort_by="Jet_pt")},
    )
    row = np.array([[6, 3, 2, 1, NAN]], dtype=np.float32)
    np.testing.assert_array_equal(rows({"event": {"Jet_pt": [1, 3, 2]}}, spec)[0], row)
    prepared = {"keys": ["HT", "Jet_pt_0", "Jet_pt_1", "Jet_pt_2"], "values": [6, 3, 2, 1]}
    np.testing.assert_array_equal(rows(prepared, spec)[0], row)
    with pytest.raises(EventError, match=r"'HT' is computed by the model\. Send what it is made of: Jet_pt"):
        rows({"event": {"Jet_pt": [1, 3, 2], "HT": 6}}, spec)
    with pytest.raises(EventError, match="row 0: the value of HT is too large for float32"):
        rows({"event": {"Jet_pt": [3e38, 3e38]}}, spec)


def test_names_of_fields_may_be_in_any_case():
    found, _ = rows({"Keys": ["run"], "VALUES": [7], "Unknown": 1})
    assert found[0, 1] == 7


def test_a_model_without_a_spec_ignores_keys_as_tfaas_does():
    found, _ = rows({"keys": ["a", "b"], "values": [1, 2, 3, 4, 5]}, spec=None)
    np.testing.assert_array_equal(found, [[1, 2, 3, 4, 5]])


def test_a_model_may_be_named_with_its_version_in_two_ways():
    assert Query.parse(b'{"model": "a:3"}').model == "a:3"
    assert Query.parse(b'{"model": "a", "version": 3}').model == "a:3"
    assert Query.parse(b'{"model": "a:3", "version": "3"}').model == "a:3"
    assert Query.parse(b"{}").model == ""


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"values": [1, 2, 3]}, "3 values were sent, but the model takes 5"),
        ({"values": [1, 2, 3, 4, "5"]}, 'value 4 is "5"'),
        ({"values": [[1, 2, 3, 4, 5], [1, 2]]}, "row 1: 2 values"),
        ({"values": [[1, 2, 3, 4, 5], 6]}, "row 1: values is a number"),
        ({"values": []}, "values is empty"),
        ({"values": 3}, "values is a number"),
        ({"values": [1, 2, 3, 4, [5]]}, "value 4 is [5]"),
        ({"values": [1e39, 2, 3, 4, 5]}, "the value of MET_pt is too large"),
        ({"keys": ["MET_pt"], "values": [1, 2]}, "2 values were sent, but 1 keys"),
        ({"keys": ["MET_pt", "Jet_pt_9"], "values": [1, 2]}, "no key 'Jet_pt_9'. Did you mean 'Jet_pt_"),
        ({"keys": ["run", "run"], "values": [1, 2]}, "'run' is given twice"),
        ({"keys": [3], "values": [1]}, "no key 3"),
        ({"keys": "MET_pt", "values": [1]}, "keys is a string"),
        ({"event": {"MET_ptt": 1}}, "no branch 'MET_ptt'. Did you mean 'MET_pt'"),
        ({"event": {"Jet_pt": 1}}, "jagged"),
        ({"event": [1]}, "an event is a list"),
        ({"events": []}, "no list of events"),
        ({"events": [{"MET_pt": 1}, 2]}, "an event is a number"),
        ({"event": {}, "values": [1]}, "the request has values and event"),
        ({"model": "x"}, "no values and no event"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_expected(document, said):
    with pytest.raises(EventError) as caught:
        rows(document)
    assert said in str(caught.value)


def test_a_model_without_a_spec_takes_no_event_and_gets_nan_for_null():
    with pytest.raises(EventError, match=r"no features\.json"):
        rows({"event": {"a": 1}}, spec=None)
    for name in ("values", "Values"):  # as the typed decoder reads it, and in general
        for values in ([1, 2, 3, 4, None], [[1, 2, 3, 4, None], [5, None, 3, 2, 1]]):
            found, _ = rows({name: values}, spec=None)
            np.testing.assert_array_equal(found, np.atleast_2d(np.array(values, np.float32)))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b'{"values": [1, NaN]}', "not JSON: .*line 1 column 16"),
        (b"[1, 2]", "a JSON list"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_json_object_is_refused_saying_where(body, said):
    with pytest.raises(EventError, match=said):
        Query.parse(body)


@pytest.mark.parametrize(
    "body", [b'{"model": 3}', b'{"model": "a:1", "version": 2}', b'{"model":"a","version":[1]}']
)
def test_a_model_of_the_wrong_type_or_two_versions_is_refused(body):
    with pytest.raises(EventError):
        _ = Query.parse(body).model


# What most programs send is read by a typed decoder: it must say the same as the general way.

USUAL = [
    {"values": [1, 2.5, None, 4, 5]},
    {"values": [1e-50, -0.0, 1e10, 3.4028235e38, 12345678901234567890123]},
    {"keys": ["Jet_pt_1", "MET_pt"], "values": [4, 1.5]},
    {"keys": ["Jet_pt_1", "MET_pt"], "values": [None, 1.5], "model": "toy:1"},
    {"keys": None, "values": [1, 2, 3, 4, 5]},
    {"values": [[1, 2.5, None, 4, 5]]},
    {"values": [[1, 2, 3, 4, 5], [6, None, None, 9, 10]]},
    {"keys": list(SPEC.columns)[::-1], "values": [[1, 2, 3, 4, None], [6, 7, 8, 9, 10]]},
    {"keys": ["run"], "values": [[1], [None]]},
]


@pytest.mark.parametrize("document", USUAL)
def test_the_usual_forms_are_read_as_the_general_way_reads_them(document):
    body = orjson.dumps(document) if "e-50" not in str(document) else str(document).replace("'", '"').encode()
    usual, general = Query.parse(body), Query(body)
    assert usual.usual is not None
    assert general.usual is None
    assert usual.model == general.model
    found, many = usual.rows(SPEC, WIDTH)
    wanted, wanted_many = general.rows(SPEC, WIDTH)
    assert many == wanted_many
    assert found.dtype == wanted.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


def test_one_usual_row_is_placed_at_once():
    row = read_row(b'{"model": "toy", "keys": ["Jet_pt_1", "MET_pt"], "values": [4, null]}')
    assert (row.model, row.keys, row.values) == ("toy", ("Jet_pt_1", "MET_pt"), [4, None])
    for _ in range(2):
        np.testing.assert_array_equal(place_row(row, SPEC, WIDTH), np.float32([NAN, NAN, NAN, 4, NAN]))
    np.testing.assert_array_equal(place_row(row, None, 2), np.float32([4, NAN]))
    row = read_row(b'{"keys": ["what", "ever"], "values": [4, 5]}')
    assert place_row(row, SPEC, WIDTH) is None
    np.testing.assert_array_equal(place_row(row, None, 2), np.float32([4, 5]))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[1]",
        b'{"Values": [1]}',
        b'{"values": [1], "version": 1}',
        b'{"values": [1], "note": 1}',
        b'{"values": [1], "event": null}',
        b'{"values": [[1]]}',
        b'{"values": [true]}',
        b'{"values": ["1"]}',
        b'{"values": [1], "model": null}',
        b'{"values": [1], "keys": [1]}',
        b'{"values": [1e999]}',
        b'{"values": [NaN]}',
        b'{"values": [1]} 2',
        b'{"values": ' + b"[" * 100_000,
    ],
)
def test_what_is_not_one_row_in_its_usual_form_is_left_to_the_general_way(body):
    assert read_row(body) is None


@pytest.mark.parametrize(
    "values", [[], [1], [1] * 6, [1e39, 2, 3, 4, 5], [None, 2, 3, 4, -1e39], [10**400, 2, 3, 4, 5]]
)
def test_values_that_do_not_fit_are_not_placed(values):
    row = read_row(b'{"values": %b}' % str(values).replace("None", "null").encode())
    assert row is None or place_row(row, SPEC, WIDTH) is None


@pytest.mark.parametrize("keys", [["run", "run"], ["run", "nun"], ["run"], []])
def test_keys_that_do_not_fit_are_not_placed(keys):
    assert place_row(SingleRow([1.0, 2.0], keys=tuple(keys)), SPEC, WIDTH) is None


def test_keys_of_another_spec_are_placed_by_their_own():
    other = FeatureSpec.of([Feature(name="MET_pt", kind="flat"), Feature(name="Jet_pt_1", kind="flat")])
    row = read_row(b'{"keys": ["MET_pt", "Jet_pt_1"], "values": [1, 2]}')
    np.testing.assert_array_equal(place_row(row, SPEC, WIDTH), np.float32([1, NAN, NAN, 2, NAN]))
    np.testing.assert_array_equal(place_row(row, other, 2), np.float32([2, 1]))
    np.testing.assert_array_equal(place_row(row, SPEC, WIDTH), np.float32([1, NAN, NAN, 2, NAN]))


def test_many_lists_of_keys_are_not_all_remembered():
    columns = list(SPEC.columns)
    for number in range(KNOWN_KEYS * 2):
        shift = number % WIDTH
        keys = tuple(columns[shift:] + columns[:shift])[: 1 + number % WIDTH]
        spec = SPEC.model_copy() if number % 3 else SPEC
        assert place_row(SingleRow([1.0] * len(keys), keys=keys), spec, WIDTH) is not None
    assert len(rows_module._placements) <= KNOWN_KEYS


def test_long_lists_of_keys_are_placed_and_not_remembered():
    width = LONGEST_KEYS + 1
    spec = FeatureSpec.of([Feature(name=f"x{number:05d}", kind="flat") for number in range(width)])
    keys = spec.columns[::-1]
    values = [float(number) for number in range(width)]
    before = len(rows_module._placements), rows_module._shared_placement.cache_info().currsize
    np.testing.assert_array_equal(
        place_row(SingleRow(values, keys=keys), spec, width), np.float32(values[::-1])
    )
    query = Query(orjson.dumps({"keys": keys, "values": values}))
    np.testing.assert_array_equal(query.rows(spec, width)[0], np.float32([values[::-1]]))
    assert (
        len(rows_module._placements),
        rows_module._shared_placement.cache_info().currsize,
    ) == before
