"""Rows in every format, through the HTTP face in this process; some of the whole way is in test_http."""

import io
import random
import re

import numpy as np
import orjson
import pyarrow as pa
import pytest

from mlaas_ray.core.errors import EventError, MlaasError
from mlaas_ray.core.features import Feature, FeatureSpec, ObjectRule
from mlaas_ray.core.flatten import flatten_events
from mlaas_ray.inference import formats, wire
from mlaas_ray.inference.arrow import read_stream
from mlaas_ray.inference.busy import BusyError
from tests.inference.face import Face
from tests.serving import SPEC, WIDTH, expected

NAN = float("nan")
LIMIT = 1 << 20
ARROW, NPY, RAW, JSON, PROTO = (
    "application/vnd.apache.arrow.stream",
    "application/x-npy",
    "application/octet-stream",
    "application/json",
    "application/x-protobuf",
)
ALL = [ARROW, NPY, RAW, JSON, PROTO]
X = np.random.default_rng(1).normal(size=(50, WIDTH)).astype(np.float32)
X[::3, 2] = np.nan
ANSWERS = expected(X).astype(np.float32)


@pytest.fixture(scope="module")
def http(onnx_package, tmp_path_factory):
    return Face(tmp_path_factory.mktemp("face"), onnx_package)


def stream(table, **options):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def columns(rows=X, names=SPEC.columns):
    return pa.table({name: pa.array(rows[:, i], from_pandas=True) for i, name in enumerate(names)})


def written(rows, kind):
    """Rows in a format."""
    if kind == ARROW:
        return stream(columns(rows))
    if kind == NPY:
        return npy(rows)
    if kind == RAW:
        return rows.astype("<f4").tobytes()
    if kind == PROTO:
        return wire.DataFrame(row=[wire.Row(value=row) for row in rows.tolist()]).SerializeToString()
    return orjson.dumps({"values": rows}, option=orjson.OPT_SERIALIZE_NUMPY)


def read(reply):
    """The answers in a reply, whatever its format."""
    assert reply.status_code == 200, reply.text
    kind = reply.headers["content-type"]
    if kind == ARROW:
        column = pa.ipc.open_stream(reply.content).read_all().column("prediction")
        return column.to_numpy()[:, None]
    if kind == NPY:
        return np.load(io.BytesIO(reply.content), allow_pickle=False)
    if kind == RAW:
        return np.frombuffer(reply.content, "<f4").reshape(-1, int(reply.headers["x-outputs"]))
    if kind == PROTO:
        rows = wire.PredictionsList.FromString(reply.content).predictions
        return np.float32([[entry.probability for entry in row.prediction] for row in rows])
    return np.float32(reply.json())


def post(http, content, kind, model="toy", **headers):
    return http.post(f"/models/{model}/predict", content=content, headers={"Content-Type": kind, **headers})


@pytest.mark.parametrize("wanted", ALL)
@pytest.mark.parametrize("sent", ALL)
def test_rows_in_any_format_are_answered_in_any_format(http, sent, wanted):
    reply = post(http, written(X, sent), sent, Accept=wanted)
    assert reply.headers["content-type"] == wanted
    assert reply.headers["x-model"] == "toy:1"
    np.testing.assert_allclose(read(reply), ANSWERS, rtol=1e-6)


