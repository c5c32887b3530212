"""Formats of input files, told by their names."""

from __future__ import annotations

import posixpath
import re
from typing import Literal

from mlaas_ray.core.location import locate

Format = Literal["ROOT", "Parquet", "CSV", "JSON lines"]
Compression = Literal["gzip", "bz2", "zstd"]

_FORMATS: dict[str, Format] = {
    ".root": "ROOT",
    ".parquet": "Parquet",
    ".pq": "Parquet",
    ".csv": "CSV",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON lines",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
# ATLAS numbers the attempts at a file: DAOD_PHYS.1234._000001.pool.root.1
_ATTEMPT = re.compile(r"(?<=\.root)\.\d+$")


def format_of(path: str) -> Format | None:
    """Return a file's format by its suffix, or None for one that is not known, which is taken for ROOT."""
    stem, suffix = _split(path)
    if suffix in _COMPRESSIONS:  # of text only: the others compress by themselves
        form = _FORMATS.get(posixpath.splitext(stem)[1])
        return form if form in ("CSV", "JSON lines") else None
    return _FORMATS.get(suffix)


def compression_of(path: str) -> Compression | None:
    """Return how the whole of a text file is compressed, by its suffix."""
    return _COMPRESSIONS.get(_split(path)[1])


def _split(path: str) -> tuple[str, str]:
    return posixpath.splitext(_ATTEMPT.sub("", locate(path).parts.path.lower()))
