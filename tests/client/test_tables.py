"""Tables of every kind get the answers of the same events sent one by one."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import awkward as ak
import httpx
import numpy as np
import pyarrow as pa
import pytest

from mlaas_ray.client import Client, client
from mlaas_ray.core.errors import EventError, ServiceError
from mlaas_ray.core.features import Feature, FeatureSpec, ObjectRule
from mlaas_ray.core.flatten import flatten_events
from tests.inference.face import Face
from tests.packaged import package_of
from tests.serving import SPEC, expected
from tests.serving import onnx_package as onnx_package

# Definitions of definitions, cuts and an order: a row is what training would see of the branches.
PREPARED = FeatureSpec.of(
    [
        Feature(name="HT", kind="flat"),
        Feature(name="MET_pt", kind="flat"),
        Feature(name="cov", kind="fixed", length=2),
        Feature(name="Jet_pt", kind="jagged", length=2),
    ],
    define={"good": "Jet_pt[Jet_tight & (abs(Jet_eta) < 2.4)]", "HT": "sum(good) + nJet"},
    objects={"Jet": ObjectRule(where="Jet_eta > -2", sort_by="Jet_pt")},
    branches={"Jet_eta": "jagged", "Jet_tight": "jagged", "nJet": "flat"},
)
EVENTS: list[dict[str, Any]] = [
    {
        "MET_pt": 31.25,
        "nJet": 3,
        "cov": [1.0, 2.0],
        "Jet_pt": [30.5, 50.25, None],
        "Jet_eta": [0.5, -1.0, 3.0],
        "Jet_tight": [True, True, False],
    },
    {"MET_pt": None, "nJet": 0, "cov": [0.5, 0.25], "Jet_pt": [], "Jet_eta": [], "Jet_tight": []},
    {
        "MET_pt": 12.5,
        "nJet": 2,
        "cov": [3.0, 4.0],
        "Jet_pt": [20.0, 70.0],
        "Jet_eta": [-3.0, 2.0],
        "Jet_tight": [False, True],
    },
]
NAMES = list(EVENTS[0])


def column(name: str) -> list[Any]:
    return [event[name] for event in EVENTS]


def arrays() -> dict[str, Any]:
    met = np.array([31.25, np.nan, 12.5])
    return {
        name: met
        if name == "MET_pt"
        else np.array(column(name))
        if name in ("nJet", "cov")
        else ak.Array(column(name))
        for name in NAMES
    }


def nested() -> ak.Array:
    """Jets as records, which NanoAOD's readers make of them."""
    one = arrays()
    jet = ak.zip({name[4:]: one.pop(name) for name in NAMES if name.startswith("Jet_")})
    return ak.zip({**one, "Jet": jet}, depth_limit=1)


def masked() -> dict[str, Any]:
    cov = np.ma.array(column("cov"), mask=False)
    return arrays() | {"MET_pt": np.ma.array([31.25, 99.0, 12.5], mask=[False, True, False]), "cov": cov}


def frame(**types: Any) -> Any:
    pandas = pytest.importorskip("pandas")
    made = pandas.DataFrame({name: column(name) for name in NAMES})
    return made.astype(types)


def frame_of_arrays() -> Any:
    made = frame()
    for name in NAMES:
        if isinstance(made[name][0], list):
            made[name] = [np.array(values, float if name != "Jet_tight" else bool) for values in column(name)]
    return made


def dictionaries() -> pa.Table:
    table = pa.table({name: column(name) for name in NAMES})
    return table.set_column(1, "nJet", table["nJet"].dictionary_encode())


