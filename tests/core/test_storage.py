"""Folders that cannot be written to: one line that names them, and nothing left behind."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mlaas_ray.core.errors import FileMissingError, StorageError
from mlaas_ray.core.storage import check_room, check_writable, refused, writing


def test_a_trial_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "runs" / "toy-1", 1000)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(small_disk: Path) -> None:
    check_writable(small_disk / "runs", 1_000_000)
    with pytest.raises(StorageError, match=rf"no room in {small_disk}/runs: .* MB are free, and 1,000.0 MB"):
        check_room(small_disk / "runs", 1_000_000_000)
    full = rf"cannot write to {small_disk}: No space left on device\. Make room there\."
    with pytest.raises(StorageError, match=full), writing(small_disk):
        (small_disk / "filler").write_bytes(bytes(100_000_000))
    with pytest.raises(StorageError, match=full):
        check_writable(small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_read_only_folder_is_named(read_only: Path) -> None:
    with pytest.raises(StorageError, match=rf"^cannot write to {read_only}: Read-only file system\. Make it"):
        check_writable(read_only / "runs")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match=rf"^cannot write to {tmp_path}/runs: Not a directory\."):
        check_writable(tmp_path / "runs" / "toy-1")


def test_errors_of_ours_stay_as_they_are() -> None:
    with pytest.raises(FileMissingError), writing("/runs"):
        raise FileMissingError("no such file")


def test_what_has_no_text_of_the_system_is_told_on_one_line() -> None:
    error = refused("s3://bucket/runs", RuntimeError("Unable to locate\n  credentials."))
    assert str(error).startswith("cannot write to s3://bucket/runs: Unable to locate credentials. Check the")
    assert str(refused("/runs", OSError(errno.EIO, "Input/output error"))).startswith(
        "cannot write to /runs: [Errno 5] Input/output error."
    )
