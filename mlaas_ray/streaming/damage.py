"""Errors of reading: whatever goes wrong with a file is told by file, tree and branch."""

from __future__ import annotations

import lzma
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import cramjam
import uproot

from mlaas_ray.core.errors import FileMissingError, FileUnreadableError, MlaasError
from mlaas_ray.core.location import Protocol, locate
from mlaas_ray.streaming.xrootd import code, why

REMEDY = "The file may be damaged: copy it again, or leave out the file or the branch"

# What uproot and its decompressors raise on bytes that are not what they should be.
DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
    EOFError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    cramjam.DecompressionError,
    uproot.deserialization.DeserializationError,
    uproot.interpretation.identify.UnknownInterpretation,
)


@contextmanager
def naming(path: str, tree: str | None = None) -> Iterator[None]:
    """Turn whatever reading raises into an error that names the file (and tree).

    Raises:
        FileMissingError: When the file is not there.
        FileUnreadableError: When it is there, but cannot be read.
    """
    try:
        yield
    except MlaasError:
        raise
    except DAMAGE as error:
        where = f"{path}, tree {tree!r}" if tree else path
        if isinstance(error, FileNotFoundError) or code(error) == "3011":
            raise missing(path) from error
        reason = reason_of(error, path)
        remedy = "It may be cut short or damaged: copy it again, or leave it out"
        if "not a ROOT file" in reason:
            reason, remedy = "it is not a ROOT file", "Give ROOT files"
        elif locate(path).protocol is Protocol.XROOTD and code(error) is None:
            remedy = "Check that the server answers and that your credentials are valid"
        raise FileUnreadableError(f"cannot read {where}: {reason}", remedy) from error


def missing(path: str) -> FileMissingError:
    """Return the error for a file that is not there."""
    location = locate(path)
    if location.is_local and os.path.islink(location.path):
        target = os.readlink(location.path)
        return FileMissingError(
            f"no such file: {path} is a link to {target}, which is not there", "Mend the link"
        )
    return FileMissingError(f"no such file: {path}", "Check the path or URL")


def reason_of(error: BaseException, path: str) -> str:
    """Say on one line what an error means; the file is named elsewhere."""
    return why(error).removesuffix(f" in file {path}").removesuffix(f" for file path {path}")


def check_header(path: str, head: bytes | memoryview, size: int) -> None:
    """Refuse a file that is not ROOT, or shorter than its header says (ROOT class TFile, fEND).

    Args:
        path: Its path or URL, for messages.
        head: Its first 20 bytes, or as many as it has.
        size: Its bytes.

    Raises:
        FileUnreadableError: When it is not ROOT, or cut short.
    """
    head = bytes(head)
    if not head.startswith(b"root"):
        raise FileUnreadableError(f"cannot read {path}: it is not a ROOT file", "Give ROOT files")
    large = int.from_bytes(head[4:8], signed=True) >= 1_000_000
    refuse_short(path, size, int.from_bytes(head[12 : 20 if large else 16]))


def refuse_short(path: str, size: int, due: int) -> None:
    """Refuse a file of fewer bytes than it says of itself.

    Raises:
        FileUnreadableError: When ``size`` is less than ``due``.
    """
    if size < due:
        raise FileUnreadableError(
            f"cannot read {path}: it is cut short: {size:,} bytes of {due:,}",
            "Copy it again, or leave it out",
        )
