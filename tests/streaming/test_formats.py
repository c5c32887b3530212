from __future__ import annotations

import pytest

from mlaas_ray.streaming.formats import compression_of, format_of


@pytest.mark.parametrize(
    ("path", "form", "compression"),
    [
        ("/data/a.root", "ROOT", None),
        ("https://host/a.parquet?token=x.csv", "Parquet", None),
        ("s3://bucket/a.csv.gz", "CSV", "gzip"),
        ("a.json.bz2", "JSON lines", "bz2"),
        ("a.jsonl.zst", "JSON lines", "zstd"),
        ("/data/what?.csv", "CSV", None),
        ("a.parquet.gz", None, "gzip"),
        ("/data/A.ROOT", "ROOT", None),
        ("A.CSV.GZ", "CSV", "gzip"),
        ("DAOD_PHYS.1._000001.pool.root.1", "ROOT", None),
        ("root://host//d/a#1?.root", "ROOT", None),
        ("s3://bucket/a#1.root?versionId=7", "ROOT", None),
        ("/data/folder.csv/a", None, None),
    ],
)
def test_the_suffix_tells_format_and_compression(
    path: str, form: str | None, compression: str | None
) -> None:
    assert (format_of(path), compression_of(path)) == (form, compression)
