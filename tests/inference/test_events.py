import numpy as np
import orjson
import pytest

from mlaas_ray.core.errors import EventError
from mlaas_ray.core.features import Feature, FeatureSpec, ObjectRule
from mlaas_ray.inference.events import Query
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


def test_a_model_without_a_spec_takes_no_event_and_no_null():
    with pytest.raises(EventError, match=r"no features\.json"):
        rows({"event": {"a": 1}}, spec=None)
    with pytest.raises(EventError, match="says nothing of missing values"):
        rows({"values": [1, 2, 3, 4, None]}, spec=None)


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
