"""The plain text of a file: mapped where it lies, or unpacked into a temporary file first."""

from __future__ import annotations

import io
import mmap
import tempfile
from typing import Any

import pyarrow as pa

from mlaas_ray.core.errors import FileUnreadableError
from mlaas_ray.streaming.formats import compression_of
from mlaas_ray.streaming.transport import ByteSource

# Read at once (bytes).
STEP = 8 << 20


def plain_text(file: ByteSource) -> memoryview:
    """Return all of a text, mapped into memory, not read into it.

    A local file that is not compressed is mapped. Any other is read once, from its beginning to its end, into
    a temporary file that goes with the memoryview: compressed text can be read in no other order, and the
    rows of a remote text can only be found by reading it.

    Raises:
        FileUnreadableError: When it cannot be read or unpacked, or the folder of temporary files is full.
    """
    compression = compression_of(file.path)
    if file.local and compression is None:
        return file.read([(0, file.size)])[0]
    stream: Any = _Stream(file)
    try:
        if compression:
            stream = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), compression)
        with tempfile.TemporaryFile(prefix="mlaas-") as copy:
            while step := stream.read(STEP):
                copy.write(step)
            copy.flush()
            size = copy.tell()
            return memoryview(mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
    except FileUnreadableError:
        raise
    except OSError as error:
        raise FileUnreadableError(
            f"cannot unpack {file.path} into {tempfile.gettempdir()}: {error}",
            "Copy the file again if it is damaged; name a folder with room by TMPDIR if the disk is full",
        ) from error


class _Stream(io.RawIOBase):
    """A file read from its beginning to its end, in steps long enough for a distant server."""

    def __init__(self, file: ByteSource) -> None:
        self._file = file
        self._at = 0
        self._step = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._step and self._at < self._file.size:
            stop = min(self._at + STEP, self._file.size)
            [self._step] = self._file.read([(self._at, stop)])
            self._at = stop
        size = len(self._step) if size < 0 else size
        part, self._step = self._step[:size], self._step[size:]
        return bytes(part)
