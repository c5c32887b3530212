"""Load against small real servers, each with its own way of answering."""

import asyncio
import contextlib
import itertools
import json
import math
import os
import random
import signal
import struct
import threading
import time

import pytest

from mlaas_ray.client import load as room
from mlaas_ray.client.load import (
    Call,
    Check,
    Load,
    LoadSettings,
    draw_rows,
    json_call,
    proto_call,
    raw_call,
)
from mlaas_ray.client.load.histogram import Histogram
from mlaas_ray.client.load.reply import BadReplyError, ReplyReader
from mlaas_ray.client.load.schedule import Schedule
from mlaas_ray.core.errors import JobError, ServiceError
from tests.serving import free_port

CALLS = [Call("/json", json.dumps({"n": n}).encode()) for n in range(20)]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
GOOD = HEAD + b"[1]\n"


@contextlib.contextmanager
def serving(answer):
    """Run a server in a thread: ``await answer(writer, body, number)`` for each request; false ends it."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    stop = asyncio.Event()
    port, seen = 0, []

    async def connection(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(length)
                seen.append((head, body))
                if await answer(writer, body, len(seen) - 1) is False:
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def serve():
        nonlocal port
        server = await asyncio.start_server(connection, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.01)  # the transports close

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(60)
        yield f"http://127.0.0.1:{port}", seen
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()


def measure(answer, calls=CALLS, judge=None, **settings):
    settings = {"concurrency": 4, "seconds": 0.3, "warmup": 0.0, "timeout": 5.0} | settings
    with serving(answer) as (url, seen):
        return Load(url, calls, LoadSettings(**settings), judge=judge).run(), seen


async def good(writer, body, number):
    writer.write(GOOD)


def test_callers_in_a_closed_loop_ask_again_when_they_have_their_answer():
    async def slow(writer, body, number):
        await asyncio.sleep(0.02)
        writer.write(GOOD)

    report, seen = measure(slow, seconds=1.0)
    # 4 callers, 20 ms and a little an answer; on a busy machine much more
    assert 20 <= report.requests <= 200
    assert report.requests == len(seen) == report.rows == report.statuses[200]
    # the last of each caller may come after the end
    assert report.req_s == pytest.approx(report.requests / report.seconds, rel=0.25)
    assert 20 <= report.p50_ms <= report.p99_ms <= report.max_ms
    assert (report.errors, report.refused, report.unsent) == ({}, 0, 0)
    assert report.behind_p99_ms is None
    assert report.client_cpu_us > 0
    assert report.received_bytes == len(GOOD) * report.requests


def test_calls_are_made_in_turn_with_their_paths_headers_and_bodies():
    calls = [Call("/a?x=1", b"one", {"Content-Type": "t/a"}), Call("/b", b"two", rows=1)]
    with serving(good) as (url, seen):
        Load(f"{url}/prefix/", calls, LoadSettings(concurrency=1, seconds=0.1, warmup=0)).run()
        assert [body for _, body in seen[:4]] == [b"one", b"two", b"one", b"two"]
        head = seen[0][0].decode()
        assert head.startswith("POST /prefix/a?x=1 HTTP/1.1\r\n")
        assert f"Host: {url.removeprefix('http://')}\r\n" in head
        assert "Content-Type: t/a\r\nContent-Length: 3\r\n" in head


def test_what_happens_in_the_warmup_is_not_counted():
    async def fails_at_first(writer, body, number):
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n" if number < 30 else GOOD)
        await asyncio.sleep(0.001)

    begun = time.monotonic()
    report, seen = measure(fails_at_first, warmup=2.0)
    assert report.errors == {}
    assert report.requests < len(seen)
    assert 0.2 <= report.seconds <= time.monotonic() - begun - 2.0


def test_progress_is_told_a_few_times_a_second():
    told = []
    with serving(good) as (url, _):
        settings = LoadSettings(concurrency=2, seconds=1.2, warmup=0.8)
        Load(url, CALLS, settings, on_progress=lambda gone, tally: told.append((gone, tally.good))).run()
    assert 3 <= len(told) <= 10
    assert told == sorted(told)
    assert told[0][0] < 0 < told[-1][0]


def chunked(*parts):
    chunks = b"".join(b"%x;x=y\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks


def in_two(reply, split):
    async def answer(writer, body, number):
        at = split(number, len(reply))
        writer.write(reply[:at])
        await writer.drain()
        await asyncio.sleep(0.001)
        writer.write(reply[at:])

    return answer


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        chunked(b"[1]", b"\n"),
        chunked(b"[" + b" " * 200_000 + b"1]\n"),
        b"HTTP/1.1 100 C\r\n\r\n" + GOOD,
    ],
    ids=["length", "chunked", "large", "announced"],
)
def test_replies_in_pieces_are_put_together(reply):
    bodies = []
    answer = in_two(reply, lambda number, length: 1 + number * 7 % (length - 1))
    report, _ = measure(answer, judge=lambda number, body: bodies.append(json.loads(body)))
    assert report.errors == {}
    assert report.requests > 20
    assert bodies == [[1]] * report.requests
    assert report.received_bytes == len(reply) * report.requests


@pytest.mark.parametrize(
    "reply", [GOOD, chunked(b"[", b"1", b"]\n"), HEAD.replace(b"Content-Length: 4\r\n", b"") + b"[1]\n"]
)
def test_a_reader_gives_each_reply_once_however_it_is_cut(reply):
    for cuts in ([1], [3], [17, 18], [len(reply)]):
        reader, heads = ReplyReader(), []
        for _ in range(3):
            rest, n = reply, 0
            while rest:
                size = cuts[n % len(cuts)]
                heads.append(reader.feed(rest[:size]))
                rest, n = rest[size:], n + 1
            heads.append(reader.finish())
            assert [head.status for head in heads if head] == [200]
            assert reader.body(next(filter(None, heads))) == b"[1]\n"
            assert reader.size == len(reply)
            heads.clear()


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        GOOD + b"more",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
    ],
)
def test_what_is_no_reply_is_an_error_of_its_own(reply):
    with pytest.raises(BadReplyError):
        ReplyReader().feed(reply)

    async def answer(writer, body, number):
        writer.write(reply)

    report, _ = measure(answer)
    # on a busy machine a connection may be refused, too
    assert report.errors["bad_reply"]
    assert report.p50_ms is None


def test_a_server_that_ends_each_connection_is_asked_over_new_ones():
    async def closes(writer, body, number):
        writer.write(GOOD.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))
        return False

    report, _ = measure(closes)
    assert report.errors == {}
    assert report.requests > 20


def test_a_body_may_end_with_its_connection():
    async def closes(writer, body, number):
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n[1]\n")
        return False

    report, _ = measure(closes)
    assert report.errors == {}
    assert report.statuses == {200: report.requests}


def test_requests_lost_with_their_connection_are_errors():
    async def loses(writer, body, number):
        if number % 10 == 5:
            writer.write(HEAD)  # and no body
            return False
        if number % 10 == 8:
            writer.transport.abort()
            return False
        writer.write(GOOD)
        return True

    report, seen = measure(loses, seconds=0.5)
    assert set(report.errors) <= {"connection_closed", "connection_reset"}
    assert sum(report.errors.values()) >= 4
    assert report.statuses[200] + sum(report.errors.values()) == report.requests == len(seen)


def test_statuses_are_counted_and_what_is_refused_is_no_error():
    async def answer(writer, body, number):
        head = [
            b"200 OK",
            b"503 Busy\r\nRetry-After: 5",
            b"503 Busy",
            b"404 None",
            b"429 Many\r\nRetry-After: Wed, 1",
        ]
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % head[number % 5])

    report, seen = measure(answer, seconds=1.2, concurrency=1)
    assert report.requests == len(seen) >= 15
    assert report.refused == pytest.approx(report.requests * 2 / 5, abs=1)
    assert set(report.errors) == {"http_503", "http_404"}
    assert sum(report.statuses.values()) == report.requests
    # a caller waits a little after a refusal, never the five seconds
    assert report.requests < 80
    assert report.req_s < 20


def test_a_request_without_an_answer_times_out_and_counts_as_long_as_it_waited():
    async def silent(writer, body, number):
        if number % 10 != 5:
            writer.write(GOOD)
            await asyncio.sleep(0.01)

    report, _ = measure(silent, timeout=0.3, seconds=1.0, concurrency=2)
    assert set(report.errors) == {"timeout"}
    assert 300 <= report.max_ms < 5000  # the limit, not the five seconds of others


def test_a_server_that_goes_away_is_refused_connections():
    with serving(good) as (url, _):
        load = Load(url, CALLS, LoadSettings(concurrency=3, seconds=1.0, warmup=0))
        reports = []
        thread = threading.Thread(target=lambda: reports.append(load.run()))
        thread.start()
        time.sleep(0.3)
    thread.join(60)
    (report,) = reports
    assert report.statuses[200] > 10
    # three callers that try twenty times a second
    assert 6 <= report.errors["connection_refused"] <= 60


@pytest.mark.parametrize("rate", [None, 100.0])
def test_a_service_that_is_not_there_is_named(rate):
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServiceError, match=f"cannot reach {url}.*mlaas serve"):
        Load(url, CALLS, LoadSettings(rate=rate)).run()
    with pytest.raises(ServiceError, match="cannot reach"):
        Load("http://no.such.host.invalid", CALLS).run()


@pytest.mark.parametrize(
    "url", ["127.0.0.1:80", "ftp://host", "http://", "http://host:port", "http://host:99999"]
)
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ServiceError, match="is no URL"):
        Load(url, CALLS)


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"rate": 0}, {"seconds": 0}, {"concurrency": 0}, {"arrivals": "sometimes"}):
        with pytest.raises(JobError):
            LoadSettings.of(wrong, "the options")
    with pytest.raises(ValueError, match="no calls"):
        Load("http://host", [])


@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
def test_an_open_loop_keeps_its_rate(arrivals):
    report, _ = measure(good, rate=200.0, seconds=1.0, warmup=0.2, arrivals=arrivals)
    due = report.requests + report.unsent
    assert due == pytest.approx(200, abs=2 if arrivals == "constant" else 60)
    assert report.errors == {}
    # alone it is 0.1 ms; a machine that others use may be behind for some time, and still keeps the rate
    assert report.behind_p50_ms < 200
    assert report.unsent < 50


def stalling(seconds):
    """Answer at once, but for one time at which nothing is answered for so long."""
    since = time.perf_counter()

    async def answer(writer, body, number):
        now = time.perf_counter() - since
        if 0.5 <= now < 0.5 + seconds:
            await asyncio.sleep(0.5 + seconds - now)
        writer.write(GOOD)

    return answer


def test_an_open_loop_shows_the_stall_that_a_closed_loop_hides():
    closed, _ = measure(stalling(0.5), seconds=2.0, concurrency=2)
    opened, _ = measure(stalling(0.5), seconds=2.0, concurrency=2, rate=200.0)
    # two requests of the closed loop met the stall, of which users would have sent a hundred
    assert closed.p99_ms < 200 < opened.p90_ms
    assert closed.max_ms > 400
    assert opened.p99_ms > 400
    assert opened.requests + opened.unsent == pytest.approx(400, abs=2)
    assert opened.behind_max_ms > 400


def test_requests_that_an_overloaded_service_never_got_count_as_they_waited():
    async def slow(writer, body, number):
        await asyncio.sleep(0.1)
        writer.write(GOOD)

    report, seen = measure(slow, rate=100.0, seconds=1.0, concurrency=1)
    assert report.requests + report.unsent == pytest.approx(100, abs=2)
    assert report.requests == len(seen) <= 11
    assert 300 < report.p50_ms < 700
    assert report.max_ms > 800


def test_ctrl_c_ends_early_with_what_was_measured():
    asked, killed = [], 0.0

    async def slow(writer, body, number):
        nonlocal killed
        asked.append(time.perf_counter())
        if number == 23:  # the last of the four callers asks in vain
            killed = time.perf_counter()
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.05 if number < 20 else 60)
        writer.write(GOOD)

    begun = time.perf_counter()
    report, _ = measure(slow, seconds=30.0, timeout=60.0)
    assert time.perf_counter() - begun < 25
    assert report.requests == 20
    assert report.errors == {}
    # counted from the first request: the server under test may take its time to start
    assert report.seconds == pytest.approx(killed - asked[0], abs=5)


def test_each_caller_gets_its_own_answer_and_a_wrong_one_is_found():
    async def echo(writer, body, number):
        values = json.loads(body)["values"]
        answer = json.dumps([values[0] + (0.5 if number == 40 else 0.0), None]).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))

    rows = draw_rows(50, 3)
    check = Check([[row[0], None] for row in rows])
    report, _ = measure(echo, [json_call("m", None, [row]) for row in rows], judge=check)
    found = check.document()
    assert found["answers"] == report.requests > 50
    assert found["wrong"] == 1
    assert found["largest_difference"] == pytest.approx(0.5)
    assert found["distinct"] == len({row[0] for row in rows})


def test_answers_of_another_shape_are_wrong():
    check = Check([[0.5, None]])
    for body in (b"[0.5]", b"{}", b"[", b"[0.5, 0.5]", b"[null, null]", b'["a", null]'):
        check(0, body)
    assert (check.answers, check.wrong) == (6, 6)
    check(0, b"[0.500001, null]")
    assert check.wrong == 6


def test_quantiles_are_within_half_a_percent_and_the_largest_is_exact():
    draw = random.Random(2)
    durations = [draw.lognormvariate(-6, 1.5) for _ in range(20_000)]
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    durations.sort()
    for share in (0.001, 0.5, 0.9, 0.99, 0.999):
        exact = durations[math.ceil(share * len(durations)) - 1]
        assert histogram.quantile(share) == pytest.approx(exact, rel=0.00502)
    assert histogram.quantile(1.0) == histogram.max == durations[-1]
    assert Histogram().quantile(0.5) is None


def test_durations_beyond_the_buckets_are_kept_in_the_outermost():
    histogram = Histogram()
    for duration in (0.0, 1e-9, 1e9):
        histogram.add(duration)
    assert histogram.quantile(0.5) <= 1e-6
    assert histogram.quantile(1.0) == 1e9


def test_a_schedule_is_even_and_ends():
    schedule = Schedule(10.0, start=5.0, end=6.0)
    assert [schedule.take() for _ in range(10)] == pytest.approx([5 + n / 10 for n in range(10)])
    assert schedule.due == math.inf


def test_random_arrivals_have_the_rate_and_the_spread_of_independent_callers():
    schedule = Schedule(1000.0, start=0.0, end=20.0, poisson=True)
    times = []
    while schedule.due < math.inf:
        times.append(schedule.take())
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(1e-3, rel=0.03)
    assert spread == pytest.approx(mean, rel=0.05)


def test_json_is_what_tfaas_clients_send():
    call = json_call("toy:1", ["a", "b"], [[1.5, 2.0]])
    assert call.path == "/json"
    assert json.loads(call.body) == {"keys": ["a", "b"], "values": [1.5, 2.0], "model": "toy:1"}
    many = json.loads(json_call("toy", None, [[1.0], [2.0]]).body)
    assert many == {"keys": ["f0"], "values": [[1.0], [2.0]], "model": "toy"}


def test_raw_bodies_are_little_endian_float32_for_the_models_own_route():
    call = raw_call("my toy:1", None, [[1.5, 2.0], [3.0, 4.0]])
    assert call.path == "/models/my%20toy:1/predict"
    assert struct.unpack("<4f", call.body) == (1.5, 2.0, 3.0, 4.0)
    assert (call.rows, call.headers["Content-Type"]) == (2, "application/octet-stream")


def messages():
    """The classes of TFaaS's tfaas.proto, as Google's own library makes them."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="tfaas.proto", package="tfaaspb", syntax="proto3")
    row = file.message_type.add(name="Row")
    row.field.add(name="key", number=1, label=3, type=9)
    row.field.add(name="value", number=2, label=3, type=2)
    row.field.add(name="model", number=3, label=1, type=9)
    frame = file.message_type.add(name="DataFrame")
    frame.field.add(name="row", number=1, label=3, type=11, type_name=".tfaaspb.Row")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tfaaspb.{name}"))
        for name in ("Row", "DataFrame")
    ]


def test_proto_bodies_are_those_of_googles_library():
    make_row, make_frame = messages()
    keys = [f"column_{n}" for n in range(100)]
    rows = draw_rows(3, 100)
    made = [make_row(key=keys, value=row, model="toy") for row in rows]
    assert proto_call("toy", keys, rows[:1]).body == made[0].SerializeToString()
    assert proto_call("toy", keys, rows).body == make_frame(row=made).SerializeToString()
    assert list(make_row.FromString(proto_call("toy", None, [[1.0, 2.0]]).body).key) == ["f0", "f1"]


def test_rows_are_different_and_the_same_each_time():
    assert draw_rows(100, 5) == draw_rows(100, 5)
    assert draw_rows(1, 5, seed=1) != draw_rows(1, 5, seed=2)
    assert len({tuple(row) for row in draw_rows(100, 5)}) == 100


def test_the_room_names_what_it_offers():
    assert room.__all__ == sorted(set(room.__all__), key=lambda name: (name.islower(), name))
    assert all(getattr(room, name).__doc__ for name in room.__all__)
