from __future__ import annotations

from pathlib import Path

import pytest

from mlaas_ray.core.errors import JobError
from mlaas_ray.core.location import Location, Protocol, at_redirector, locate


@pytest.mark.parametrize(
    ("text", "protocol", "path"),
    [
        ("data/a.root", Protocol.LOCAL, "data/a.root"),
        ("  data/a.root\n", Protocol.LOCAL, "data/a.root"),
        ("/data/with space.root", Protocol.LOCAL, "/data/with space.root"),
        ("file:///data/with%20space.root", Protocol.LOCAL, "/data/with space.root"),
        ("root://host:1094//store/a.root", Protocol.XROOTD, "root://host:1094//store/a.root"),
        ("roots://host//a.root", Protocol.XROOTD, "roots://host//a.root"),
        ("ROOT://host//a.root", Protocol.XROOTD, "ROOT://host//a.root"),
        ("http://host/a.root", Protocol.HTTP, "http://host/a.root"),
        ("https://host/a.root?x=1", Protocol.HTTP, "https://host/a.root?x=1"),
        ("s3://bucket/a.root", Protocol.S3, "s3://bucket/a.root"),
        ("davs://host:8443/a.root", Protocol.HTTP, "https://host:8443/a.root"),
        ("dav://host/a.root", Protocol.HTTP, "http://host/a.root"),
        ("file:///data/a#1.root", Protocol.LOCAL, "/data/a#1.root"),
        ("file://localhost/data/a.root", Protocol.LOCAL, "/data/a.root"),
    ],
)
def test_a_path_and_a_url_are_told_apart(text: str, protocol: Protocol, path: str) -> None:
    location = locate(text)
    assert location == Location(protocol, path)
    assert str(location) == path
    assert location.is_local == (protocol is Protocol.LOCAL)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("/data/a#1?.root", ("", "/data/a#1?.root", "")),
        ("root://host:1094//d/a#1.root?authz=t", ("root://host:1094", "//d/a#1.root", "?authz=t")),
        ("root://host//d/run?.root", ("root://host", "//d/run?.root", "")),
        ("https://host/a.root?v#top", ("https://host", "/a.root", "?v#top")),
        ("https://host/a.root#top", ("https://host", "/a.root", "#top")),
        ("root://host//d/a?.root?authz=t", ("root://host", "//d/a?.root", "?authz=t")),
        ("s3://bucket/a?#1.root", ("s3://bucket", "/a?#1.root", "")),
        ("s3://bucket/a.root?versionId=7", ("s3://bucket", "/a.root", "?versionId=7")),
    ],
)
def test_each_protocol_ends_a_name_where_it_does(text: str, parts: tuple[str, str, str]) -> None:
    assert locate(text).parts == parts


def test_a_home_directory_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/marie")
    assert locate("~/a.root").path == "/home/marie/a.root"
    assert locate(Path("~/a.root")).path == "/home/marie/a.root"


@pytest.mark.parametrize(
    "text", ["data/*.root", "data/run?.root", "data/run[12].root", "root://[::1]//d/*.root"]
)
def test_glob_characters_make_a_pattern(text: str) -> None:
    assert locate(text).is_pattern


@pytest.mark.parametrize(
    "text",
    [
        "data/a.root",
        "https://host/a.root?version=*",
        "root://host//a.root?authz=token",
        "root://[::1]:1094//a.root",
    ],
)
def test_plain_paths_queries_and_ipv6_hosts_are_no_patterns(text: str) -> None:
    assert not locate(text).is_pattern


def test_an_unknown_protocol_is_refused_with_the_nearest() -> None:
    with pytest.raises(JobError, match=r"unknown protocol 'rooot'.*Did you mean 'root'"):
        locate("rooot://host//a.root")


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_name_is_refused(text: str) -> None:
    with pytest.raises(JobError, match="empty file name"):
        locate(text)


@pytest.mark.parametrize(
    ("redirector", "url"),
    [
        ("root://cms-xrd-global.cern.ch/", "root://cms-xrd-global.cern.ch//store/a.root"),
        ("root://host:1094", "root://host:1094//store/a.root"),
        ("host:1094", "root://host:1094//store/a.root"),
        ("roots://eos//eos/cms/", "roots://eos//eos/cms/store/a.root"),
        ("https://host:1094/", "https://host:1094/store/a.root"),
    ],
)
def test_a_logical_name_is_found_below_a_redirector(redirector: str, url: str) -> None:
    assert at_redirector(redirector, "/store/a.root") == url


def test_a_bucket_is_no_redirector() -> None:
    with pytest.raises(JobError, match="'s3://bucket' is no redirector"):
        at_redirector("s3://bucket", "/store/a.root")
