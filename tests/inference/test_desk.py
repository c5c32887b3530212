"""The usual requests, taken and answered."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from mlaas_ray.core.errors import EventError, ModelError
from mlaas_ray.core.package import write_package
from mlaas_ray.inference.busy import BusyError
from mlaas_ray.inference.catalog import Catalog
from mlaas_ray.inference.desk import Desk
from mlaas_ray.inference.events import Query
from mlaas_ray.inference.examination import Candidate, Examination
from mlaas_ray.inference.formats import JSON, PROTOBUF
from mlaas_ray.inference.inspection import inspect_model
from mlaas_ray.inference.onnx_runtime import OnnxRuntime
from mlaas_ray.inference.pool import ModelPool
from mlaas_ray.inference.predictor import BULK_ROWS, OwnModels, Predictor
from mlaas_ray.inference.replies import json_reply
from mlaas_ray.inference.routes import Routes
from mlaas_ray.inference.settings import ServiceSettings
from mlaas_ray.inference.shipment import Outcome
from mlaas_ray.inference.status import Status
from mlaas_ray.inference.wire import DataFrame, Predictions, Row, read_message
from mlaas_ray.repository import Repository
from tests.inference.test_types import write_cast
from tests.serving import SPEC, WIDTH, expected, signature

VALUES = [1.0, 2.0, 3.0, 4.0, 5.0]
LABELS = ["background", "signal"]


def opened(package, threads, **_options):
    """Open an ONNX file without examining it."""
    runtime = OnnxRuntime(package.model_path, threads)
    candidate = Candidate(name="onnxruntime", seconds={1: 1e-4})
    runtime.examination = Examination.of(runtime.signature, threads, [candidate], {})
    return runtime


class Held:
    """Models in this process, whose answers can be held back or exchanged, and whose calls are counted."""

    def __init__(self, models: OwnModels) -> None:
        self.models = models
        self.open = asyncio.Event()
        self.open.set()
        self.instead: object = None
        self.calls: list[tuple[list[str], bool]] = []

    async def run(self, loads, *, patient, **more):
        self.calls.append(([key.name for key, _ in loads], patient))
        await self.open.wait()
        if isinstance(self.instead, Exception) and not isinstance(self.instead, ModelError):
            raise self.instead
        if self.instead is not None:
            return [Outcome(self.instead) for _ in loads]
        return await self.models.run(loads, patient=patient, **more)

    async def prepare(self, key):
        return await self.models.prepare(key)

    async def loaded(self):
        return await self.models.loaded()


@dataclass
class Connection:
    """What a connection is to a desk."""

    answers: list[tuple[bytes, bytes]] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    request_id: bytes = b"number-7"

    def answer(self, head, body):
        self.answers.append((head, body))
        self.came.set()

    async def reply(self) -> tuple[int, dict[str, str], bytes]:
        await asyncio.wait_for(self.came.wait(), 60)
        ((head, body),) = self.answers
        status, *lines = head.decode().removesuffix("\r\n").split("\r\n")
        return int(status.split()[1]), dict(line.split(": ") for line in lines), body


class Office:
    """A desk over the models of a repository, in one event loop."""

    def __init__(self, repository: Repository, **options) -> None:
        settings = ServiceSettings.of({"repository": repository.root, **options})
        self.pool = ModelPool(repository, threads=1, memory_bytes=1 << 30, load=opened)
        self.held = Held(OwnModels(self.pool))
        self.predictor = Predictor(settings, shared=self.held, here=None)
        self.routes = Routes(Catalog(repository), self.predictor.prepare, 10.0)
        self.status = Status()
        self.desk = Desk(self.routes, self.predictor, self.status)

    def take(self, content, path: bytes = b"/json") -> Connection | None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        connection = Connection()
        language = self.desk.language(path)
        assert language is not None
        if self.desk.take(body, language, connection):
            assert connection.answers == []
            return connection
        assert connection.answers == []
        return None

    async def ask(self, content, path: bytes = b"/json") -> tuple[int, dict[str, str], bytes]:
        connection = self.take(content, path)
        assert connection is not None
        return await connection.reply()


@pytest.fixture
def repository(onnx_package, tmp_path):
    repository = Repository(tmp_path / "models")
    for name in ("toy", "other"):
        repository.publish(onnx_package, name)
        # changes of this moment are looked at twice
        os.utime(repository.root / name, (time.time() - 10,) * 2)
    return repository


def sent(values, **more):
    return {"model": "toy", "values": list(values), **more}


def message(values, keys=(), model="toy"):
    return Row(key=keys, value=values, model=model).SerializeToString()


def test_a_row_is_taken_once_its_model_answered_before(repository):
    async def main():
        office = Office(repository)
        assert office.take(sent(VALUES)) is None
        await office.routes.find("toy")
        status, headers, body = await office.ask(sent(VALUES))
        answers = expected(np.array([VALUES], np.float32)).astype(np.float32)
        assert (status, body) == (200, JSON.write(answers, LABELS, False))
        assert headers == {"content-type": "application/json", "x-model": "toy:1"}
        assert office.take(sent(VALUES) | {"model": "other"}) is None
        assert office.desk.taken == 1

    asyncio.run(main())


@pytest.mark.parametrize("path", [b"/proto", b"/predict/proto"])
def test_a_message_is_answered_with_the_models_labels(repository, path):
    async def main():
        office = Office(repository)
        await office.routes.find("toy")
        for scale in (1, 2):
            values = [scale * value for value in VALUES]
            status, headers, body = await office.ask(message(values), path)
            answers = expected(np.array([values], np.float32)).astype(np.float32)
            assert (status, body) == (200, PROTOBUF.write(answers, LABELS, False))
            assert headers == {"content-type": "application/octet-stream", "x-model": "toy:1"}

    asyncio.run(main())


def test_a_model_of_other_numbers_than_float32_is_left_to_the_general_way(repository, tmp_path):
    from onnx import TensorProto

    path = write_cast(tmp_path / "model.onnx", TensorProto.DOUBLE)

    def fill(draft):
        (draft / "model.onnx").write_bytes(path.read_bytes())
        shown = inspect_model(path, "onnx")
        write_package(draft, name="doubles", framework="unknown", model_format="onnx", signature=shown)

    repository.add("doubles", fill)

    async def main():
        office = Office(repository)
        entry = await office.routes.find("doubles")
        assert office.take(sent([0.1, 2]) | {"model": "doubles"}) is None
        assert office.take(message([0.1, 2], model="doubles"), b"/proto") is None
        rows, _ = Query.parse(b'{"values": [0.1, 2]}').rows(None, entry.width, entry.dtype)
        np.testing.assert_array_equal(await office.predictor.predict(entry, rows), [[0.1, 2]])

    asyncio.run(main())


def test_values_come_in_any_order_and_some_may_be_missing(repository):
    keys = [SPEC.columns[3], SPEC.columns[0]]
    row = np.full((1, WIDTH), np.nan, np.float32)
    row[0, [3, 0]] = [7, 2]

    async def main():
        office = Office(repository)
        await office.routes.find("toy")
        (answer,) = expected(row)
        _, _, body = await office.ask(sent([7, 2], keys=keys), b"/predict/json")
        assert json.loads(body) == pytest.approx(answer)
        _, _, body = await office.ask(message([7, 2], keys), b"/proto")
        assert [one.probability for one in Predictions.FromString(body).prediction] == pytest.approx(answer)
        _, _, body = await office.ask(sent([2, None, None, 7, None]))
        assert json.loads(body) == pytest.approx(answer)

    asyncio.run(main())


@pytest.mark.parametrize(
    "content",
    [
        sent(VALUES[:4]),
        sent([]),
        sent(VALUES, keys=["MET_pt"]),
        sent([1.0], keys=["MET"]),
        sent([1.0, 2.0], keys=["run", "run"]),
        sent(["1", 2, 3, 4, 5]),
        sent([VALUES, VALUES]),
        sent(VALUES) | {"model": "toy:2"},
        sent(VALUES) | {"model": ""},
        sent(VALUES) | {"model": "../toy"},
        {"values": VALUES},
        {"model": "toy", "event": {"MET_pt": 1}},
        {"MODEL": "toy", "Values": VALUES},
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_the_desk_does_not_understand_it_leaves(repository, content):
    async def main():
        office = Office(repository)
        await office.routes.find("toy")
        assert office.take(content) is None
        assert (office.desk.taken, office.status.load.ongoing, office.predictor.batcher.waiting) == (0, 0, 0)

    asyncio.run(main())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        message(VALUES[:3]),
        message(VALUES, model="none"),
        DataFrame(row=[Row(value=VALUES, model="toy")] * 2).SerializeToString(),
        message(VALUES)[:-3],
    ],
)
def test_a_message_the_desk_does_not_understand_it_leaves(repository, content):
    async def main():
        office = Office(repository)
        await office.routes.find("toy")
        assert office.take(content, b"/proto") is None
        assert office.status.load.ongoing == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    "path", [b"/models", b"/json/", b"/", b"", b"/json?x=1", b"/models/toy/predict", b"/status"]
)
def test_no_other_path_is_the_desks(repository, path):
    assert Office(repository).desk.language(path) is None


def test_rows_of_many_connections_go_together_and_each_gets_its_own_answer(repository):
    async def main():
        office = Office(repository)
        for model in ("toy", "other", "toy:1"):
            await office.routes.find(model)
        office.held.calls.clear()
        rows = np.random.default_rng(5).normal(size=(2000, WIDTH)).astype(np.float32)
        asked = []
        for number, row in enumerate(rows):
            content = sent(row.tolist()) | {"model": ("toy", "other", "toy:1")[number % 3]}
            asked.append(office.take(content))
            if number % 400 == 399:
                await asyncio.sleep(0.002)
        replies = [await connection.reply() for connection in asked]
        answers = [json.loads(body) for _, _, body in replies]
        np.testing.assert_allclose(answers, expected(rows), rtol=1e-3, atol=1e-5)
        assert {headers["x-model"] for _, headers, _ in replies} == {"toy:1", "other:1"}
        assert len(office.held.calls) <= 10
        assert office.status.load.ongoing == 0
        assert office.status.requests["POST"] == 2000
        assert sum(times.rows for times in office.status.models.values()) == 2000

    asyncio.run(main())


def test_too_many_rows_are_refused_as_busy(repository):
    async def main():
        office = Office(repository, queue_rows=3, linger_ms=10_000)
        await office.routes.find("toy")
        office.held.open.clear()
        asked = [office.take(sent(VALUES))]
        await asyncio.sleep(0.01)
        asked += [office.take(sent(VALUES)) for _ in range(3)]
        await asyncio.sleep(0.01)
        status, headers, body = await office.ask(sent(VALUES))
        assert (status, headers["retry-after"], headers["content-type"]) == (503, "1", "application/json")
        assert "3 rows are waiting already" in json.loads(body)["error"]
        assert office.status.load.ongoing == 4
        office.held.open.set()
        assert [(await connection.reply())[0] for connection in asked] == [200] * 4
        assert office.status.load.ongoing == 0
        assert (office.status.requests["POST"], office.status.errors) == (5, 1)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ModelError("the model failed"), 400, "the model failed."),
        (TimeoutError(), 504, "no answer in time"),
        (RuntimeError("secret"), 500, "internal error"),
    ],
)
@pytest.mark.parametrize(
    ("path", "content"), [(b"/json", json.dumps(sent(VALUES)).encode()), (b"/proto", message(VALUES))]
)
def test_what_goes_wrong_is_said_as_the_application_says_it(repository, error, status, said, path, content):
    async def main():
        office = Office(repository)
        await office.routes.find("toy")
        office.held.instead = error
        found, headers, body = await office.ask(content, path)
        assert found == status
        assert json.loads(body)["error"].startswith(said)
        assert "secret" not in body.decode()
        # the number that the client has, too
        assert (b"number-7" in body) == (status == 500)
        assert headers["content-type"] == "application/json"
        assert "content-length" not in headers
        assert office.status.load.ongoing == 0
        office.held.instead = None
        assert (await office.ask(content, path))[0] == 200

    asyncio.run(main())


@pytest.fixture
def lookup(repository, tmp_path):
    """A model that looks its number up in a table of 1,000, and fails for any other number."""
    from onnx import TensorProto, helper, numpy_helper, save

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "index"], ["found"]),
        ],
        "lookup",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(np.arange(1000, dtype=np.float32) * 2, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)

    def fill(draft):
        save(model, str(draft / "model.onnx"))
        write_package(draft, name="lookup", framework="x", model_format="onnx", signature=signature(1))

    repository.add("lookup", fill)
    os.utime(repository.root / "lookup", (time.time() - 10,) * 2)


@pytest.mark.parametrize("path", [b"/json", b"/proto"])
def test_a_row_that_a_model_fails_with_is_not_its_neighbours_trouble(repository, lookup, path):
    async def main():
        office = Office(repository)
        entry = await office.routes.find("lookup")
        values = [99_999 if number % 20 == 0 else number for number in range(900)]
        asked = [
            (value, office.take({"model": "lookup", "values": [value]}))
            if path == b"/json"
            else (value, office.take(message([value], model="lookup"), path))
            for value in values
        ]
        # one that goes the other way, in the same call
        plain = asyncio.create_task(office.predictor.predict(entry, np.float32([[3], [4]])))
        for value, connection in asked:
            status, headers, body = await connection.reply()
            if value == 99_999:
                assert (status, b"the model failed" in body) == (400, True)
                continue
            assert (status, headers["x-model"]) == (200, "lookup:1")
            if path == b"/json":
                assert json.loads(body) == [2 * value]
            else:
                assert Predictions.FromString(body).prediction[0].probability == 2 * value
        np.testing.assert_array_equal(await plain, [[6], [8]])
        assert office.status.load.ongoing == 0
        assert office.status.answered["POST", 200] == 855
        assert office.status.answered["POST", 400] == 45
        # and of bad ones alone each is refused
        both = [office.take({"model": "lookup", "values": [99_999]}) for _ in range(2)]
        assert [(await connection.reply())[0] for connection in both] == [400, 400]
        assert office.status.load.ongoing == 0

    asyncio.run(main())


def test_answers_that_cannot_be_written_are_refused_and_leave_nobody_waiting(repository):
    async def main():
        office = Office(repository)
        await office.routes.find("toy")
        office.held.instead = np.array([["signal"]])
        assert (await office.ask(sent(VALUES)))[0] == 500
        # fewer answers than rows
        for rows in (0, 1):
            office.held.instead = np.zeros((rows, 2), np.float32)
            asked = [office.take(sent(VALUES)) for _ in range(2)]
            assert [(await connection.reply())[0] for connection in asked] == [500] * 2
        office.held.instead = None
        assert (await office.ask(sent(VALUES)))[0] == 200
        assert office.status.load.ongoing == 0

    asyncio.run(main())


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "bool"])
def test_answers_of_other_types_are_written_as_the_application_writes_them(repository, dtype):
    answers = np.array([[1.5, 0.0, 2.25]]).astype(dtype)

    async def main():
        office = Office(repository)
        await office.routes.find("toy")
        office.held.instead = answers
        assert (await office.ask(sent(VALUES)))[2] == JSON.write(answers, [], False)
        assert (await office.ask(message(VALUES), b"/proto"))[2] == PROTOBUF.write(answers, LABELS, False)
        office.held.instead = np.array([[[np.nan, 1.0], [np.inf, 0.5]]], np.float32)
        assert (await office.ask(sent(VALUES)))[2] == JSON.write(office.held.instead, [], False)

    asyncio.run(main())


def test_a_model_that_left_memory_is_loaded_again_and_does_not_hold_up_the_others(repository):
    async def main():
        office = Office(repository)
        for model in ("toy", "other"):
            await office.routes.find(model)
        del office.pool._models[(await office.routes.find("toy")).key]
        away, here = office.take(sent(VALUES)), office.take(sent(VALUES) | {"model": "other"})
        assert (await here.reply())[0] == (await away.reply())[0] == 200
        assert office.held.calls == [(["toy", "other"], False), (["toy"], True)]

    asyncio.run(main())


def test_thousands_of_rows_go_a_way_of_their_own_and_make_no_model_a_slow_one(repository):
    async def main():
        office = Office(repository)
        entry = await office.routes.find("toy")
        rows = np.zeros((BULK_ROWS, WIDTH), np.float32)
        office.held.instead = None
        seconds = office.predictor._behaviour[entry.key].seconds

        async def slowly(loads, *, patient):
            return [Outcome(expected(rows), 3.0) for _, rows in loads]

        office.pool.run = slowly
        assert (await office.predictor.predict(entry, rows)).shape == (BULK_ROWS, 1)
        assert office.held.calls[-1] == (["toy"], True)
        assert office.predictor._behaviour[entry.key].seconds == seconds
        await office.ask(sent(VALUES))
        assert office.held.calls[-1] == (["toy"], False)
        # that one row took as long
        await office.ask(sent(VALUES))
        assert office.held.calls[-1] == (["toy"], True)

    asyncio.run(main())


LARGE = [1e300, 2.0, 3.0, 4.0, 5.0]


def said_in_general(content, path):
    """What the application says is wrong with a body."""
    with pytest.raises(EventError) as caught:
        (Query.parse if path == b"/json" else read_message)(content).rows(SPEC, WIDTH)
    return json_reply({"error": str(caught.value)}).body


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        (b"/json", json.dumps(sent(LARGE)).encode()),
        (b"/json", json.dumps(sent([2, -1e39], keys=["run", "MET_pt"])).encode()),
        (b"/proto", message([np.inf, 2, 3, 4, 5])),
        (b"/proto", message([1, -np.inf], ["MET_pt", "run"])),
    ],
)
def test_a_value_too_large_is_refused_as_the_application_refuses_it_and_sends_nothing(repository, path, bad):
    async def main():
        office = Office(repository)
        await office.routes.find("toy")
        for _ in range(2):
            asked = [office.take(bad, path) for _ in range(3)]
            for connection in asked:
                status, headers, body = await connection.reply()
                assert (status, headers) == (400, {"content-type": "application/json"})
                assert body == said_in_general(bad, path)
        assert office.held.calls == []
        assert (office.predictor.batcher.waiting, office.status.load.ongoing) == (0, 0)
        assert (office.status.requests["POST"], office.status.errors, office.status.models) == (6, 0, {})

    asyncio.run(main())


def mixed(count):
    """Requests of several models, orders of keys and languages: path, body and row; some with no answer."""
    chance = np.random.default_rng(7)
    rows = chance.normal(size=(count, WIDTH)).astype(np.float32)
    orders = [None, list(SPEC.columns), list(SPEC.columns[::-1]), ["Jet_pt_1", "run"]]
    for number, row in enumerate(rows):
        model, keys = ("toy", "other", "toy:1")[number % 3], orders[number % 4]
        path = (b"/json", b"/proto")[number // 12 % 2]
        good = number % 5 > 0
        kept = list(SPEC.columns) if keys is None else keys
        if not good:
            row[SPEC.columns.index(kept[number % len(kept)])] = np.inf
        else:
            row[[SPEC.columns.index(name) not in map(SPEC.columns.index, kept) for name in SPEC.columns]] = (
                np.nan
            )
        values = [float(row[SPEC.columns.index(name)]) for name in kept]
        if path == b"/proto":
            body = message(values, keys or (), model)
        else:
            values = [1e300 if np.isinf(value) else value for value in values]
            body = json.dumps(sent(values, **({"keys": keys} if keys else {})) | {"model": model}).encode()
        yield path, body, row if good else None


def test_many_kinds_of_rows_in_one_turn_each_get_their_own_answer_or_refusal(repository):
    async def main():
        office = Office(repository)
        for model in ("toy", "other", "toy:1"):
            await office.routes.find(model)
        for count in (240, 241):
            requests = list(mixed(count))
            before = office.status.requests["POST"]
            asked = [office.take(body, path) for path, body, _ in requests]
            assert all(asked)
            for (path, body, row), connection in zip(requests, asked, strict=True):
                status, headers, reply = await connection.reply()
                if row is None:
                    assert (status, reply) == (400, said_in_general(body, path))
                    continue
                model = "other" if b"other" in body else "toy"
                assert (status, headers["x-model"]) == (200, f"{model}:1")
                found = json.loads(reply) if path == b"/json" else [
                    one.probability for one in Predictions.FromString(reply).prediction
                ]  # fmt: skip
                assert found == pytest.approx(expected(row[None])[0], rel=1e-4, abs=1e-6)
            assert office.status.load.ongoing == 0
            assert office.status.requests["POST"] - before == count
            assert not office.desk._blocks
        good = sum(row is not None for count in (240, 241) for *_, row in mixed(count))
        assert sum(times.requests for times in office.status.models.values()) == good
        assert sum(times.rows for times in office.status.models.values()) == good
        assert office.status.errors == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "status"), [(BusyError("full", ""), 503), (RuntimeError("secret"), 500), (KeyError("x"), 500)]
)
def test_what_is_not_even_sent_off_is_answered_to_all(repository, monkeypatch, error, status):
    async def main():
        office = Office(repository)
        await office.routes.find("toy")

        def refuse(*_args):
            raise error

        monkeypatch.setattr(office.predictor, "add", refuse)
        asked = [office.take(sent(VALUES)) for _ in range(3)] + [office.take(message(VALUES), b"/proto")]
        bad = office.take(sent(LARGE))
        assert [(await connection.reply())[0] for connection in asked] == [status] * 4
        assert (await bad.reply())[0] == 400
        assert office.status.load.ongoing == 0
        assert office.status.requests["POST"] == 5
        assert office.status.errors == 4

    asyncio.run(main())


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3), (6, 0), (6, 2, 2), (6, 2, 0), (6, 1, 1, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_answers_of_any_shape_are_written_as_if_each_came_alone(repository, shape, dtype):
    answers = (np.random.default_rng(3).normal(size=shape) * 100).astype(dtype)
    if answers.size and dtype != "int64":
        answers.flat[0], answers.flat[-1] = np.nan, -np.inf

    async def main():
        office = Office(repository)
        await office.routes.find("toy")
        for given in (answers, np.asfortranarray(answers)):
            office.held.instead = given
            for path, written, body in ((b"/json", JSON, json.dumps(sent(VALUES)).encode()),
                                        (b"/proto", PROTOBUF, message(VALUES))):  # fmt: skip
                asked = [office.take(body, path) for _ in range(6)]
                for number, connection in enumerate(asked):
                    status, _, reply = await connection.reply()
                    one = answers[number : number + 1]
                    assert (status, reply) == (200, written.write(one, LABELS, False))

    asyncio.run(main())


def test_a_connection_that_asks_again_as_it_is_answered_is_of_the_next_block(repository):
    async def main():
        office = Office(repository)
        await office.routes.find("toy")
        again = []

        class Eager(Connection):
            def answer(self, head, body):
                again.append(office.take(sent(VALUES)))
                super().answer(head, body)

        language = office.desk.language(b"/json")
        eager = [Eager() for _ in range(3)]
        for connection in eager:
            assert office.desk.take(json.dumps(sent(VALUES)).encode(), language, connection)
        for connection in eager:
            assert (await connection.reply())[0] == 200
        assert [(await connection.reply())[0] for connection in again] == [200] * 3
        assert office.status.load.ongoing == 0

    asyncio.run(main())


def test_one_connections_trouble_is_not_the_others(repository, caplog):
    class Broken(Connection):
        def answer(self, head, body):
            raise OSError("gone")

    async def main():
        office = Office(repository)
        await office.routes.find("toy")
        language = office.desk.language(b"/json")
        for values in (VALUES, LARGE):
            body = json.dumps(sent(values)).encode()
            assert office.desk.take(body, language, Broken())
            others = [office.take(body) for _ in range(2)]
            status = 200 if values is VALUES else 400
            assert [(await connection.reply())[0] for connection in others] == [status] * 2
        assert office.status.load.ongoing == 0
        assert caplog.text.count("could not be handed over") == 2

    asyncio.run(main())


def test_ids_differ_between_requests_and_between_desks(repository):
    async def main():
        office, another = Office(repository), Office(repository)
        await office.routes.find("toy")
        ids = {another.desk.next_id()}
        for _ in range(100):
            ids.add(office.desk.next_id())
            office.take(sent(VALUES))
        assert len(ids) == 101
        while office.status.load.ongoing:
            await asyncio.sleep(0.001)

    asyncio.run(main())
