"""A web server on loopback that serves a folder, in parts too, and can be told to misbehave."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class WebServer(ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        url: ``http://127.0.0.1:PORT``; add an absolute path.
        requests: What was asked for so far: path and range.
        failures: How many of the next requests are answered with status 503.
        whole: Whether ranges are ignored.
        slow: By path, seconds before an answer.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str]] = []
        self.failures = 0
        self.whole = False
        self.slow: dict[str, float] = {}


@contextlib.contextmanager
def running_webserver(folder: Path) -> Iterator[WebServer]:
    """Serve a folder while the block lasts."""
    server = WebServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.requests.append((self.path, asked))
        time.sleep(self.server.slow.get(self.path, 0.0))
        file = self.server.folder / self.path.lstrip("/")
        if self.server.failures:
            self.server.failures -= 1
            self._answer(503)
        elif not file.is_file():
            self._answer(404)
        else:
            self._send(file.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", asked))

    def _send(self, content: bytes, asked: re.Match[str] | None) -> None:
        if asked is None or self.server.whole:
            self._answer(200, content)
            return
        first, last = int(asked[1]), int(asked[2])
        if first >= len(content):
            self._answer(416, content_range=f"bytes */{len(content)}")
            return
        part = content[first : last + 1]
        self._answer(206, part, f"bytes {first}-{first + len(part) - 1}/{len(content)}")

    def _answer(self, status: int, body: bytes = b"", content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
