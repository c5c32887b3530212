"""Connections: what is taken from them, and what goes on to uvicorn."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn
import uvicorn.config
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlaas_ray.inference import protocol
from mlaas_ray.inference.protocol import MOST_BYTES, CoalescingProtocol

METHODS = ["GET", "POST", "DELETE", "PUT", "HEAD"]


def echoed(method: str, path: str, body: bytes) -> bytes:
    return json.dumps({"method": method, "path": path, "body": body.decode("latin1")}).encode() + b"\n"


@dataclass
class EchoDesk:
    """Takes ``POST /json``, and answers as the application does, when and how the body says.

    A body that begins with ``else`` it leaves; ``late`` it answers after 10 ms, ``hold`` when told
    to, ``big`` with 20,000 bytes, and any other in the next turn of the event loop.
    """

    connections: int = 0
    taken: int = 0
    active: int = 0
    period: int = 0
    held: list[Any] = field(default_factory=list)

    def language(self, path):
        return "echo" if path == b"/json" else None

    def next_id(self):
        return b"echo-%d" % self.taken

    def take(self, body, language, connection):
        assert language == "echo"
        if body.startswith(b"else"):
            return False
        self.taken += 1
        big = b" " * 20_000 if body.startswith(b"big") else b""

        def answer():
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-way: desk\r\n"
            connection.answer(head, echoed("POST", "/json", body) + big)

        loop = connection.loop
        if body.startswith(b"hold"):
            self.held.append(lambda: loop.call_soon_threadsafe(answer))
        elif body.startswith(b"late"):
            loop.call_later(0.01, answer)
        else:
            loop.call_soon(answer)
        return True

    def release(self):
        held, self.held = self.held, []
        for answer in held:
            answer()


class Echo:
    """An application that says what it was asked; ``?delay=`` seconds later, or in ``?pieces=``."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.pieces: list[int] = []

    async def answer(self, request: Request) -> Response:
        self.seen.append(f"{request.method} {request.url.path}")
        body = b""
        async for piece in request.stream():
            self.pieces.append(len(piece))
            body += piece
        await asyncio.sleep(float(request.query_params.get("delay", 0)))
        content = echoed(request.method, request.url.path, body)
        headers = {"x-way": "application", "content-type": "application/json"}
        pieces = int(request.query_params.get("pieces", 0))
        if not pieces:
            return Response(content, headers=headers)

        async def parts():
            for start in range(0, len(content), pieces):
                yield content[start : start + pieces]
                await asyncio.sleep(0)

        return StreamingResponse(parts(), headers=headers)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self.answer, methods=METHODS)])


@dataclass
class Serving:
    """A uvicorn that runs in a thread."""

    port: int
    server: uvicorn.Server
    desk: EchoDesk
    echo: Echo

    def connect(self, **options) -> Client:
        return Client(self.port, **options)


