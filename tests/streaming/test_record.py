from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlaas_ray.core.errors import DataError
from mlaas_ray.streaming.record import FATES, PieceRecord, Record, RecordedFile
from mlaas_ray.streaming.transport import Absence

FILES = [RecordedFile("a.root", "signal", 100), RecordedFile("b.root", "background", 50)]

pytestmark = pytest.mark.usefixtures("ray_local")


def record(max_skipped: int = 0) -> Record:
    made = Record(FILES, max_skipped)
    made.plan("train", 0, {0: 100, 1: 50})
    return made


def test_the_sums_close_also_when_the_run_ends_early(tmp_path: Path) -> None:
    made = record(1)
    made.note("train", 0, 0, [PieceRecord(0, 60, read=40, cut=15, elsewhere=5, bytes=1_000, seconds=0.5)])
    made.note("train", 0, 1, [PieceRecord(1, 50, skipped=50, reason="it is cut short")])
    made.write(tmp_path / "run" / "record.json")
    written = json.loads((tmp_path / "run" / "record.json").read_text())
    (reading,) = written["readings"]
    for row in (*reading["files"], reading["total"]):
        assert row["planned"] == sum(row[fate] for fate in FATES) + row["not_reached"]
    assert reading["total"] == written["total"]
    assert written["total"]["planned"] == 150
    assert written["total"]["not_reached"] == 40
    assert reading["files"][1]["reasons"] == ["it is cut short"]
    assert [file["path"] for file in written["skipped_files"]] == ["b.root"]


def test_a_block_that_is_read_again_counts_once() -> None:
    made = record()
    for _ in range(2):
        made.note("train", 0, 0, [PieceRecord(0, 100, read=100, counts={"objects_outside": 7})])
    total = made.document()["total"]
    assert (total["read"], total["objects_outside"]) == (100, 7)


def test_more_skipped_files_than_allowed_end_the_run() -> None:
    made = record(1)
    made.note("train", 0, 0, [PieceRecord(0, 100, skipped=100, reason="no such file", lost=True)])
    assert made.lost() == {0: "no such file"}
    with pytest.raises(DataError, match=r"2 of 2 files could not be read, 1 may be skipped.*: timed out"):
        made.note("train", 0, 1, [PieceRecord(1, 50, skipped=50, reason="timed out")])


def test_files_the_first_pass_could_not_read_are_told_and_count() -> None:
    made = Record([*FILES, RecordedFile("c.root", "signal", 0, "it is not a ROOT file")], 1)
    assert made.document()["skipped_files"] == [
        {"path": "c.root", "dataset": "signal", "entries": 0, "reason": "it is not a ROOT file"}
    ]
    with pytest.raises(DataError):
        made.note("train", 0, 0, [PieceRecord(0, 100, skipped=100, reason="cut short")])


def test_a_reading_that_never_began_is_not_told() -> None:
    made = record()
    made.plan("validation", 0, {0: 100, 1: 50})
    made.note("train", 0, 0, [PieceRecord(0, 100, read=100)])
    assert [reading["reading"] for reading in made.document()["readings"]] == ["train"]


def test_a_server_that_many_readers_wait_for_is_told_once_each_time_it_is_away() -> None:
    made = record()
    for seconds in (1.0, 2.0, 3.0):
        made.absent(Absence("one:1094", "it does not answer", seconds, 180))
    for seconds in (4.0, 4.2):
        made.absent(Absence("one:1094", "", seconds, 180, over=True))
    made.absent(Absence("one:1094", "it fails", 1.0, 180))
    lines = [
        "one:1094: it does not answer; waiting for it, 180 s at most",
        "one:1094 is back after 4 s",
        "one:1094: it fails; waiting for it, 180 s at most",
    ]
    assert made.lines(0) == lines
    assert made.lines(2) == lines[2:]
    again = {"server": "one:1094", "patience": 180}
    assert made.document()["absences"] == [
        {**again, "fault": "it does not answer", "seconds": 4.0, "over": True, "tries": 3},
        {**again, "fault": "it fails", "seconds": 1.0, "over": False, "tries": 1},
    ]
