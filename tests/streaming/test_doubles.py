from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import uproot
from typer.testing import CliRunner

from mlaas_ray.cli.main import app
from mlaas_ray.core.errors import JobError
from mlaas_ray.streaming import ReadingSettings, Sample, first_pass, look_up
from mlaas_ray.streaming.doubles import named, refuse_doubles
from mlaas_ray.streaming.events import open_events
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.sources import find_sources

TWICE = ReadingSettings(allow_duplicates=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.root").write_bytes(b"root")
    return tmp_path


@pytest.mark.parametrize(
    "other", ["link.root", "hard.root", "data/../data/a.root", "linked/a.root", "file://"]
)
def test_a_local_file_is_one_by_whichever_path(folder: Path, other: str) -> None:
    (folder / "link.root").symlink_to(folder / "data/a.root")
    os.link(folder / "data/a.root", folder / "hard.root")
    (folder / "linked").symlink_to("data")
    name = f"file://{folder}/data/a.root" if other == "file://" else f"{folder}/{other}"
    files = [folder / "data/a.root", name]
    with pytest.raises(
        JobError, match=r"data/a.root is named 2 times.*would count twice.*--allow-duplicates"
    ):
        find_sources(files)
    assert len(find_sources(files, allow_duplicates=True)) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("root://host//d/a.root", "root://HOST:1094//d/a.root"),
        ("root://host//d/a.root", "roots://user@host//d//x/../a.root?authz=token"),
        ("root://host//d/a.root", "xroot://host/d/a.root"),
        ("https://host/d/a b.root", "https://host:443/d/./a%20b.root"),
        ("https://host/d/a.root", "davs://host./d/a.root"),
        ("s3://bucket/a.root", "s3://bucket/a.root"),
    ],
)
def test_a_url_is_one_in_whichever_spelling(one: str, other: str) -> None:
    with pytest.raises(JobError, match="is named 2 times"):
        find_sources([one, other])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("root://host//d/a.root", "root://other//d/a.root"),
        ("root://host//d/a.root", "root://host:1095//d/a.root"),
        ("root://host//d/a.root", "root://host//D/a.root"),
        ("root://host//d/a#1.root", "root://host//d/a#2.root"),
        ("https://host/get.root?id=1", "https://host/get.root?id=2"),
        ("s3://bucket/d/a.root", "s3://bucket/d//a.root"),
        ("s3://bucket/a.root?versionId=1", "s3://bucket/a.root?versionId=2"),
        ("root://host//d/a.root:one", "root://host//d/a.root:other"),
    ],
)
def test_what_may_be_another_file_is_taken_for_one(one: str, other: str) -> None:
    assert len(find_sources([one, other])) == 2


def test_a_file_that_another_redirector_has_is_the_same() -> None:
    """Also where each was found by redirectors of its own."""
    one = Source("root://one//store/a.root", ("root://two//store/a.root",))
    with pytest.raises(
        JobError, match=r"one//store/a.root is named 2 times, as root://two//store/a.root\?authz=t too"
    ):
        refuse_doubles([named(one, None), named(Source("root://two//store/a.root?authz=t"), None)])


def test_a_file_of_two_datasets_is_told_by_their_names_before_it_is_opened(folder: Path) -> None:
    (folder / "link.root").symlink_to(folder / "data/a.root")
    samples = [Sample(folder / "data", name="signal"), Sample(folder / "link.root", name="background")]
    words = r"named 2 times in dataset 'signal', as .*link.root in dataset 'background' too"
    with pytest.raises(JobError, match=words):
        look_up(samples, ReadingSettings())
    assert [len(sample.sources) for sample in look_up(samples, TWICE)] == [1, 1]


def test_how_many_more_there_are_is_told(folder: Path) -> None:
    for number in range(3):
        (folder / f"data/{number}.root").symlink_to("a.root")
    with pytest.raises(JobError, match=r"; so are 2 more files"):
        find_sources(folder / "data")


