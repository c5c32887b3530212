"""Formats of input files, told by their names."""

from __future__ import annotations

import posixpath
from typing import Literal
from urllib.parse import urlsplit

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
    location = locate(path)
    # What follows the question mark of a URL, such as a token, is no part of the name.
    return posixpath.splitext(location.path if location.is_local else urlsplit(location.path).path)
