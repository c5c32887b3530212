from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from pyarrow.fs import FileSelector

from mlaas_ray.core.errors import JobError, StorageError
from mlaas_ray.workflows.run_folder import RunFolder, filesystem
from tests.s3 import running_s3


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with running_s3("runs") as address:
        yield address


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    """A run's folder on disk and in an object store, of a name of its own."""
    if request.param == "local":
        return RunFolder(tmp_path / "runs" / "toy-1")
    return RunFolder(f"{request.getfixturevalue('bucket')}/{tmp_path.name}/toy-1")


def test_what_is_written_is_read(run: RunFolder) -> None:
    assert (run.read("job.yaml"), run.exists("job.yaml")) == (None, False)
    run.write("job.yaml", "name: τ\n")
    assert (run.read("job.yaml"), run.exists("job.yaml")) == ("name: τ\n", True)
    run.write("job.yaml", "name: b\n")
    assert run.read("job.yaml") == "name: b\n"
    run.write("code/mine.py", b"x = 1\n")
    assert run.read("code/mine.py") == "x = 1\n"
    assert run.exists("code")


def test_what_others_write_is_seen(run: RunFolder) -> None:
    assert not run.exists("first")
    assert run.read("plan.json") is None
    # of a file system with listings of its own, as in another process
    other, path = fsspec.core.url_to_fs(run.url, skip_instance_cache=True)
    other.makedirs(f"{path}/first", exist_ok=True)
    other.pipe({f"{path}/plan.json": b"{}", f"{path}/first/weights": b"w"})
    assert run.exists("first")
    assert run.read("plan.json") == "{}"
    assert (run.fetch("first") / "weights").read_bytes() == b"w"


def test_a_folder_is_put_and_fetched_whole(run: RunFolder, tmp_path: Path) -> None:
    content = {"package.json": b"{}", "model/graph.pb": b"graph", "model/variables/v": bytes(3)}
    source = tmp_path / "made"
    for name, data in content.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    run.put(source, "package", last="package.json")
    copy = run.fetch("package")
    found = {str(path.relative_to(copy)): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert found == content
    assert run.exists("package/model/variables/v")
    # fetched again: in a folder of its own, unless it is there already
    assert (run.fetch("package") == copy) is run.is_local


def test_the_last_file_comes_after_all_others(tmp_path: Path) -> None:
    source, run = tmp_path / "made", RunFolder(tmp_path / "run")
    source.mkdir()
    for name in ("a", "package.json", "z"):
        (source / name).write_text(name)
    # the manifest cannot be written: what comes before it is there by then
    (tmp_path / "run" / "package" / "package.json").mkdir(parents=True)
    with pytest.raises(StorageError, match=f"cannot write to {run}: .*Is a directory"):
        run.put(source, "package", last="package.json")
    assert [run.read(f"package/{name}") for name in ("a", "z")] == ["a", "z"]


def test_names_are_paths_or_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("runs/a", "runs/a/", tmp_path / "runs/a", f"file://{tmp_path}/runs/a"):
        run = RunFolder(given)
        assert (run.url, str(run), run.is_local) == (f"{tmp_path}/runs/a", f"{tmp_path}/runs/a", True)
    assert run.place("code", "x.py") == f"{tmp_path}/runs/a/code/x.py"
    remote = RunFolder("s3://bucket/runs/a/")
    assert (remote.url, remote.is_local) == ("s3://bucket/runs/a", False)
    assert remote.place("code", "x.py") == "s3://bucket/runs/a/code/x.py"


def test_a_folder_is_made_when_something_is_written_to_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "a")
    assert run.read("job.yaml") is None
    assert not (tmp_path / "runs").exists()
    run.write("job.yaml", "")
    assert (tmp_path / "runs" / "a" / "job.yaml").exists()


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write("history.jsonl", "one\n")
    with pytest.raises(UnicodeEncodeError):
        run.write("history.jsonl", "\ud800")
    assert run.read("history.jsonl") == "one\n"
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]


@pytest.mark.parametrize("url", ["nowhere://bucket/runs", "https://host/runs"])
def test_a_place_nobody_writes_to_is_refused(url: str) -> None:
    with pytest.raises(JobError, match=rf"cannot keep runs in {url}.*Give a folder, or s3://"):
        RunFolder(url)


def test_a_bucket_that_is_not_there_is_told_in_a_line(bucket: str) -> None:
    RunFolder(f"{bucket}/runs/a").check()
    assert fsspec.filesystem("s3").find(f"{bucket}/runs/a") == []
    with pytest.raises(
        StorageError, match=r"^cannot write to s3://none/runs: .*bucket does not exist\. Check"
    ):
        RunFolder("s3://none/runs").check()


def test_credentials_that_are_missing_are_told_in_a_line(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    system = fsspec.get_filesystem_class("s3")
    system.clear_instance_cache()
    run = RunFolder(f"{bucket}/runs/a")
    try:
        with pytest.raises(
            StorageError, match=rf"^cannot write to {run}: Unable to locate credentials\. Check"
        ):
            run.check()
        with pytest.raises(StorageError, match=rf"^cannot read {run}: Unable to locate credentials\. Check"):
            run.read("job.yaml")
    finally:
        system.clear_instance_cache()


def test_ray_train_writes_where_we_read(bucket: str, tmp_path: Path) -> None:
    assert filesystem(str(tmp_path)) == (str(tmp_path), None)
    run = RunFolder(f"{bucket}/by-ray")
    path, files = filesystem(run.url)
    with files.open_output_stream(f"{path}/training/checkpoint/state.pt") as stream:
        stream.write(b"state")
    assert run.read("training/checkpoint/state.pt") == "state"
    found = files.get_file_info(FileSelector(path, recursive=True))
    assert f"{path}/training/checkpoint/state.pt" in [info.path for info in found]


def test_a_process_leaves_no_scratch_and_says_what_it_lacks() -> None:
    program = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from mlaas_ray.core.errors import JobError\n"
        "from mlaas_ray.workflows.run_folder import RunFolder, scratch\n"
        "folder = scratch()\n(folder / 'a').mkdir()\nprint(folder, folder.is_dir())\n"
        "try:\n    RunFolder('s3://bucket/runs')\nexcept JobError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    first, second = done.stdout.splitlines()
    folder, existed = first.split()
    assert existed == "True"
    assert not Path(folder).exists()
    assert second.endswith("pip install 'mlaas-ray[s3]'.")
