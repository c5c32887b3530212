"""One open file of an HTTP or S3 server, through fsspec."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from mlaas_ray.core.location import Protocol, locate
from mlaas_ray.streaming.faults import Fault, Kind
from mlaas_ray.streaming.ranges import Range, gather, plan

# Seconds until a server that does not answer, or stops in the middle, is given up.
CONNECT_SECONDS = 10
READ_SECONDS = 25
# HTTP has one range a request, so neighbours are worth more bytes read for nothing than elsewhere.
GAP = 64 << 10
REQUEST_BYTES = 8 << 20
IN_FLIGHT = 8

_KINDS: dict[int, Kind] = {401: "denied", 403: "denied", 404: "missing", 410: "missing"}
_TRANSIENT = {408, 425, 429}


class WebFile:
    """One file of an HTTP or S3 server; several threads may read.

    Args:
        url: ``https://host/path`` or ``s3://bucket/key``. An S3 service other than Amazon's is named by
            ``AWS_ENDPOINT_URL``, credentials by the usual ``AWS_…`` variables or files.

    Attributes:
        url: As given, of WebDAV as ``https://``.
        size: Bytes.
        server: Who answers.

    Raises:
        Fault: When it cannot be opened.
    """

    def __init__(self, url: str) -> None:
        location = locate(url)
        self.url = url = location.path
        s3 = location.protocol is Protocol.S3
        self.server = os.environ.get("AWS_ENDPOINT_URL", "s3") if s3 else urlsplit(url).netloc
        with _faults():
            self._system = _s3(os.environ.get("AWS_ENDPOINT_URL")) if s3 else _http()
            if s3:  # fsspec remembers listings, in which a file that was written since would be missing
                self.size = int(self._system.info(url, refresh=True)["size"])
            else:
                self.size = _http_size(self._system, url)

    def read(self, ranges: Sequence[Range]) -> tuple[list[memoryview], int]:
        """Read ranges of bytes.

        Args:
            ranges: First byte and end of each, within the file.

        Returns:
            The bytes of each range, and the number of requests it took.

        Raises:
            Fault: When one of the requests failed.
        """
        parts = plan(ranges, largest=REQUEST_BYTES, lone=REQUEST_BYTES, gap=GAP)
        starts, stops = [start for start, _ in parts], [stop for _, stop in parts]
        with _faults():
            answers = self._system.cat_ranges(
                [self.url] * len(parts), starts, stops, on_error="raise", batch_size=IN_FLIGHT
            )
        for (start, stop), data in zip(parts, answers, strict=True):
            if len(data) != stop - start:
                raise Fault("failing", f"{len(data)} bytes instead of {stop - start}")
        got = {part: memoryview(data) for part, data in zip(parts, answers, strict=True)}
        return gather(ranges, got), len(parts)

    def close(self) -> None:
        """Nothing to close: connections belong to the process."""


@functools.cache
def _http() -> Any:
    import aiohttp
    import fsspec

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return fsspec.filesystem("http", client_kwargs={"timeout": timeout, "trust_env": True})


@functools.cache
def _s3(endpoint: str | None) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(
            "s3",
            endpoint_url=endpoint,
            config_kwargs={
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": READ_SECONDS,
                "retries": {"max_attempts": 1},  # ours are counted
            },
        )
    except ImportError as error:
        raise Fault("wrong", "s3:// wants s3fs: pip install 'mlaas-ray[s3]'") from error


def _http_size(system: Any, url: str) -> int:
    """Ask for the first byte: the answer tells the size, and whether the server serves ranges at all."""
    from fsspec.asyn import sync

    async def first() -> tuple[int, str]:
        session = await system.set_session()
        headers = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
        async with session.get(system.encode_url(url), headers=headers) as answer:
            if answer.status != 416:  # which an empty file's server says
                answer.raise_for_status()
            return answer.status, answer.headers.get("Content-Range", "")

    status, content_range = sync(system.loop, first)
    total = content_range.rpartition("/")[2]
    if status == 200 or not total.isdigit():
        raise Fault("wrong", "its server does not serve parts of files: copy it, and read the copy")
    return int(total)


@contextmanager
def _faults() -> Iterator[None]:
    """Turn what fsspec and the libraries under it raise into a fault."""
    import aiohttp

    try:
        yield
    except Fault:
        raise
    except FileNotFoundError as error:
        raise Fault("missing", str(error)) from error
    except PermissionError as error:
        raise Fault("denied", str(error)) from error
    except aiohttp.ClientResponseError as error:
        transient = error.status >= 500 or error.status in _TRANSIENT
        kind = _KINDS.get(error.status, "failing" if transient else "wrong")
        raise Fault(kind, f"HTTP status {error.status} {error.message}") from error
    except (aiohttp.ClientConnectorError, TimeoutError) as error:
        raise Fault("refused", str(error) or "time-out") from error
    except (aiohttp.ClientError, OSError) as error:
        raise Fault("failing", str(error)) from error
    except Exception as error:
        # botocore's errors share no ancestor with anything we could name without importing it
        if not type(error).__module__.startswith("botocore"):
            raise
        kind = "denied" if "Credential" in type(error).__name__ else "refused"
        raise Fault(kind, str(error)) from error
