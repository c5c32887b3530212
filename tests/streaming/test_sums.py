from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from mlaas_ray.core.errors import BranchMissingError, DataError, TreeMissingError
from mlaas_ray.streaming import ReadingSettings, sum_over, sums
from mlaas_ray.streaming.source import Source

pytestmark = pytest.mark.usefixtures("ray_local")

SKIP = ReadingSettings.of({"bad_files": {"policy": "skip", "max_fraction": 1.0}}, "test")


def write_runs(path: Path, values: Any, name: str = "genEventSumw") -> Path:
    """Write a file as a simulation's: a tree of events, and one with an entry for each run."""
    values = ak.Array(values)
    with uproot.recreate(path) as file:
        file.mktree("Events", {"x": np.float64}).extend({"x": np.arange(10.0)})
        kind = values.type if values.ndim > 1 else np.asarray(values).dtype
        file.mktree("Runs", {name: kind}).extend({name: values})
    return path


def sources_of(*paths: Path) -> list[Source]:
    return [Source(str(path)) for path in paths]


def test_all_entries_of_all_files_are_added_up(tmp_path: Path) -> None:
    # more files than a task takes
    paths = [write_runs(tmp_path / f"{n}.root", [float(n), -0.5, 2.25]) for n in range(18)]
    assert sum_over(sources_of(*paths), "Runs", "genEventSumw") == sum(range(18)) + 18 * 1.75


def test_float32_is_added_in_double_precision(tmp_path: Path) -> None:
    # in float32 each 1 would be lost beside 2**25
    path = write_runs(tmp_path / "a.root", np.array([2.0**25, *[1.0] * 100], np.float32))
    assert sum_over(sources_of(path), "Runs", "genEventSumw") == 2**25 + 100


def test_whole_numbers_are_added_too(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "a.root", np.array([2**40, 7], np.int64), "genEventCount")
    assert sum_over(sources_of(path), "Runs", "genEventCount") == 2**40 + 7


@pytest.mark.parametrize(
    ("tree", "branch", "error", "said"),
    [
        (
            "Runs",
            "genEventSumW",
            BranchMissingError,
            "no branch 'genEventSumW' in .*a.root, tree 'Runs'. Did you mean 'genEventSumw'",
        ),
        ("Run", "genEventSumw", TreeMissingError, "a.root holds no tree 'Run'. Its trees: Events, Runs"),
    ],
)
def test_a_tree_or_branch_that_is_not_there_is_named(
    tmp_path: Path, tree: str, branch: str, error: type[Exception], said: str
) -> None:
    path = write_runs(tmp_path / "a.root", [1.0])
    with pytest.raises(error, match=said):
        sum_over(sources_of(path), tree, branch)


@pytest.mark.parametrize("values", [np.ones((2, 3)), ak.Array([[1.0], [2.0, 3.0]])], ids=["fixed", "jagged"])
def test_several_numbers_an_entry_are_refused(tmp_path: Path, values: Any) -> None:
    path = tmp_path / "a.root"
    with uproot.recreate(path) as file:
        file.mktree("Runs", {"w": getattr(values, "type", None) or (values.dtype, (3,))}).extend(
            {"w": values}
        )
    with pytest.raises(DataError, match=r"'w' in .*a\.root, tree 'Runs', has several numbers an entry"):
        sum_over(sources_of(path), "Runs", "w")


def test_a_file_that_cannot_be_read_is_named_or_left_out(tmp_path: Path) -> None:
    good, bad = write_runs(tmp_path / "good.root", [3.0, 4.0]), tmp_path / "bad.root"
    bad.write_bytes(b"root, but not really" * 20)
    with pytest.raises(DataError, match=r"bad\.root"):
        sum_over(sources_of(good, bad), "Runs", "genEventSumw")
    assert sum_over(sources_of(good, bad), "Runs", "genEventSumw", reading=SKIP) == 7


def test_what_is_known_of_an_unchanged_file_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLAAS_CACHE", str(tmp_path / "cache"))
    read: list[str] = []
    spread = sums.spread

    def noted(function: Any, calls: Any, **options: Any) -> Any:
        read.extend(Path(source.path).stem for call in calls for source in call[0])
        return spread(function, calls, **options)

    monkeypatch.setattr(sums, "spread", noted)
    paths = [write_runs(tmp_path / f"{n}.root", [float(n), 1.0]) for n in range(3)]
    assert sum_over(sources_of(*paths), "Runs", "genEventSumw") == 6
    assert read == ["0", "1", "2"]
    assert sum_over(sources_of(*paths), "Runs", "genEventSumw") == 6
    assert read == ["0", "1", "2"]
    # another dataset of some of these files, and one that was replaced
    write_runs(paths[1], [10.0, 1.0])
    os.utime(paths[1], ns=(1, 1))
    assert sum_over(sources_of(*paths[1:]), "Runs", "genEventSumw") == 11 + 3
    assert read == ["0", "1", "2", "1"]
    with pytest.raises(BranchMissingError):
        sum_over(sources_of(*paths), "Runs", "genEventCount")