class Streamed:
    """As polars and other libraries give their tables."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return pa.table({name: column(name) for name in NAMES}).__arrow_c_stream__(requested_schema)


class Like:
    """As tensors and datasets on disk are."""

    def __init__(self, values: Any) -> None:
        self.values = values if isinstance(values, np.ndarray) else np.array(values.to_list(), object)

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        return self.values


KINDS: dict[str, Callable[[], Any]] = {
    "arrays": arrays,
    "masked arrays": masked,
    "lists": lambda: {name: column(name) for name in NAMES},
    "big-endian arrays": lambda: arrays() | {"nJet": np.array(column("nJet"), ">i2")},
    "awkward records": lambda: ak.Array(EVENTS),
    "records within records": nested,
    "pandas": frame,
    "pandas of arrays": frame_of_arrays,
    "pandas with types of its own": lambda: frame(MET_pt="Float64", nJet="Int64"),
    "pandas with categories": lambda: frame(nJet="category"),
    "Arrow table": lambda: pa.table({name: column(name) for name in NAMES}),
    "Arrow batch": lambda: pa.RecordBatch.from_pylist(EVENTS),
    "Arrow with dictionaries": dictionaries,
    "Arrow in pieces": lambda: pa.concat_tables(
        [
            pa.Table.from_pylist(EVENTS[:1]),
            pa.Table.from_pylist(EVENTS[1:], pa.Table.from_pylist(EVENTS).schema),
        ],
        promote_options="permissive",
    ),
    "Arrow by awkward": lambda: ak.to_arrow_table(ak.Array(EVENTS)),
    "Arrow of records": lambda: ak.to_arrow_table(nested()),
    "another library's": Streamed,
    "what is an array to numpy": lambda: {name: Like(values) for name, values in arrays().items()},
    "pandas Series by name": lambda: dict(frame().items()),
}


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory, onnx_package: Any) -> Face:
    folder = tmp_path_factory.mktemp("face")
    made = Face(folder, onnx_package)
    package = package_of(folder / "prepared", PREPARED, {}, name="prepared")
    made.backend.catalog.repository.publish(package)
    return made


@pytest.fixture
def asked(face: Face, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A client of the HTTP face in this process, and the requests that it sent."""
    sent: list[httpx.Request] = []
    busy: list[int] = []  # statuses of the next replies

    def handle(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        if busy:
            return httpx.Response(
                busy.pop(), json={"error": "the queue is full"}, headers={"Retry-After": "1"}
            )
        # the name as the client wrote it
        path = request.url.raw_path.decode()
        got = face.request(request.method, path, content=request.read(), headers=dict(request.headers))
        return httpx.Response(got.status_code, headers=got.headers, content=got.content)

    with Client("http://face") as made:
        made._http = httpx.Client(base_url="http://face", transport=httpx.MockTransport(handle))
        yield SimpleNamespace(client=made, sent=sent, busy=busy)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["second", "events", "values"])
def test_a_table_gets_the_answers_of_its_events(asked: SimpleNamespace, kind: str, way: str) -> None:
    table = KINDS[kind]()
    given = ["prepared", table] if way == "second" else ["prepared"]
    found = asked.client.predict(*given, **({} if way == "second" else {way: table}))
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.shape) == (np.float32, (3, 1))
    assert [request.headers["content-type"] for request in asked.sent] == [
        "application/vnd.apache.arrow.stream"
    ]
    np.testing.assert_array_equal(found, expected(flatten_events(EVENTS, PREPARED)).astype(np.float32))
    np.testing.assert_array_equal(found, np.float32(asked.client.predict("prepared", events=EVENTS)))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int8", "uint16", "bool"])
@pytest.mark.parametrize("library", ["numpy", "awkward", "pandas", "arrow", "structured"])
def test_numbers_of_any_type_are_the_same_numbers(asked: SimpleNamespace, dtype: str, library: str) -> None:
    numbers = np.array([[1, 0, 1], [0, 1, 1]]).astype(dtype)
    names = ["Jet_pt_1", "MET_pt", "run"]
    columns = dict(zip(names, numbers.T, strict=True))
    table: Any = columns
    if library == "awkward":
        table = ak.Array({name: ak.Array(values) for name, values in columns.items()})
    elif library == "pandas":
        table = pytest.importorskip("pandas").DataFrame(columns)
    elif library == "arrow":
        table = pa.table(columns)
    elif library == "structured":
        table = np.zeros(2, [(name, dtype) for name in names])
        for name, values in columns.items():
            table[name] = values
    rows = np.full((2, SPEC.width), np.nan, np.float32)
    for name, values in columns.items():
        rows[:, SPEC.index[name]] = values
    np.testing.assert_array_equal(asked.client.predict("toy", table), expected(rows).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "uint8", "bool", ">f4"])
def test_an_array_is_sent_unrounded(asked: SimpleNamespace, dtype: str) -> None:
    rows = np.arange(2 * SPEC.width).reshape(2, -1).astype(dtype)
    if rows.dtype in (np.float64, np.int64, np.int32):
        rows[0, 0] = 16777217
    asked.client.predict("toy", values=rows)
    request = asked.sent[-1]
    if request.headers["content-type"] == "application/x-npy":
        sent = np.load(io.BytesIO(request.content))
        assert sent.dtype == dtype
    else:
        sent = np.frombuffer(request.content, "<f4").reshape(rows.shape)
    np.testing.assert_array_equal(sent, rows)


def test_no_events_give_no_answers_and_one_gives_one(asked: SimpleNamespace) -> None:
    for make in (arrays, frame, lambda: pa.Table.from_pylist(EVENTS), lambda: ak.Array(EVENTS)):
        table = make()
        none = (
            table.iloc[:0] if hasattr(table, "iloc") else table[:0] if not isinstance(table, dict) else None
        )
        one = table.iloc[:1] if hasattr(table, "iloc") else table[:1] if not isinstance(table, dict) else None
        if isinstance(table, dict):
            none, one = ({name: values[:n] for name, values in table.items()} for n in (0, 1))
        found = asked.client.predict("prepared", none)
        assert (found.dtype, found.shape) == (np.float32, (0, 1))
        wanted = expected(flatten_events(EVENTS[:1], PREPARED)).astype(np.float32)
        np.testing.assert_array_equal(asked.client.predict("prepared", one), wanted)


