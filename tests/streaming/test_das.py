"""CMS alone has DAS and its client: a script stands in for it, and prints what the client prints."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlaas_ray.core.errors import FileMissingError, FileUnreadableError, JobError
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.sources import find_sources

DATASET = "/TTTo2L2Nu_13TeV/RunIISummer20UL16NanoAODv9-106X_v17-v1/NANOAODSIM"
OTHER = DATASET.replace("TTTo2L2Nu", "TTToHadronic")
REDIRECTORS = ["root://one/", "root://two/"]

# query -> what the client prints, and its exit status
Answers = dict[str, tuple[str, int]]
Client = Callable[[Answers], Path]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Put a ``dasgoclient`` on the PATH that answers the queries given, and fails any other."""

    def write(answers: Answers) -> Path:
        lines = ["#!/bin/sh", '[ "$1" = -query ] && [ "$3" = -json ] || exit 64', 'case "$2" in']
        for query, (text, status) in answers.items():
            stream = 2 if status else 1
            lines.append(f"{shlex.quote(query)}) echo {shlex.quote(text)} >&{stream}; exit {status};;")
        program = tmp_path / "bin" / "dasgoclient"
        program.parent.mkdir()
        program.write_text("\n".join([*lines, "esac", "exit 65\n"]))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return program

    return write


def answer(what: str, *records: dict[str, Any]) -> tuple[str, int]:
    services = {
        "das": {"expire": 1766, "instance": "prod/global", "services": ["dbs3:files"]},
        "qhash": "9e1",
    }
    return json.dumps([{**services, what: [record]} for record in records]), 0


def file(name: str, **values: Any) -> dict[str, Any]:
    return {"name": f"/store/mc/{name}.root", "size": 1000, "nevents": 50, "adler32": "1a2b3c4d", **values}


NO_SITE = ("[]", 0)


def test_files_of_a_dataset_come_with_what_the_catalogue_knows(client: Client) -> None:
    client(
        {
            f"file dataset={DATASET}": answer(
                "file",
                file("b", adler32="NOTSET"),
                file("a", adler32="A2b3c4d", is_file_valid=1),
                file("bad", is_file_valid=0),
            ),
            f"site dataset={DATASET}": answer(
                "site", {"name": "T2_CH_CERN", "dataset_fraction": "100%"}, {"name": "T1_US_FNAL_Disk"}
            ),
        }
    )
    known = {"size": 1000, "entries": 50, "site": "T1_US_FNAL_Disk, T2_CH_CERN"}
    expected = [
        Source("root://one//store/mc/a.root", ("root://two//store/mc/a.root",), adler32="0a2b3c4d", **known),
        Source("root://one//store/mc/b.root", ("root://two//store/mc/b.root",), **known),
    ]
    assert find_sources(f"das:{DATASET}", redirectors=REDIRECTORS) == expected
    assert find_sources(DATASET, redirectors=REDIRECTORS) == expected


def test_what_several_services_say_of_a_file_is_put_together(client: Client) -> None:
    record = {"file": [{"name": "/store/mc/a.root", "size": 7, "adler32": None}, file("a", size=7)]}
    client(
        {f"file dataset={DATASET}": (json.dumps([record]), 0), f"site dataset={DATASET}": ("no such host", 1)}
    )
    [source] = find_sources(DATASET, redirectors=REDIRECTORS)
    assert (source.size, source.adler32, source.entries, source.site) == (7, "1a2b3c4d", 50, None)


def test_a_pattern_stands_for_every_dataset_that_matches(client: Client) -> None:
    pattern = DATASET.replace("TTTo2L2Nu", "TTTo*")
    client(
        {
            f"dataset dataset={pattern}": answer("dataset", {"name": OTHER}, {"name": DATASET}),
            f"file dataset={DATASET}": answer("file", file("a")),
            f"file dataset={OTHER}": answer("file", file("b")),
            f"site dataset={DATASET}": NO_SITE,
            f"site dataset={OTHER}": NO_SITE,
        }
    )
    names = [source.path for source in find_sources(pattern, redirectors=["root://one/"])]
    assert names == ["root://one//store/mc/a.root", "root://one//store/mc/b.root"]


def test_users_datasets_are_looked_up_in_their_own_catalogue(client: Client) -> None:
    mine = "/TTTo2L2Nu/marie-v1-0123abcd/USER"
    client(
        {
            f"file dataset={mine} instance=prod/phys03": answer("file", file("a")),
            f"site dataset={mine} instance=prod/phys03": NO_SITE,
        }
    )
    assert len(find_sources(mine, redirectors=REDIRECTORS)) == 1


@pytest.mark.parametrize(
    ("said", "status", "error", "message"),
    [
        ("[]", 0, FileMissingError, "DAS knows no valid file of /TTTo2L2Nu"),
        ("", 0, FileMissingError, "DAS knows no valid file of /TTTo2L2Nu"),
        ("dial tcp: lookup cmsweb.cern.ch: no such host", 1, FileUnreadableError, "no such host.*Try again"),
        ("unable to read x509 proxy", 1, FileUnreadableError, "voms-proxy-init"),
        ("2026/11/24 certificate has expired", 0, FileUnreadableError, "has expired.*voms-proxy-init"),
        ('[{"error": "DBS is down", "file": []}]', 0, FileUnreadableError, "DBS is down"),
        ('{"status": "fail", "reason": "no service"}', 0, FileUnreadableError, "said: no service"),
    ],
)
def test_a_catalogue_that_does_not_answer_is_told(
    client: Client, said: str, status: int, error: type[Exception], message: str
) -> None:
    client({f"file dataset={DATASET}": (said, status)})
    with pytest.raises(error, match=message):
        find_sources(DATASET, redirectors=REDIRECTORS)


def test_without_the_client_the_error_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileUnreadableError, match=rf"{DATASET}: there is no dasgoclient.*cvmfs.*text file"):
        find_sources(f"das:{DATASET}", redirectors=REDIRECTORS)


def test_a_dataset_without_redirectors_or_of_another_form_is_refused() -> None:
    with pytest.raises(JobError, match=r"reading.redirectors"):
        find_sources(f"das:{DATASET}")
    with pytest.raises(JobError, match="/primary/processed/TIER"):
        find_sources("das:/TTTo2L2Nu/NANOAODSIM", redirectors=REDIRECTORS)


def test_a_local_folder_of_a_datasets_form_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "DATA").mkdir()
    (tmp_path / "DATA/a.root").touch()
    [source] = find_sources(tmp_path / "DATA")
    assert source.path == str(tmp_path / "DATA/a.root")
