"""Codecs: ROOT's compressed blocks, decompressed to the place where they belong.

The format is that of ROOT's R__unzip (core/zip/src/RZip.cxx): a record is blocks of at most 16 MB,
each with a header of nine bytes: two letters for the codec, its version, and the compressed and uncompressed
sizes, three bytes each, least significant first.
"""

from __future__ import annotations

from typing import Any

import cramjam
import numpy as np
import numpy.typing as npt
import xxhash
from isal import isal_zlib

Bytes = npt.NDArray[np.uint8]

_ZLIB_ERROR: Any = isal_zlib.error
_DAMAGE = (_ZLIB_ERROR, cramjam.DecompressionError, ValueError)

_HEADER = 9
_CHECKSUM = 8


class BlockError(ValueError):
    """Bytes of a basket that contradict themselves."""


class CodecError(BlockError):
    """Bytes that cannot be decompressed, or whose checksum is another."""


def inflate(data: memoryview, target: Bytes) -> None:
    """Decompress a record.

    Python's lock is not held meanwhile. zlib, lzma and lz4 tell damage by checksums; zstd has none here.

    Args:
        data: All blocks of the record; when it is as long as ``target``, it is not compressed.
        target: ``(bytes,)`` uint8 to fill, all of it.

    Raises:
        BlockError: When the sizes do not fit each other.
        CodecError: When a codec says so.
    """
    due, filled, position = len(target), 0, 0
    if len(data) == due:
        target[:] = np.frombuffer(data, np.uint8)
        return
    while filled < due:
        codec = bytes(data[position : position + 2])
        head = data[position + 3 : position + _HEADER]
        if len(head) < _HEADER - 3:
            raise BlockError(f"the blocks end after {filled:,} of {due:,} bytes")
        size, made = int.from_bytes(head[:3], "little"), int.from_bytes(head[3:], "little")
        start, position = position + _HEADER, position + _HEADER + size
        if position > len(data) or filled + made > due or made == 0:
            raise BlockError("the sizes of the compressed blocks are wrong")
        unpack = _CODECS.get(codec)
        if unpack is None:
            raise BlockError(f"the codec {codec!r} is unknown here")
        try:
            unpack(data[start:position], target[filled : filled + made])
        except _DAMAGE as error:
            raise CodecError(f"{_NAMES[codec]} cannot decompress it: {error}") from None
        filled += made
    if position != len(data):
        raise BlockError("there are more compressed bytes than blocks")


def _zlib(data: memoryview, target: Any) -> None:
    # Not all at once: damaged bytes could go on for as long as a thousand times their length.
    stream = isal_zlib.decompressobj()
    made = stream.decompress(data, len(target))
    if not stream.eof:  # the checksum is read after the last byte
        made += stream.decompress(stream.unconsumed_tail, 1)
    if not stream.eof:
        raise CodecError("it does not end where it should")
    _fill(target, made)


def _lz4(data: memoryview, target: Any) -> None:
    block = data[_CHECKSUM:]
    if xxhash.xxh64_intdigest(block) != int.from_bytes(data[:_CHECKSUM]):
        raise CodecError("the checksum is wrong")
    _complete(cramjam.lz4.decompress_block_into(block, target, output_len=len(target)), target)


def _zstd(data: memoryview, target: Any) -> None:
    _complete(cramjam.zstd.decompress_into(data, target), target)


def _lzma(data: memoryview, target: Any) -> None:
    _complete(cramjam.xz.decompress_into(data, target), target)


def _complete(made: int, target: Bytes) -> None:
    if made != len(target):
        raise CodecError(f"it makes {made:,} bytes of {len(target):,}")


def _fill(target: Bytes, made: Any) -> None:
    _complete(len(made), target)
    target[:] = np.frombuffer(made, np.uint8)


_CODECS = {b"ZL": _zlib, b"L4": _lz4, b"ZS": _zstd, b"XZ": _lzma}
_NAMES = {b"ZL": "zlib", b"L4": "lz4", b"ZS": "zstd", b"XZ": "lzma"}