@pytest.mark.usefixtures("ray_local")
def test_a_copy_is_found_when_all_files_were_opened(write_tree, tmp_path: Path) -> None:
    one = write_tree("one.root")
    copy = Path(shutil.copy(one, tmp_path / "copy.root"))
    with pytest.raises(JobError, match=r"copy.root is a copy of .*one.root \(same UUID and size\)"):
        first_pass([Sample([one, copy])])
    samples = [Sample(one, name="signal"), Sample(copy, "Events", name="background")]
    words = r"copy.root in dataset 'background' is a copy of .*one.root in dataset 'signal'"
    with pytest.raises(JobError, match=words):
        first_pass(samples)
    found = first_pass(samples, reading=TWICE)
    assert (found.entries, found.features.entries) == (200, 200)


@pytest.mark.usefixtures("ray_local")
def test_what_was_remembered_is_held_against_doubles_too(write_tree, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLAAS_CACHE", str(tmp_path / "cache"))
    one = write_tree("one.root")
    copy = Path(shutil.copy(one, tmp_path / "copy.root"))
    (tmp_path / "link.root").symlink_to(one)
    samples = [Sample(one, name="signal"), Sample([copy, tmp_path / "link.root"], name="background")]
    for _ in range(2):  # and each file stays in its dataset
        found = first_pass(samples, reading=TWICE)
        assert [file.dataset for file in found.files] == [0, 1, 1]
    with pytest.raises(JobError, match="would count twice"):
        first_pass(samples)
    with pytest.raises(JobError, match="is a copy of"):
        first_pass([Sample(one), Sample(copy)])


@pytest.mark.usefixtures("ray_local")
def test_a_tree_is_refused_twice_and_two_trees_of_a_file_are_read(write_tree, tmp_path: Path) -> None:
    path = tmp_path / "two.root"
    with uproot.recreate(path) as file:
        for tree in ("Events", "other"):
            file.mktree(tree, {"x": np.float32}).extend({"x": np.arange(5, dtype=np.float32)})
    found = first_pass([Sample([f"{path}:Events", f"{path}/other"])])
    assert [(file.tree, file.entries) for file in found.files] == [("Events", 5), ("other", 5)]
    # Events is also what is taken without a name: that is known only once the file is open
    with pytest.raises(JobError, match=r"two.root is named 2 times, in dataset 'a' and in dataset 'b'"):
        first_pass([Sample(path, name="a"), Sample(path, "Events;1", name="b")])


@pytest.mark.usefixtures("ray_local")
def test_files_without_an_event_may_be_alike(write_tree, tmp_path: Path) -> None:
    empty = write_tree("empty.root", events=0)
    shutil.copy(empty, tmp_path / "copy.root")
    found = first_pass([Sample([write_tree("full.root"), empty, tmp_path / "copy.root"])])
    assert found.entries == 100


def test_reproducible_files_which_share_a_uuid_are_told_apart(write_tree) -> None:
    """ROOT writes 0 for it; what is remembered of one must not be taken for another either."""
    seen = []
    for name, seed in (("one", 1), ("other", 2)):
        path = write_tree(f"{name}.root", seed=seed)
        with uproot.open(path) as file:
            own = file.file.uuid.bytes
        path.write_bytes(path.read_bytes().replace(own, bytes(16)))
        events = open_events(str(path), "Events")
        seen.append((events.uuid, events.size))
    assert seen[0] != seen[1]
    assert str(UUID(int=0)) not in dict(seen)


@pytest.mark.usefixtures("ray_local")
def test_the_command_refuses_a_double_unless_it_is_meant(write_tree, tmp_path: Path) -> None:
    one = str(write_tree("one.root"))
    copy = str(shutil.copy(one, tmp_path / "copy.root"))
    done = CliRunner().invoke(app, ["inspect", one, copy])
    assert (done.exit_code, "is a copy of" in done.stderr) == (2, True)
    done = CliRunner().invoke(app, ["inspect", one, copy, "--allow-duplicates", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["entries"] == 200