@contextmanager
def serving(
    *, kind: Any = CoalescingProtocol, loop: str = "asyncio", keep_alive: int = 5
) -> Iterator[Serving]:
    desk, echo = EchoDesk(), Echo()
    before = protocol._desk
    protocol.install(desk)  # type: ignore[arg-type]
    listening = socket.create_server(("127.0.0.1", 0), backlog=200)
    config = uvicorn.Config(
        echo.app(),
        http=kind,
        loop=loop,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=keep_alive,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        while not server.started or not server.server_state.default_headers:
            assert thread.is_alive()
            time.sleep(0.005)
        yield Serving(listening.getsockname()[1], server, desk, echo)
    finally:
        desk.release()
        server.should_exit = True
        thread.join(60)
        protocol.install(before)
        assert not thread.is_alive()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def way(self) -> str | None:
        return self.headers.get("x-way")


class Client:
    """A connection that sends bytes, and reads replies with the standard library's strict parser."""

    def __init__(self, port: int, *, buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, *segments: bytes, pause: float = 0.002) -> None:
        for number, segment in enumerate(segments):
            if number:
                time.sleep(pause)
            self.socket.sendall(segment)

    def reply(self, method: str = "POST") -> Reply:
        class Kept:
            """What the parser closes after a reply has the next one in it."""

            def makefile(_self, _mode):  # noqa: N805
                file = self._file

                class File:
                    read, readline, readinto, read1, peek = (
                        file.read, file.readline, file.readinto, file.read1, file.peek,
                    )  # fmt: skip

                    def close(self):
                        pass

                    def flush(self):
                        pass

                return File()

        response = http.client.HTTPResponse(Kept(), method=method)  # type: ignore[arg-type]
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        assert len(headers) == len(response.getheaders())
        return Reply(response.status, headers, response.read())

    def ended(self) -> bool:
        """Wait for the end of the connection; tell whether nothing came before it."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True


def usual(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /json HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def general(target: bytes, body: bytes = b"", *headers: bytes, method: bytes = b"POST") -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method, target), b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(target: bytes, *pieces: bytes) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % target
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def served(request) -> Iterator[Serving]:
    with serving(loop=request.param) as served:
        yield served


@pytest.fixture(scope="module")
def plain() -> Iterator[Serving]:
    """The same without our protocol."""
    with serving(kind=HttpToolsProtocol) as served:
        yield served


@pytest.fixture(scope="module")
def both(plain) -> Iterator[tuple[Serving, Serving]]:
    with serving() as served:
        yield served, plain


def said(reply: Reply) -> tuple[str, str, bytes]:
    content = json.loads(reply.body)
    return content["method"], content["path"], content["body"].encode("latin1")


# The usual requests


def test_a_usual_request_is_taken_by_the_desk(served):
    with served.connect() as client:
        client.send(usual(b"soon"))
        reply = client.reply()
    assert (reply.status, reply.way, reply.body) == (200, "desk", echoed("POST", "/json", b"soon"))
    assert reply.headers["content-length"] == str(len(reply.body))
    assert reply.headers["server"] == "uvicorn"
    assert time.strptime(reply.headers["date"], "%a, %d %b %Y %H:%M:%S GMT")
    assert "connection" not in reply.headers


def test_a_request_may_come_in_two_pieces_wherever_it_is_cut(served):
    request = usual(b"soon now", b"X-Request-ID: cut")
    ways = set()
    for cut in range(1, len(request)):
        with served.connect() as client:
            client.send(request[:cut], request[cut:])
            reply = client.reply()
            assert (reply.status, said(reply)) == (200, ("POST", "/json", b"soon now"))
            ways.add(reply.way)
            client.send(usual(b"next"))
            assert client.reply().way == "desk"
    # a head that comes in pieces is for the application, a body that does is not
    assert ways == {"desk", "application"}


@pytest.mark.parametrize(
    "request_", [usual(b"soon 1"), general(b"/models", b"abc"), chunked(b"/json", b"ab", b"c")]
)
def test_a_request_may_come_byte_by_byte(served, request_):
    with served.connect() as client:
        for _ in range(2):
            client.send(*(request_[i : i + 1] for i in range(len(request_))), pause=0.0005)
            assert client.reply().status == 200


def test_fifty_requests_at_once_are_answered_in_their_order(served):
    bodies = [b"%b %d" % (kind, number) for number in range(25) for kind in (b"late", b"now")]
    with served.connect() as client:
        client.send(b"".join(map(usual, bodies)))
        replies = [client.reply() for _ in bodies]
    assert [said(reply)[2] for reply in replies] == bodies
    assert {reply.way for reply in replies} == {"desk"}


def test_usual_and_general_requests_in_a_mix_are_answered_in_their_order(served):
    requests = [
        (usual(b"late 1"), "POST", ("POST", "/json", b"late 1"), None),
        (general(b"/models?delay=0.02", method=b"GET"), "GET", ("GET", "/models", b""), "application"),
        (usual(b"now 2"), "POST", ("POST", "/json", b"now 2"), None),
        (usual(b"else, left"), "POST", ("POST", "/json", b"else, left"), "application"),
        (usual(b"late 3"), "POST", ("POST", "/json", b"late 3"), None),
        (chunked(b"/json", b"in ", b"pieces"), "POST", ("POST", "/json", b"in pieces"), "application"),
        (general(b"/x?pieces=7", b"soon"), "POST", ("POST", "/x", b"soon"), "application"),
        (usual(b"soon 4", b"Expect: 100-continue"), "POST", ("POST", "/json", b"soon 4"), "application"),
        (general(b"/models/x", method=b"DELETE"), "DELETE", ("DELETE", "/models/x", b""), "application"),
        (usual(b"soon 5"), "POST", ("POST", "/json", b"soon 5"), None),
    ]
    for requests_ in (requests, requests[::-1]):
        with served.connect() as client:
            client.send(b"".join(request for request, *_ in requests_))
            for _, method, content, way in requests_:
                reply = client.reply(method)
                assert said(reply) == content
                assert way is None or reply.way == way
            client.send(usual(b"last"))
            assert client.reply().way == "desk"


def test_usual_requests_that_come_while_the_application_answers_wait_for_the_desk(served):
    with served.connect() as client:
        client.send(
            general(b"/slow?delay=0.1", method=b"GET"), usual(b"soon 1") + usual(b"now 2"), pause=0.03
        )
        assert [client.reply(method).way for method in ("GET", "POST", "POST")] == [
            "application",
            "desk",
            "desk",
        ]


def test_two_thousand_answers_at_once_do_not_overflow_the_stack(served):
    bodies = [b"now %d" % number for number in range(2000)]
    with served.connect() as client:
        sender = threading.Thread(target=client.send, args=(b"".join(map(usual, bodies)),))
        sender.start()
        assert [said(client.reply())[2] for _ in bodies] == bodies
        sender.join()


def test_each_request_has_an_id_its_own_or_a_new_one(served):
    with served.connect() as client, served.connect() as other:
        client.send(usual(b"now", b"X-Request-ID: mine-7") + usual(b"now") + usual(b"late"))
        ids = [client.reply().headers["x-request-id"] for _ in range(3)]
        other.send(usual(b"now") + usual(b"now", b"x-request-id:  spaced  "))
        ids += [other.reply().headers["x-request-id"] for _ in range(2)]
    assert ids[0] == "mine-7"
    assert ids[4] == "spaced"
    assert len(set(ids)) == 5


@pytest.mark.parametrize("number", [b"", b"two words", b"\xff", b"x" * 129])
def test_an_id_that_is_none_is_not_given_back(served, number):
    with served.connect() as client:
        client.send(usual(b"now", b"X-Request-ID: " + number))
        assert client.reply().headers["x-request-id"].startswith("echo-")


def test_other_clients_read_the_answers_too(served):
    url = f"http://127.0.0.1:{served.port}/json"
    with httpx.Client(trust_env=False) as client:
        for body in (b"soon", b"late", b"else", b"now", b""):
            reply = client.post(url, content=body)
            assert reply.content == echoed("POST", "/json", body)
            assert reply.headers["x-way"] == ("application" if body == b"else" else "desk")
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    for body in ("soon", "else", "late"):
        connection.request("POST", "/json", body)
        assert connection.getresponse().read() == echoed("POST", "/json", body.encode())
    connection.close()


def test_many_connections_each_get_their_own_answers(served):
    async def one(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        for turn in range(5):
            body = b"%b %d.%d" % ((b"soon", b"late", b"now")[(number + turn) % 3], number, turn)
            writer.write(usual(body))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            assert await reader.readexactly(length) == echoed("POST", "/json", body)
        writer.close()
        await writer.wait_closed()

    async def main():
        await asyncio.gather(*(one(number) for number in range(100)))

    asyncio.run(main())


# What goes on to uvicorn

UNUSUAL = [
    (usual(b"now", b"Connection: close"), 200, "application", True),
    (usual(b"now", b"connection:close"), 200, "application", True),
    (usual(b"now", b"Connection: keep-alive, x"), 200, "application", False),
    (usual(b"now", b"Connection: Keep-Alive"), 200, "desk", False),
    (usual(b"now", b"Proxy-Connection: close"), 200, "application", True),
    (usual(b"now").replace(b"HTTP/1.1", b"HTTP/1.0"), 200, "application", True),
    (usual(b"now").replace(b"/json", b"/json?x=1"), 200, "application", False),
    (usual(b"now").replace(b"POST", b"PUT"), 200, "application", False),
    (usual(b"now").replace(b"/json", b"/JSON"), 200, "application", False),
    (usual(b"now").replace(b"/json", b"/other"), 200, "application", False),
    (usual(b"now", b"Content-Encoding: gzip"), 200, "application", False),
    (usual(b"now", b"X-Request-Timeout-Seconds: 3"), 200, "application", False),
    # a browser's, which the application looks at; Node's fetch is a program
    (usual(b"now", b"Origin: http://x"), 200, "application", False),
    (usual(b"now", b"sec-fetch-site: same-origin"), 200, "application", False),
    (usual(b"now", b"sec-fetch-mode: cors"), 200, "desk", False),
    (chunked(b"/json", b"now"), 200, "application", False),
    (b"\r\n" + usual(b"now"), 200, "application", False),
    (b"POST /json HTTP/1.1\r\nHost: x\r\n\r\n", 200, "application", False),
    # what uvicorn does not take either
    (usual(b"now", b"Content-Length: 3"), 400, None, True),
    (usual(b"now", b"Content-Length: 30"), 400, None, True),
    (usual(b"now", b"Content-Length: 000000003"), 400, None, True),
    (usual(b"now").replace(b"Content-Length: 3", b"Content-Length: x\r\nContent-Length: 3"), 400, None, True),
    (usual(b"now").replace(b"Content-Length: 3", b"Content-Length: +3"), 400, None, True),
    (usual(b"now").replace(b"Content-Length: 3", b"Content-Length: 3, 3"), 400, None, True),
    (usual(b"now").replace(b"Content-Length:", b"Content-Length :"), 400, None, True),
    (usual(b"now", b"Transfer-Encoding: chunked"), 400, None, True),
    (usual(b"now", b"Transfer-Encoding : chunked"), 400, None, True),
    (usual(b"now", b"Transfer-Encoding\t: chunked"), 400, None, True),
    (usual(b"now", b"Transfer-Encoding\x0b: chunked"), 400, None, True),
    (usual(b"now", b" Transfer-Encoding: chunked"), 400, None, True),
    (usual(b"now", b"X: folded\r\n Transfer-Encoding: chunked"), 400, None, True),
    (usual(b"now", b"X: bare\nTransfer-Encoding: chunked"), 400, None, True),
    (usual(b"now", b"X: bare\rTransfer-Encoding: chunked"), 400, None, True),
    (usual(b"now", b"X: a\x00b"), 400, None, True),
    (usual(b"now", b"X y: 1"), 400, None, True),
    (usual(b"now", b": 1"), 400, None, True),
    (usual(b"now", b"no colon"), 400, None, True),
    (usual(b"now").replace(b" HTTP/1.1", b"  HTTP/1.1 "), 400, None, True),
    (b"nonsense\r\n\r\n", 400, None, True),
]


@pytest.mark.parametrize("number", range(len(UNUSUAL)))
def test_what_is_unusual_about_a_request_is_for_uvicorn(both, number):
    request, status, way, closes = UNUSUAL[number]
    served, plain = both
    taken = served.desk.taken
    with plain.connect() as client:
        client.send(request)
        plainly = client.reply()
    with served.connect() as client:
        client.send(request)
        reply = client.reply()
        assert (reply.status, reply.way, reply.body) == (plainly.status, way, plainly.body)
        assert served.desk.taken - taken == (way == "desk")
        assert (reply.headers.get("connection") == "close") == closes
        if closes:
            assert client.ended()
        else:
            client.send(usual(b"next"))
            assert client.reply().way == "desk"
    assert reply.status == status


def test_nothing_after_a_request_that_closes_is_executed(both):
    last = general(b"/last?delay=0.1", b"", b"Connection: close", method=b"GET")
    for served in both:
        for requests in (
            [last + general(b"/models/x", method=b"DELETE")],
            [last, general(b"/models/x", method=b"DELETE")],
            [last, usual(b"now")],
        ):
            served.echo.seen.clear()
            taken = served.desk.taken
            with served.connect() as client:
                client.send(*requests, pause=0.03)
                assert client.reply("GET").headers["connection"] == "close"
                assert client.ended()
            time.sleep(0.05)
            assert served.echo.seen == ["GET /last"]
            assert served.desk.taken == taken


def test_a_large_body_is_for_the_application(served):
    for size, way in ((MOST_BYTES // 2, "desk"), (MOST_BYTES, "application"), (1_000_000, "application")):
        with served.connect() as client:
            client.send(usual(b"n" * size) + usual(b"next"))
            for body in (b"n" * size, b"next"):
                assert said(client.reply())[2] == body
            client.send(usual(b"n" * size))
            reply = client.reply()
            assert (reply.way, len(said(reply)[2])) == (way, size)


def test_a_body_that_stalls_reaches_the_application_within_seconds(served):
    request = usual(b"soon, but slowly")
    served.echo.pieces.clear()
    with served.connect() as client:
        start = time.monotonic()
        client.send(request[:-8])
        while not served.echo.pieces:
            assert time.monotonic() - start < 60
            time.sleep(0.02)
        assert served.echo.pieces == [8]
        client.send(request[-8:] + usual(b"next"))
        reply = client.reply()
        assert (reply.way, said(reply)[2]) == ("application", b"soon, but slowly")
        assert client.reply().status == 200


@pytest.mark.parametrize(("patience_s", "pause", "way"), [(60.0, 0.15, "desk"), (0.2, 0.7, "application")])
def test_a_body_that_drips_is_waited_for_no_longer_than_one_that_stalls(
    served, monkeypatch, patience_s, pause, way
):
    monkeypatch.setattr(protocol, "PATIENCE_S", patience_s)
    request = usual(b"soon, but slowly")
    with served.connect() as client:
        client.send(request[:-6], request[-6:-4], request[-4:-2], request[-2:], pause=pause)
        assert client.reply().way == way


# What is remembered of heads


@pytest.fixture
def heads(monkeypatch):
    """No heads that are remembered, and few that may be."""
    heads = {}
    monkeypatch.setattr(protocol, "_heads", heads)
    monkeypatch.setattr(protocol, "KNOWN_HEADS", 5)
    return heads


def test_a_head_is_read_once(served, heads, monkeypatch):
    read = []
    monkeypatch.setattr(protocol, "_read_head", lambda head, plain=protocol._read_head: (
        read.append(head) or plain(head)
    ))  # fmt: skip
    with served.connect() as client:
        for number in range(20):
            client.send(usual(b"now %d" % (number % 10)))
            assert said(client.reply())[2] == b"now %d" % (number % 10)
    assert len(read) == len(heads) == 1


def test_few_heads_are_remembered_and_only_short_ones_of_usual_requests(served, heads):
    with served.connect() as client:
        for number in range(40):
            client.send(usual(b"now", b"X: %d" % number))
            assert client.reply().way == "desk"
            assert len(heads) <= 5
        heads.clear()
        client.send(usual(b"now", b"X: " + b"x" * protocol.LONGEST_HEAD))
        assert client.reply().way == "desk"
        for number in range(3):
            client.send(general(b"/models?x=%d" % number, method=b"GET"))
            assert client.reply("GET").way == "application"
    assert not heads


@pytest.mark.parametrize("name", [b"X-Request-ID", b"x-request-id"])
@pytest.mark.parametrize("number", [b"mine", b"two words", b"x" * 129, b""])
def test_a_head_with_an_id_is_not_remembered(served, heads, name, number):
    with served.connect() as client:
        client.send(usual(b"now", name + b": " + number))
        reply = client.reply()
        assert reply.way == "desk"
        assert (reply.headers["x-request-id"] == "mine") == (number == b"mine")
        client.send(general(b"/models", b"", name + b": " + number, method=b"GET"))
        assert client.reply("GET").status == 200
    assert not heads


def test_a_head_that_differs_in_one_byte_is_read_anew(both):
    served, plain = both
    whole = usual(b"now and then", b"X: 1")
    with served.connect() as client:
        client.send(whole)
        assert client.reply().way == "desk"
    end = whole.index(b"\r\n\r\n") + 4
    assert whole[:end] in protocol._heads
    for head in (
        whole[:end].replace(b"/json", b"/jsom"),
        whole[:end].replace(b"POST", b"PUTT"),
        whole[:end].replace(b"HTTP/1.1", b"HTTP/1.0"),
        whole[:end].replace(b"X: 1", b"X\x00 1"),
        whole[:end].replace(b"X: 1", b"X: \n"),
        whole[:end].replace(b"Length: 12", b"Length: x2"),
    ):
        answers = []
        for serving_ in (plain, served):
            with serving_.connect() as client:
                client.send(head + whole[end:])
                reply = client.reply()
                answers.append((reply.status, reply.body))
        assert answers[0] == answers[1], head
    with served.connect() as client:
        client.send(whole[:end].replace(b"Length: 12", b"Length: 11") + whole[end:-1])
        assert said(client.reply())[2] == b"now and the"


# The end of connections


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_connections_that_nobody_uses_are_closed(loop):
    with serving(loop=loop, keep_alive=2) as served:
        with (
            served.connect() as fresh,
            served.connect() as used,
            served.connect() as mixed,
            served.connect() as busy,
        ):
            used.send(usual(b"soon"))
            assert used.reply().way == "desk"
            mixed.send(general(b"/models", method=b"GET"))
            assert mixed.reply("GET").way == "application"
            busy.send(usual(b"hold"))
            start = time.monotonic()
            while time.monotonic() - start < 1.5:
                time.sleep(0.1)
                mixed.send(usual(b"soon"))
                mixed.reply()
            for client in (fresh, used):
                assert client.ended()
            assert mixed.ended()
            assert time.monotonic() - start > 3
            # one that waits for its answer is not idle
            served.desk.release()
            assert busy.reply().way == "desk"
        while served.server.server_state.connections:
            time.sleep(0.01)


def test_a_client_that_goes_away_before_its_answer_is_no_trouble(served):
    with served.connect() as client:
        client.send(usual(b"hold") + usual(b"soon") + general(b"/models", method=b"GET"))
        while not served.desk.held:
            time.sleep(0.01)
    while served.server.server_state.connections:
        time.sleep(0.01)
    seen = len(served.echo.seen)
    served.desk.release()
    with served.connect() as client:
        client.send(usual(b"soon"))
        assert client.reply().way == "desk"
    assert len(served.echo.seen) == seen


def test_a_client_that_goes_away_while_the_application_answers_is_no_trouble(served):
    with served.connect() as client:
        client.send(general(b"/slow?delay=0.1", method=b"GET") + usual(b"soon"), usual(b"soon"))
    time.sleep(0.2)
    with served.connect() as client:
        client.send(usual(b"soon"))
        assert client.reply().way == "desk"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_at_the_end_what_was_asked_is_answered_and_idle_connections_are_closed_at_once(loop):
    with serving(loop=loop) as served:
        clients = [served.connect() for _ in range(5)]
        fresh, idle, held, answered, coming = clients
        try:
            idle.send(usual(b"soon"))
            assert idle.reply().status == 200
            held.send(usual(b"hold"))
            answered.send(general(b"/slow?delay=0.8", method=b"GET"))
            request = usual(b"soon, and slowly")
            coming.send(request[:-4])
            while not served.desk.held or len(served.server.server_state.connections) < 5:
                time.sleep(0.01)
            time.sleep(0.1)
            served.server.should_exit = True
            # while others still wait for their answers
            assert fresh.ended()
            assert idle.ended()
            coming.send(request[-4:])
            assert said(coming.reply())[2] == b"soon, and slowly"
            assert answered.reply("GET").status == 200
            served.desk.release()
            reply = held.reply()
            assert (reply.status, reply.way, reply.headers["connection"]) == (200, "desk", "close")
            for client in (held, answered, coming):
                assert client.ended()
        finally:
            for client in clients:
                client.__exit__()


# Clients that take more than they give


def test_who_does_not_take_its_answers_is_not_answered_on_and_on(served):
    taken = served.desk.taken
    with served.connect(buffer=16384) as client:
        sender = threading.Thread(target=client.send, args=(usual(b"big") * 2000,))
        sender.start()
        time.sleep(0.3)
        assert served.desk.taken - taken < 1200
        for _ in range(2000):
            assert len(client.reply().body) > 20_000
        sender.join()
        client.send(usual(b"soon"))
        assert client.reply().way == "desk"


def flood(client: Client, data: bytes) -> None:
    with suppress(OSError):  # it is ended before it is through
        client.send(data)


@pytest.mark.parametrize("first", [usual(b"hold"), general(b"/slow?delay=0.4", method=b"GET")])
def test_who_sends_on_and_on_without_waiting_is_not_read_from(served, first):
    count = 100_000
    with served.connect() as client:
        client.send(first)
        time.sleep(0.05)
        sender = threading.Thread(target=flood, args=(client, usual(b"now") * count))
        sender.start()
        time.sleep(0.2)
        largest = max(len(connection._bytes) for connection in served.server.server_state.connections)
        assert largest < 4 * MOST_BYTES + (1 << 18)
        served.desk.release()
        assert client.reply("GET" if b"GET" in first else "POST").status == 200
        for _ in range(1000):
            assert said(client.reply())[2] == b"now"
        client.socket.shutdown(socket.SHUT_RDWR)
        sender.join()


# The hook


def test_uvicorn_takes_the_protocol_once_there_is_a_desk(monkeypatch):
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    before = protocol._desk
    usual_name = uvicorn.config.HTTP_PROTOCOLS["auto"]
    try:
        protocol.install(None)
        assert protocol.middlewares() == []
        assert uvicorn.config.HTTP_PROTOCOLS["auto"] == usual_name
        protocol.install(EchoDesk())  # type: ignore[arg-type]
        assert protocol.middlewares() == []
        config = uvicorn.Config(Echo().app(), log_config=None)
        config.load()
        assert config.http_protocol_class is CoalescingProtocol
    finally:
        protocol.install(before)


def test_without_a_desk_every_request_is_for_the_application():
    with serving(keep_alive=1) as served:
        protocol.install(None)
        with served.connect() as client:
            client.send(usual(b"soon") + usual(b"next"))
            assert [client.reply().way for _ in range(2)] == ["application"] * 2
            assert client.ended()
        assert served.desk.connections == 0


def test_a_desk_knows_that_connections_come(served):
    before = served.desk.connections
    with served.connect() as client:
        client.send(usual(b"now"))
        client.reply()
    assert served.desk.connections == before + 1


# Any requests in any pieces

BODIES = st.builds(
    lambda kind, rest: kind + rest,
    st.sampled_from([b"now", b"soon", b"late", b"else", b""]),
    st.binary(max_size=40),
)
REQUESTS = st.one_of(
    st.builds(usual, BODIES),
    st.builds(lambda body: usual(body, b"X-Request-ID: mine", b"Connection: keep-alive"), BODIES),
    st.builds(
        lambda body, pieces: chunked(b"/json", *filter(None, (body[:pieces], body[pieces:]))),
        BODIES,
        st.integers(0, 9),
    ),
    st.builds(
        general, st.sampled_from([b"/models", b"/json?x=1", b"/x?delay=0.004", b"/x?pieces=5"]), BODIES
    ),
    st.just(usual(b"soon", b"Expect: 100-continue")),
)


def asked(serving: Serving, segments: Sequence[bytes], count: int) -> list[tuple[int, bytes]]:
    with serving.connect() as client:
        client.send(*segments, pause=0.001)
        return [(reply.status, reply.body) for reply in (client.reply() for _ in range(count))]


@settings(max_examples=80)
@given(st.lists(REQUESTS, min_size=1, max_size=6), st.data())
def test_any_requests_in_any_pieces_are_answered_as_one_by_one_without_the_protocol(both, requests, data):
    served, plain = both
    stream = b"".join(requests)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=8)))
    segments = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
    expected = [reply for request in requests for reply in asked(plain, [request], 1)]
    assert asked(served, segments, len(requests)) == expected