@pytest.mark.parametrize("sent", ALL)
@pytest.mark.parametrize("accept", [{}, {"Accept": "*/*"}, {"Accept": "text/html, application/*;q=0.5"}])
def test_the_answer_comes_as_the_rows_did_unless_another_is_asked_for(http, sent, accept):
    assert post(http, written(X, sent), sent, **accept).headers["content-type"] == sent


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("application/json;q=0.5, application/npy", NPY),
        ("application/json , application/npy;q=0.5", JSON),
        ("application/json, application/x-npy, application/octet-stream", RAW),
        ("application/octet-stream;q=0, */*;q=0.1", JSON),
        ("application/*;q=0.2, application/vnd.apache.arrow.stream;q=0.3;v=1", ARROW),
        ("APPLICATION/JSON", JSON),
        ("application/json;q=none, application/protobuf;q=0.1", PROTO),
    ],
)
def test_of_several_formats_the_one_wanted_most_is_given(http, accept, wanted):
    assert post(http, X.tobytes(), RAW, Accept=accept).headers["content-type"] == wanted


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/*", ";;,", "application/xml"])
def test_what_cannot_be_given_is_refused_with_what_can(http, accept):
    reply = post(http, X.tobytes(), RAW, Accept=accept)
    assert reply.status_code == 406
    assert all(kind in reply.json()["error"] for kind in ALL)


@pytest.mark.parametrize("kind", ["text/csv", "", "application/x-www-form-urlencoded", "npy"])
def test_what_is_not_read_is_refused_with_what_is(http, kind):
    reply = post(http, X.tobytes(), kind)
    assert reply.status_code == 415
    assert all(kind in reply.json()["error"] for kind in ALL)


@pytest.mark.parametrize("kind", ["Application/JSON; charset=utf-8", "application/json"])
def test_the_parameters_and_case_of_a_content_type_do_not_count(http, kind):
    np.testing.assert_allclose(read(post(http, written(X, JSON), kind)), ANSWERS, rtol=1e-6)


def test_the_path_names_the_model_and_the_body_may_only_repeat_it(http):
    for model, named in [("toy", "toy"), ("toy:1", "toy:1"), ("toy:1", "toy"), ("toy", "")]:
        body = orjson.dumps({"values": [1] * WIDTH, "model": named})
        assert post(http, body, JSON, model).json() == pytest.approx([0.15])
        body = wire.Row(value=[1] * WIDTH, model=named).SerializeToString()
        assert post(http, body, PROTO, model).status_code == 200
    for named in ("bare", "toy:1"):
        reply = post(http, orjson.dumps({"values": [1] * WIDTH, "model": named}), JSON)
        assert (reply.status_code, named in reply.json()["error"]) == (400, True)
    assert post(http, X.tobytes(), RAW, "tory").status_code == 404
    assert post(http, X.tobytes(), RAW, "toy:9").status_code == 404
    assert post(http, X.tobytes(), RAW, "..").status_code in (400, 404)
    assert http.post("/models/toy/predict/", content=b"").status_code == 404
    assert http.get("/models/toy/predict").status_code == 405


def test_a_body_that_is_too_large_is_refused(http):
    assert post(http, bytes((1 << 20) + 20), RAW).status_code == 413


@pytest.mark.parametrize("kind", [ARROW, NPY, RAW])
def test_a_model_that_knows_no_columns_takes_rows_as_well(http, kind):
    rows = X.copy()
    body = (
        stream(pa.table({f"any{i}": rows[:, i] for i in range(WIDTH)})) if kind == ARROW else written(X, kind)
    )
    np.testing.assert_allclose(read(post(http, body, kind, "bare")), ANSWERS, rtol=1e-6)


@pytest.mark.parametrize("kind", [ARROW, JSON])
def test_null_is_nan_also_for_a_model_that_says_nothing_of_missing_values(http, kind):
    np.testing.assert_allclose(read(post(http, written(X, kind), kind, "bare")), ANSWERS, rtol=1e-6)


# TFaaS's messages


@pytest.mark.parametrize("path", ["/proto", "/predict/proto"])
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "application/octet-stream", JSON])
def test_a_row_message_is_answered_with_predictions_whatever_its_content_type_says(http, path, kind):
    body = wire.Row(key=["Jet_pt_0", "MET_pt"], value=[3, 2], model="toy").SerializeToString()
    reply = http.post(path, content=body, headers={"Content-Type": kind})
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["x-model"] == "toy:1"
    (answer,) = wire.Predictions.FromString(reply.content).prediction
    assert answer.label == "signal"
    assert answer.probability == pytest.approx(0.11)


def test_a_data_frame_is_answered_with_a_list_of_predictions(http):
    rows = [wire.Row(value=row, model="toy") for row in X.tolist()]
    reply = http.post("/proto", content=wire.DataFrame(row=rows).SerializeToString())
    found = wire.PredictionsList.FromString(reply.content).predictions
    np.testing.assert_allclose([[row.prediction[0].probability] for row in found], ANSWERS, rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\xff", 400),
        (b"", 400),
        (wire.Row(value=[1, 2], model="toy").SerializeToString(), 400),
        (wire.Row(value=[1], key=["Jet"], model="toy").SerializeToString(), 400),
        (wire.Row(value=[1] * WIDTH, model="tory").SerializeToString(), 404),
        (wire.Row(value=[1] * WIDTH).SerializeToString(), 400),
    ],
)
def test_what_is_wrong_with_a_message_is_said_in_json(http, body, status):
    reply = http.post("/proto", content=body)
    assert (reply.status_code, list(reply.json())) == (status, ["error"])


def test_a_service_without_room_says_when_to_come_again(http, monkeypatch):
    error = BusyError("20000 rows are waiting", "Try again in a second")
    monkeypatch.setattr(http.backend, "error", error)
    for path, body in (
        ("/json", {"model": "toy", "values": [1] * WIDTH}),
        ("/models/toy/predict", {"values": [1] * 5}),
    ):
        reply = http.post(path, json=body)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert reply.json() == {"error": "20000 rows are waiting. Try again in a second."}


# npy and raw


@pytest.mark.parametrize(
    "array",
    [
        X,
        X.astype(">f4"),
        X.astype(np.float64),
        np.asfortranarray(X),
        np.arange(2 * WIDTH, dtype=np.int64).reshape(2, WIDTH),
        np.arange(2 * WIDTH, dtype=np.uint8).reshape(2, WIDTH),
        np.array([[True, False, True, True, False]]),
        X.astype(np.float16),
        X[0],
    ],
    ids=str,
)
def test_an_npy_array_of_any_numbers_is_read(http, array):
    rows = array.astype(np.float32).reshape(-1, WIDTH)
    np.testing.assert_allclose(read(post(http, npy(array), NPY)), expected(rows), rtol=1e-6)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def trap():
    file = io.BytesIO()
    np.save(file, np.array([[Trap()]], dtype=object), allow_pickle=True)
    return file.getvalue()


def claimed(shape):
    """An npy file that says it is of a shape, with little behind it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(20)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no npy file"),
        (b"\x93NUMPY", "no npy file"),
        (b"\x93NUMPY\x09\x00", "newer version"),
        (npy(X)[:-1], "no npy file"),
        (npy(X) + b"\0", "no npy file"),
        (npy(X[:, :2]), "2 values were sent, but the model takes 5"),
        (npy(X[:0]), "no rows"),
        (npy(X[None]), r"the shape \(1, 50, 5\)"),
        (npy(np.float32(1)), r"the shape \(\)"),
        (npy(X.astype(complex)), "complex"),
        (npy(X.astype("S4")), "not of numbers"),
        (npy(np.zeros(3, dtype="f4,f4")), "not of numbers"),
        (trap(), "Python objects"),
        (claimed((10**12, WIDTH)), "no npy file"),
        (claimed((10**12, 0)), "no npy file"),
        (claimed((-1, WIDTH)), "no npy file"),
        (claimed((1, True)), "no npy file"),
        (npy(np.array([[1e39, 1, 1, 1, 1]])), "too large for float32"),
        (npy(np.float32([[1, np.inf, 1, 1, 1]])), "row 0: the value of run is too large"),
    ],
)
def test_an_npy_file_that_is_no_rows_is_refused(http, body, said):
    reply = post(http, body, NPY)
    assert reply.status_code == 400
    assert re.search(said, reply.json()["error"]), reply.json()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no rows"),
        (bytes(21), "21 bytes, but a row of 5 float32 has 20"),
        (np.float32([1, 2, 3, 4, -np.inf]).tobytes(), "the value of Jet_pt_2 is too large"),
    ],
)
def test_raw_bytes_that_are_no_rows_are_refused(http, body, said):
    reply = post(http, body, RAW)
    assert (reply.status_code, said in reply.json()["error"]) == (400, True)


# Arrow


def arrow(table, spec=SPEC, width=None):
    return read_stream(stream(table), spec, width or spec.width, LIMIT)


def jagged(lists, kind=None):
    return pa.array(lists, kind or pa.list_(pa.float32()))


def test_columns_may_come_in_any_order_and_type_and_what_is_left_out_is_missing():
    table = pa.table({"run": pa.array([1, None], pa.int64()), "MET_pt": pa.array([2.5, 3.5], pa.float64())})
    np.testing.assert_array_equal(
        arrow(table), np.float32([[2.5, 1, NAN, NAN, NAN], [3.5, NAN, NAN, NAN, NAN]])
    )
    np.testing.assert_array_equal(arrow(columns().select(list(SPEC.columns)[::-1])), X)
    table = pa.table({"run": [True, False]})
    np.testing.assert_array_equal(arrow(table)[:, 1], [1, 0])


def test_a_stream_of_several_batches_is_read_whole():
    table = pa.concat_tables([columns(X[:20]), columns(X[20:])])
    np.testing.assert_array_equal(arrow(table), X)
    lists = pa.chunked_array(
        [pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), WIDTH) for part in (X[:20], X[20:])]
    )
    np.testing.assert_array_equal(arrow(pa.table({"x": lists})), X)


@pytest.mark.parametrize("name", ["x", "", "input"])
def test_one_column_of_lists_or_tensors_is_the_rows_themselves(name):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), WIDTH)
    body = stream(pa.table({name: lists}))
    found = read_stream(body, SPEC, WIDTH, LIMIT)
    np.testing.assert_array_equal(found, X)
    assert not found.flags.owndata
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(X)
    np.testing.assert_array_equal(arrow(pa.table({name: tensors})), X)
    np.testing.assert_array_equal(arrow(pa.table({name: lists.cast(pa.list_(pa.float64(), WIDTH))})), X)
    np.testing.assert_array_equal(read_stream(body, None, WIDTH, LIMIT), X)


EVENTS = [
    {"MET_pt": 1.5, "run": 3, "Jet_pt": [3.0, 4.0]},
    {"MET_pt": None, "run": 4, "Jet_pt": []},
    {"MET_pt": 2.5, "run": None, "Jet_pt": [5.0, None, 7.0, 8.0, 9.0]},
]


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.int16())])
def test_branches_of_the_file_are_flattened_as_in_training(kind):
    table = pa.table(
        {
            "MET_pt": pa.array([event["MET_pt"] for event in EVENTS]),
            "run": pa.array([event["run"] for event in EVENTS]),
            "Jet_pt": jagged([event["Jet_pt"] for event in EVENTS], kind),
        }
    )
    np.testing.assert_array_equal(arrow(table), flatten_events(EVENTS, SPEC))
    np.testing.assert_array_equal(arrow(table.slice(1)), flatten_events(EVENTS[1:], SPEC))
    np.testing.assert_array_equal(
        arrow(pa.concat_tables([table, table.slice(1)]))[3:], flatten_events(EVENTS[1:], SPEC)
    )


@pytest.mark.parametrize(
    "table",
    [
        {"Jet_pt": jagged([[1, 2], None, []])},
        {"Jet_pt": jagged([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)), "run": [1, 2]},
        {
            "Jet_pt": jagged([[1, 2, 3, 4]] * 2, pa.list_(pa.float32(), 4)),
            "run": [1, 2],
            "MET_pt": [1.0, None],
        },
    ],
)
def test_branches_that_are_left_out_or_null_have_no_value(table):
    table = pa.table(table)
    np.testing.assert_array_equal(arrow(table), flatten_events(table.to_pylist(), SPEC))


PREPARED = FeatureSpec.of(
    [
        Feature(name="HT", kind="flat"),
        Feature(name="w", kind="fixed", length=2),
        Feature(name="Jet_pt", kind="jagged", length=2),
        Feature(name="Jet_eta", kind="jagged", length=2),
    ],
    define={"HT": "sum(Jet_pt)"},
    objects={"Jet": ObjectRule(sort_by="Jet_pt", where="Jet_pt > scale")},
    branches={"scale": "flat"},
    select="scale > 100",
)


def test_what_is_defined_and_sorted_is_so_for_a_table_too():
    table = pa.table(
        {
            "Jet_pt": jagged([[1, 3, 2], [], [5]]),
            "Jet_eta": jagged([[0.1, 0.3, 0.2], [], [0.5]]),
            "w": jagged([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float32(), 2)),
            "scale": pa.array([1.5, 0.0, 0.0]),
        }
    )
    wanted = flatten_events(table.to_pylist(), PREPARED)
    np.testing.assert_array_equal(arrow(table, PREPARED), wanted)
    lists = table.set_column(2, "w", jagged([[1, 2], [3, 4], [5, 6]]))  # of one length, but not said to be
    np.testing.assert_array_equal(arrow(lists, PREPARED), wanted)
    part = table.drop_columns("Jet_eta")
    np.testing.assert_array_equal(arrow(part, PREPARED), flatten_events(part.to_pylist(), PREPARED))
    with pytest.raises(EventError, match="'HT' is a column of the model, but 'Jet_pt' a branch"):
        arrow(table.append_column("HT", pa.array([1.0, 2.0, 3.0])), PREPARED)
    with pytest.raises(EventError, match="other numbers of objects"):
        arrow(table.set_column(1, "Jet_eta", jagged([[1], [], []])), PREPARED)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"MET": [1.0]}, "no column or branch 'MET'. Did you mean 'MET_pt'"),
        (
            {"Jet_pt_0": [1.0], "Jet_pt": jagged([[1]])},
            "'Jet_pt_0' is a column of the model, but 'Jet_pt' a branch",
        ),
        ({"Jet_pt": [1.0], "run": [1], "MET_pt": [1]}, "'Jet_pt' is jagged"),
        ({"MET_pt": jagged([[1]]), "run": [1], "Jet_pt": jagged([[1]])}, "'MET_pt' has one value an event"),
        ({"MET_pt": jagged([[1]])}, "'MET_pt' is of lists"),
        ({"MET_pt": ["1"]}, "of string, not of numbers"),
        ({"MET_pt": pa.nulls(3)}, "of null, not of numbers"),
        ({"Jet_pt": jagged([[[1]]], pa.list_(pa.list_(pa.float32())))}, "not of numbers"),
        ({"x": jagged([[1, 2]], pa.list_(pa.float32(), 2))}, "2 values were sent, but the model takes 5"),
        ({"x": jagged([[1] * 5, None], pa.list_(pa.float32(), 5))}, "a row is null"),
        ({"x": jagged([[]], pa.list_(pa.float32(), 0))}, "not of numbers"),
        ({"MET_pt": pa.array([1e39])}, "the value of MET_pt is too large"),
        ({"MET_pt": pa.array([], pa.float32())}, "no rows"),
        ({}, "no columns"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_saying_why(table, said):
    with pytest.raises(EventError, match=said):
        arrow(pa.table(table))


def test_a_stream_that_stands_for_more_than_it_is_is_refused():
    zeros = pa.table({"MET_pt": np.zeros(100_000, np.float32)})
    for codec in ("zstd", "lz4"):
        with pytest.raises(EventError, match="compressed"):
            read_stream(stream(zeros, compression=codec), SPEC, WIDTH, LIMIT)
    with pytest.raises(EventError, match="dictionar"):
        arrow(pa.table({"MET_pt": pa.array([1.0]).dictionary_encode()}))
    with pytest.raises(MlaasError, match="take more than"):
        arrow(zeros)
    twice = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["run", "run"])
    with pytest.raises(EventError, match="'run' is there twice"):
        arrow(twice)


@pytest.mark.parametrize("kind", ["columns", "lists", "branches"])
def test_a_damaged_stream_is_read_or_refused(kind):
    table = {
        "columns": columns(X[:5]),
        "lists": pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), WIDTH)}),
        "branches": pa.table({"Jet_pt": jagged([[1, 2], [3]]), "run": [1, 2], "MET_pt": [1.0, 2.0]}),
    }[kind]
    whole = stream(table)
    chance = random.Random(1)
    for end in range(0, len(whole) - 8, 7):  # without the mark of its end it is whole
        with pytest.raises(EventError):
            read_stream(whole[:end], SPEC, WIDTH, LIMIT)
    for _ in range(1000):
        body = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        try:
            found = read_stream(bytes(body), SPEC, WIDTH, LIMIT)
        except MlaasError:
            continue
        assert found.shape[1] == WIDTH


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint8", "bool", "float16", "float32"])
def test_answers_keep_the_models_type_where_the_format_has_it(dtype):
    answers = np.array([[1, 0], [1, 1]], dtype)
    if dtype in ("float64", "int64"):
        answers[0, 0] = 16777217
    for found in (
        np.load(io.BytesIO(formats.NPY.write(answers, [], True))),
        np.array(
            pa.ipc.open_stream(formats.ARROW.write(answers, [], True)).read_all()["prediction"].to_pylist()
        ),
        np.array(orjson.loads(formats.JSON.write(answers, [], True))),
    ):
        np.testing.assert_array_equal(found, answers)
    assert np.load(io.BytesIO(formats.NPY.write(answers, [], True))).dtype == dtype
    single = answers.astype(np.float32)
    np.testing.assert_array_equal(
        np.frombuffer(formats.RAW.write(answers, [], True), "<f4").reshape(2, 2), single
    )


def test_answers_of_several_outputs_keep_their_shape():
    answers = np.arange(12, dtype=np.float64).reshape(2, 3, 2)
    assert np.load(io.BytesIO(formats.NPY.write(answers, [], True))).shape == (2, 3, 2)
    assert np.frombuffer(formats.RAW.write(answers, [], True), "<f4").tolist() == list(range(12))
    column = pa.ipc.open_stream(formats.ARROW.write(answers, [], True)).read_all().column("prediction")
    assert column.to_pylist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert orjson.loads(formats.JSON.write(answers, [], True)) == answers.tolist()
    many = wire.PredictionsList.FromString(formats.PROTOBUF.write(answers, [], True))
    assert [len(row.prediction) for row in many.predictions] == [6, 6]
