from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import uproot

from mlaas_ray.core.inputs import Inputs
from mlaas_ray.streaming import FirstPass, ReadingSettings, Sample, first_pass
from mlaas_ray.streaming import survey as survey_module
from mlaas_ray.streaming.memo import Memo, open_memo
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.states import states

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLAAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were visited, through what sends the visits out."""
    seen: list[str] = []
    spread = survey_module._Tour._visited

    def noted(tour, jobs, description):
        seen.extend(Path(job.source.path).name for job in jobs)
        return spread(tour, jobs, description)

    monkeypatch.setattr(survey_module._Tour, "_visited", noted)
    return seen


def same(one: FirstPass, other: FirstPass) -> bool:
    return (
        one.features == other.features
        and one.files == other.files
        and (one.key, one.missing, one.sampled, one.entries)
        == (other.key, other.missing, other.sampled, other.entries)
        and [sketch.document() for sketch in one.sketches] == [s.document() for s in other.sketches]
    )


def test_what_was_learnt_is_not_looked_for_again(write_tree, cache, visits) -> None:
    one, other = (Sample(write_tree(f"{seed}.root", seed=seed), name=str(seed)) for seed in (1, 2))
    reading = ReadingSettings(missing="fill")
    first = first_pass([one, other], reading=reading)
    assert sorted(visits) == ["1.root", "2.root"]
    visits.clear()
    assert same(first_pass([one, other], reading=reading), first)
    assert visits == []
    # files known one by one make another total
    assert first_pass([other], reading=reading).entries == 100
    assert visits == []
    first_pass([one], Inputs(include=["MET_pt"]), reading=reading)
    assert visits == ["1.root"]


def test_a_file_that_was_replaced_is_looked_at_again(write_tree, cache, visits) -> None:
    paths = [write_tree(f"{seed}.root", seed=seed) for seed in range(3)]
    first_pass([Sample(paths)])
    visits.clear()
    before = paths[1].stat()
    write_tree("1.root", seed=9)
    os.utime(paths[1], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    again = first_pass([Sample(paths)])
    assert visits == ["1.root"]
    values = uproot.concatenate([f"{path}:Events" for path in paths], ["MET_pt"], library="np")["MET_pt"]
    seen = again.features.by_name["MET_pt"].statistics
    assert seen is not None
    assert seen.mean == pytest.approx(values.mean(dtype=float))


def test_a_better_copy_of_a_damaged_file_is_measured_anew(tmp_path, cache) -> None:
    """Its identifier and size are the same: the time of change tells."""
    path = tmp_path / "a.root"
    with uproot.recreate(path, compression=None) as file:
        file.mktree("Events", {"x": ">f4"}).extend({"x": np.arange(1000, dtype=">f4")})
    good = path.read_bytes()
    start = good.index(np.arange(1000, dtype=">f4").tobytes())
    path.write_bytes(good[:start] + np.array([1e20], ">f4").tobytes() + good[start + 4 :])
    assert largest(path) == pytest.approx(1e20)
    path.write_bytes(good)
    assert largest(path) == 999.0


def largest(path: Path) -> float | None:
    seen = first_pass([Sample(path)]).features.features[0].statistics
    return seen and seen.max


def test_a_copy_elsewhere_is_known_by_its_identifier(write_tree, cache, tmp_path) -> None:
    path = write_tree()
    first = first_pass([Sample(path)])
    copy = shutil.copy(path, tmp_path / "copy.root")
    second = first_pass([Sample(copy)])
    assert second.files[0].path == str(copy)
    assert second.features == first.features
    # two files of one identifier, as hard links and copies are
    both = first_pass([Sample([path, copy])], reading=ReadingSettings(allow_duplicates=True))
    assert both.entries == 200


def test_damaged_entries_count_as_not_there(write_tree, cache, visits) -> None:
    path = write_tree()
    first = first_pass([Sample(path)])
    for entry in cache.rglob("*.z"):
        entry.write_bytes(entry.read_bytes()[:10])
    visits.clear()
    assert same(first_pass([Sample(path)]), first)
    assert visits == ["a.root"]


def test_the_oldest_entries_are_deleted_when_there_are_too_many(tmp_path) -> None:
    memo = Memo(tmp_path / "memo")
    for number in range(4):
        memo.put("file", number, {"text": os.urandom(500).hex()})
        (newest,) = [path for path in (tmp_path / "memo").glob("*/*") if path.stat().st_mtime > 1e6]
        os.utime(newest, (number, number))
    memo.trim(1500)
    assert [number for number in range(4) if memo.get("file", number)] == [2, 3]


@pytest.mark.parametrize(
    ("setting", "folder"),
    [("off", None), ("/there", "/there/first_pass"), ("", "/xdg/mlaas_ray/first_pass")],
)
def test_the_cache_lies_where_the_user_says(setting, folder, monkeypatch) -> None:
    monkeypatch.setenv("MLAAS_CACHE", setting)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    memo = open_memo()
    assert (memo and str(memo.folder)) == folder


@pytest.mark.xrootd
def test_states_over_xrootd_are_told_at_once_and_by_the_next_place(
    write_tree, tmp_path: Path, xrootd_server: Callable[[Path], str]
) -> None:
    paths = [write_tree(f"data/{seed}.root", events=10 + seed, seed=seed) for seed in range(5)]
    url = xrootd_server(tmp_path / "data")
    sources = [Source(f"{url}/{path.name}") for path in paths]
    sources += [Source(f"{url}/none.root"), Source(f"{url}/none.root", (f"{url}/3.root",))]
    found = states(sources)
    assert [state and state.size for state in found] == [
        *(path.stat().st_size for path in paths),
        None,
        paths[3].stat().st_size,
    ]
    assert found[0] is not None
    assert found[0].changed == str(int(paths[0].stat().st_mtime))


@pytest.mark.xrootd
def test_files_on_a_server_are_remembered(
    write_tree, cache, visits, tmp_path: Path, xrootd_server: Callable[[Path], str]
) -> None:
    for seed in range(20):
        write_tree(f"data/{seed}.root", events=20, seed=seed)
    url = xrootd_server(tmp_path / "data")
    sample = Sample(f"{url}/*.root")
    first = first_pass([sample])
    assert (len(visits), first.entries) == (20, 400)
    assert same(first_pass([sample]), first)
    assert len(visits) == 20
    # longer, so that it shows within the second that the server tells
    write_tree("data/7.root", events=30, seed=7)
    assert first_pass([sample]).entries == 410
    assert visits[20:] == ["7.root"]


def test_states_over_http_are_told_with_the_time_of_change(write_tree, tmp_path: Path) -> None:
    path = write_tree("data/a.root")
    handler = partial(QuietHandler, directory=str(tmp_path / "data"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        before, lost = states([Source(f"{url}/a.root"), Source(f"{url}/none.root")])
        os.utime(path, (1, 1))
        after, _ = states([Source(f"{url}/a.root"), Source(f"{url}/none.root")])
        server.shutdown()
        thread.join()
    assert lost is None
    assert before is not None
    assert after is not None
    assert before.size == after.size == path.stat().st_size
    assert before.changed != after.changed


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass
