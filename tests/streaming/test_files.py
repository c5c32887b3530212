from __future__ import annotations

from pathlib import Path

import pytest

from mlaas_ray.core.errors import FileMissingError, JobError
from mlaas_ray.streaming import find_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.root", "a.root", "sub/c.root", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_path_is_made_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert find_files("a.root") == [str(folder / "a.root")]


def test_a_glob_is_sorted_and_a_list_keeps_its_order(folder: Path) -> None:
    assert find_files(f"{folder}/*.root") == [str(folder / "a.root"), str(folder / "b.root")]
    assert find_files([folder / "b.root", folder / "a.root"]) == [
        str(folder / "b.root"),
        str(folder / "a.root"),
    ]


def test_a_folder_gives_every_root_file_below_it(folder: Path) -> None:
    assert find_files(folder) == [str(folder / name) for name in ("a.root", "b.root", "sub/c.root")]


def test_a_text_file_names_one_file_a_line(folder: Path) -> None:
    listing = folder / "files.txt"
    listing.write_text(
        f"# samples\n{folder}/b.root\n\n{folder}/sub/*.root  # all\nroot://host//store/x.root\n"
    )
    assert find_files(listing) == [
        str(folder / "b.root"),
        str(folder / "sub/c.root"),
        "root://host//store/x.root",
    ]


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(folder: Path) -> None:
    (folder / "run[1].root").touch()
    assert find_files(folder / "run[1].root") == [str(folder / "run[1].root")]


@pytest.mark.parametrize("name", ["none.root", "none*.root", "empty"])
def test_what_matches_nothing_is_named(folder: Path, name: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(FileMissingError, match=name.replace("*", r"\*")):
        find_files(folder / name)


def test_a_file_named_twice_is_refused_since_its_events_would_count_twice(folder: Path) -> None:
    with pytest.raises(JobError, match="2 times"):
        find_files([folder / "a.root", f"{folder}/*.root"])