@pytest.mark.parametrize("what", ["table", "matrix"])
def test_many_rows_go_in_requests_that_the_service_takes(
    asked: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    rows = np.random.default_rng(1).normal(size=(100_000, SPEC.width)).astype(np.float32)
    table = pa.table(dict(zip(SPEC.columns, rows.T, strict=True)))
    sent: Any = {"events": table} if what == "table" else {"values": rows}
    # larger than this service takes: smaller pieces are tried
    monkeypatch.setattr(client, "_MOST_ROWS", 1 << 20)
    np.testing.assert_array_equal(asked.client.predict("toy", **sent), expected(rows).astype(np.float32))
    bodies = [int(request.headers["content-length"]) for request in asked.sent]
    assert bodies[0] > 1 << 20 > bodies[1]
    # a name that stands for another version meanwhile answers no second half
    assert asked.sent[0].url.path == "/models/toy/predict"
    assert {request.url.path for request in asked.sent[2:]} == {"/models/toy:1/predict"}
    asked.sent.clear()
    monkeypatch.setattr(client, "_MOST_ROWS", 16384)
    asked.client.predict("toy", **sent)
    assert len(asked.sent) == 7


def test_a_row_that_is_refused_is_told_where_it_is(
    asked: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_MOST_ROWS", 4)
    with pytest.raises(ServiceError, match=r"of rows 8 to 9: row 1: the value of MET_pt is too large"):
        asked.client.predict("toy", {"MET_pt": np.array([1.0] * 9 + [1e300])})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"MET_pt": [1.0], "Jet_Pt": [1.0]}, "knows no column or branch 'Jet_Pt'. Did you mean 'Jet_pt'"),
        ({"MET_pt": [1.0], "label": [1.0]}, "knows no column or branch 'label'"),
        ({"HT": [1.0], "Jet_pt": [[1.0]]}, "Send what it is made of: Jet_eta, Jet_pt, Jet_tight, nJet"),
        ({"Jet_pt": [1.0]}, "'Jet_pt' is jagged, but 1.0 is no list"),
        ({"Jet_pt": [[1.0]], "Jet_eta": [[]], "Jet_tight": [[True]]}, "different numbers of objects"),
        ({"MET_pt": ["a"]}, "'MET_pt' is of string, not of numbers"),
        ({"MET_pt": np.array([np.inf])}, "too large for float32"),
        (ak.Array({"MET_pt": [[[1.0]]]}), "'MET_pt' is of"),
    ],
    ids=str,
)
def test_a_table_that_does_not_fit_is_refused_by_the_service(
    asked: SimpleNamespace, table: Any, said: str
) -> None:
    with pytest.raises(ServiceError) as caught:
        asked.client.predict("prepared", table)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "no columns"),
        ({"MET_pt": 31.2}, "the column 'MET_pt' cannot be sent: one value was given"),
        ({"MET_pt": [1.0, 2.0], "nJet": [1]}, "'nJet' has 1 entries, but 'MET_pt' has 2"),
        ({"MET_pt": [1.0, "x"]}, "the column 'MET_pt' cannot be sent"),
        ({"MET_pt": np.zeros((2, 2, 2))}, "the column 'MET_pt' cannot be sent: it has 3 axes"),
        ({"Jet_pt": ak.Array([[1.0]]), "Jet": ak.Array([[{"pt": 1.0}]])}, "'Jet_pt' is there twice"),
    ],
    ids=str,
)
def test_what_is_no_table_is_refused_here(asked: SimpleNamespace, table: Any, said: str) -> None:
    with pytest.raises(EventError) as caught:
        asked.client.predict("prepared", table)
    assert said in str(caught.value)
    assert not asked.sent


def test_a_table_is_given_alone_and_its_model_may_be_the_only_one(asked: SimpleNamespace) -> None:
    with pytest.raises(EventError, match="Give the table alone"):
        asked.client.predict("toy", {"MET_pt": [1.0]}, keys=["MET_pt"])
    with pytest.raises(ServiceError, match="no model is named, and the service has 3"):
        asked.client.predict(events={"MET_pt": [1.0]})


def test_many_rows_wait_for_a_busy_service(asked: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waited.append)
    table = {"MET_pt": np.ones(20, np.float32)}
    asked.busy.extend([503] * 3)
    assert asked.client.predict("toy", table).shape == (20, 1)
    assert waited == [1] * 3
    asked.busy.extend([503] * 100)
    with pytest.raises(ServiceError, match="the queue is full"):
        asked.client.predict("toy", table)
    assert len(waited) < 40
    asked.busy[:] = [400]
    with pytest.raises(ServiceError, match="the queue is full"):
        asked.client.predict("toy", table)
    assert not asked.busy


def test_one_record_is_an_event(asked: SimpleNamespace) -> None:
    wanted = expected(flatten_events(EVENTS[1:2], PREPARED))[0].tolist()
    record = ak.Array([{**EVENTS[1], "MET_pt": np.nan}])[0]
    assert asked.client.predict("prepared", event=record) == pytest.approx(wanted, rel=1e-6)
