from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from mlaas_ray.core.errors import (
    InvalidNameError,
    ModelMissingError,
    PackageError,
    RepositoryError,
    RepositoryFullError,
    VersionMissingError,
)
from mlaas_ray.core.package import ModelPackage, Signature, Tensor, write_package
from mlaas_ray.repository import ModelVersion, Repository, check_alias

TENSOR = Tensor(name="x", dtype="float32", shape=(None, 3))


def fill(folder: Path, name: str = "ttH", content: bytes = b"graph") -> ModelPackage:
    """Write a package whose model file is some bytes: the repository does not look into it."""
    (folder / "model.onnx").write_bytes(content)
    signature = Signature(inputs=(TENSOR,), outputs=(TENSOR,))
    return write_package(folder, name=name, framework="torch", model_format="onnx", signature=signature)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ModelPackage]:
    """Make a package outside of the repository."""

    def package(name: str = "ttH", content: bytes = b"graph") -> ModelPackage:
        folder = tmp_path / "packages" / f"{name}-{content[:8].decode()}"
        folder.mkdir(parents=True)
        return fill(folder, name, content)

    return package


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "models")


class TestPublish:
    def test_versions_of_a_name_count_from_one(
        self, repository: Repository, make: Callable[..., ModelPackage]
    ) -> None:
        published = [repository.publish(make(content=content)) for content in (b"one", b"two")]
        assert published == [ModelVersion("ttH", 1), ModelVersion("ttH", 2)]
        assert str(published[1]) == "ttH:2"
        assert (repository.root / "ttH" / "2" / "model.onnx").read_bytes() == b"two"

    def test_the_newest_version_is_the_default(
        self, repository: Repository, make: Callable[..., ModelPackage]
    ) -> None:
        for number in range(11):  # 10 sorts before 9 as text
            repository.publish(make(content=f"{number}".encode()))
        assert repository.latest("ttH") == ModelVersion("ttH", 11)
        assert repository.get("ttH").model_path.read_bytes() == b"10"
        assert repository.get("ttH", 1).model_path.read_bytes() == b"0"
        assert repository.versions("ttH") == list(range(1, 12))

    def test_what_is_published_is_whole_and_a_copy(
        self, repository: Repository, make: Callable[..., ModelPackage]
    ) -> None:
        package = make()
        version = repository.publish(package)
        package.model_path.write_bytes(b"changed later")
        copy = repository.get("ttH", version.version)
        copy.check()
        assert copy.model_path.read_bytes() == b"graph"

    def test_a_package_may_be_published_under_another_name(
        self, repository: Repository, make: Callable[..., ModelPackage]
    ) -> None:
        assert repository.publish(make(), "candidate") == ModelVersion("candidate", 1)
        assert repository.names() == ["candidate"]

    def test_a_damaged_package_is_refused(
        self, repository: Repository, make: Callable[..., ModelPackage]
    ) -> None:
        package = make()
        package.model_path.write_bytes(b"other")
        with pytest.raises(PackageError, match=r"model\.onnx was changed"):
            repository.publish(package)
        assert repository.list() == []

    @pytest.mark.parametrize("name", ["../outside", "", ".deleted", "a/b", "a:1"])
    def test_a_name_that_cannot_be_is_refused_everywhere(
        self, repository: Repository, make: Callable[..., ModelPackage], name: str
    ) -> None:
        package = make()
        calls: list[Callable[[], object]] = [
            lambda: repository.add(name, fill),
            lambda: repository.publish(package, name or ".."),
            lambda: repository.get(name),
            lambda: repository.delete(name),
            lambda: repository.delete(name, 1),
            lambda: repository.versions(name),
            lambda: repository.aliases(name),
            lambda: repository.set_alias(name, "production"),
        ]
        for call in calls:
            with pytest.raises(InvalidNameError):
                call()
        assert not repository.root.exists()

    def test_a_package_is_known_again(
        self, repository: Repository, make: Callable[..., ModelPackage]
    ) -> None:
        package = make()
        assert repository.holding(package, "ttH") is None
        version = repository.publish(package)
        assert repository.holding(package, "ttH") == version
        assert repository.holding(package, "other") is None
        assert repository.holding(make(content=b"other"), "ttH") is None


class TestAdd:
    def test_a_filled_folder_becomes_a_version(self, repository: Repository) -> None:
        assert repository.add("ttH", fill) == ModelVersion("ttH", 1)
        repository.get("ttH").check()

    @pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
    def test_nothing_is_left_of_a_filling_that_fails(
        self, repository: Repository, failure: type[BaseException]
    ) -> None:
        def fail(folder: Path) -> None:
            fill(folder)
            raise failure

        with pytest.raises(failure):
            repository.add("ttH", fail)
        assert repository.list() == []
        assert os.listdir(repository.root) == []

    def test_a_folder_that_is_no_package_is_refused(self, repository: Repository) -> None:
        with pytest.raises(PackageError, match="is no model package"):
            repository.add("ttH", lambda folder: (folder / "model.onnx").write_bytes(b"graph"))
        assert os.listdir(repository.root) == []


class TestFind:
    def test_an_empty_repository_has_no_models_and_need_not_exist(self, repository: Repository) -> None:
        assert repository.names() == []
        assert repository.list() == []
        with pytest.raises(ModelMissingError, match=r"no model 'ttH' in .*The repository is empty"):
            repository.get("ttH")

    def test_models_and_versions_are_listed_in_order(
        self, repository: Repository, make: Callable[..., ModelPackage]
    ) -> None:
        for name in ("zz", "aa", "zz"):
            repository.add(name, fill)
        expected = [ModelVersion("aa", 1), ModelVersion("zz", 1), ModelVersion("zz", 2)]
        assert repository.list() == expected
        assert repository.names() == ["aa", "zz"]

    def test_a_missing_model_is_named_with_the_nearest(self, repository: Repository) -> None:
        repository.add("ttH-resolved", fill)
        with pytest.raises(ModelMissingError, match=r"'ttH-resolve'.*Did you mean 'ttH-resolved'"):
            repository.get("ttH-resolve")

    def test_a_missing_version_is_named_with_those_there_are(self, repository: Repository) -> None:
        repository.add("ttH", fill)
        repository.add("ttH", fill)
        with pytest.raises(VersionMissingError, match=r"has no version 3\. It has: 1, 2"):
            repository.get("ttH", 3)

    def test_what_others_put_into_the_folder_is_no_model(self, repository: Repository) -> None:
        repository.add("ttH", fill)
        (repository.root / "README").write_text("ours")
        (repository.root / "lost+found").mkdir()
        (repository.root / "ttH" / "notes.txt").write_text("mine")
        (repository.root / "ttH" / "007").mkdir()
        (repository.root / "ttH" / "9").write_text("a file")
        assert repository.list() == [ModelVersion("ttH", 1)]
        assert repository.add("ttH", fill).version == 2

    def test_a_home_directory_is_written_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/marie")
        assert Repository("~/models").root == Path("/home/marie/models")


class TestDelete:
    def test_a_version_is_gone_and_its_number_is_never_used_again(self, repository: Repository) -> None:
        for _ in range(3):
            repository.add("ttH", fill)
        assert repository.delete("ttH", 3) == [ModelVersion("ttH", 3)]
        assert repository.versions("ttH") == [1, 2]
        assert repository.add("ttH", fill) == ModelVersion("ttH", 4)
        with pytest.raises(VersionMissingError):
            repository.delete("ttH", 3)

    def test_all_versions_are_gone_and_the_count_goes_on(self, repository: Repository) -> None:
        repository.add("ttH", fill)
        repository.add("ttH", fill)
        assert repository.delete("ttH") == [ModelVersion("ttH", 1), ModelVersion("ttH", 2)]
        assert repository.names() == []
        with pytest.raises(ModelMissingError):
            repository.delete("ttH")
        assert repository.add("ttH", fill) == ModelVersion("ttH", 3)

    def test_no_bytes_of_it_are_left(self, repository: Repository) -> None:
        repository.add("ttH", fill)
        repository.delete("ttH")
        assert [path for path in repository.root.rglob("*") if path.is_file()] == []

    def test_a_model_whose_name_is_a_number_does_not_disturb_the_list(self, repository: Repository) -> None:
        repository.add("7", fill)
        repository.add("7", fill)
        repository.delete("7", 1)
        assert repository.list() == [ModelVersion("7", 2)]


class TestAliases:
    def test_an_alias_stands_for_a_version_until_it_moves(self, repository: Repository) -> None:
        for _ in range(3):
            repository.add("ttH", fill)
        assert repository.aliases("ttH") == {}
        assert repository.set_alias("ttH", "production", 2) == ModelVersion("ttH", 2)
        assert repository.set_alias("ttH", "candidate") == ModelVersion("ttH", 3)
        assert repository.aliases("ttH") == {"candidate": 3, "production": 2}
        assert repository.find("ttH:production") == ModelVersion("ttH", 2)
        assert repository.get("ttH", "production").path == repository.root / "ttH" / "2"
        # of an alias, as of a number
        assert repository.set_alias("ttH", "production", "candidate") == ModelVersion("ttH", 3)
        assert repository.find("ttH:production") == ModelVersion("ttH", 3)

    def test_a_new_version_takes_no_alias(self, repository: Repository) -> None:
        repository.add("ttH", fill)
        repository.set_alias("ttH", "production")
        repository.add("ttH", fill)
        assert repository.find("ttH:production") == ModelVersion("ttH", 1)
        assert repository.find("ttH") == ModelVersion("ttH", 2)

    def test_aliases_are_of_one_name_and_no_models(self, repository: Repository) -> None:
        repository.add("ttH", fill)
        repository.add("other", fill)
        repository.set_alias("ttH", "production")
        assert repository.aliases("other") == {}
        assert repository.names() == ["other", "ttH"]
        assert repository.list() == [ModelVersion("other", 1), ModelVersion("ttH", 1)]

    def test_an_alias_goes_with_its_version(self, repository: Repository) -> None:
        for _ in range(2):
            repository.add("ttH", fill)
        repository.set_alias("ttH", "old", 1)
        repository.set_alias("ttH", "new", 2)
        assert repository.delete("ttH", "old") == [ModelVersion("ttH", 1)]
        assert repository.aliases("ttH") == {"new": 2}
        repository.delete("ttH")
        assert repository.add("ttH", fill) == ModelVersion("ttH", 3)
        assert repository.aliases("ttH") == {}

    def test_an_alias_of_a_version_that_somebody_took_away_stands_for_nothing(
        self, repository: Repository
    ) -> None:
        for _ in range(2):
            repository.add("ttH", fill)
        repository.set_alias("ttH", "production", 1)
        shutil.rmtree(repository.root / "ttH" / "1")
        assert repository.aliases("ttH") == {}
        with pytest.raises(VersionMissingError, match=r"'ttH' has no alias 'production'. It has no aliases"):
            repository.find("ttH:production")

    def test_an_alias_that_is_missing_names_the_nearest(self, repository: Repository) -> None:
        repository.add("ttH", fill)
        repository.set_alias("ttH", "production")
        with pytest.raises(VersionMissingError, match=r"no alias 'prodution'. Did you mean 'production'"):
            repository.get("ttH", "prodution")
        with pytest.raises(VersionMissingError, match=r"no version 7"):
            repository.set_alias("ttH", "production", 7)
        with pytest.raises(ModelMissingError):
            repository.set_alias("other", "production")
        assert repository.find("ttH:production") == ModelVersion("ttH", 1)

    @pytest.mark.parametrize("alias", ["", "3", "3rd", ".x", "-x", "a/b", "../x", "a:b", "a b"])
    def test_an_alias_that_cannot_be_is_refused(self, repository: Repository, alias: str) -> None:
        repository.add("ttH", fill)
        with pytest.raises(InvalidNameError):
            repository.set_alias("ttH", alias)
        with pytest.raises(InvalidNameError):
            check_alias(alias)
        assert repository.aliases("ttH") == {}

    @pytest.mark.parametrize("alias", ["x", "production", "v1.0", "_", "A7"])
    def test_what_may_be_an_alias_can_be_asked_for(self, repository: Repository, alias: str) -> None:
        repository.add("ttH", fill)
        repository.set_alias("ttH", check_alias(alias))
        assert repository.find(f"ttH:{alias}") == ModelVersion("ttH", 1)

    def test_what_others_put_beside_the_aliases_is_none(self, repository: Repository) -> None:
        repository.add("ttH", fill)
        repository.set_alias("ttH", "production")
        folder = repository.root / ".aliases" / "ttH"
        (folder / ".half-written").write_text("1\n")
        (folder / "words").write_text("not a number")
        assert repository.aliases("ttH") == {"production": 1}


class TestNotation:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("ttH", ("ttH", None)),
            ("ttH:3", ("ttH", 3)),
            ("a.b-c:10", ("a.b-c", 10)),
            ("ttH:production", ("ttH", "production")),
            ("ttH:v1.0-b", ("ttH", "v1.0-b")),
        ],
    )
    def test_name_and_version_or_alias_are_split(
        self, text: str, expected: tuple[str, int | str | None]
    ) -> None:
        assert ModelVersion.parse(text) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "",
            ":1",
            "ttH:",
            "ttH:0",
            "ttH:-1",
            "ttH:1x",
            "ttH:1:2",
            "ttH:x:y",
            "ttH:²",
            "ttH:01",
            "ttH:.x",
            "../a:1",
        ],
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidNameError):
            ModelVersion.parse(text)


def publish_some(root: Path, source: Path, times: int) -> list[int]:
    repository, package = Repository(root), ModelPackage(source)
    return [repository.publish(package).version for _ in range(times)]


def publish_and_delete(root: Path, source: Path, times: int) -> list[int]:
    repository, package = Repository(root), ModelPackage(source)
    numbers = []
    for _ in range(times):
        version = repository.publish(package)
        repository.delete(version.name, version.version)
        numbers.append(version.version)
    return numbers


WORKERS, TIMES = 4, 15


class TestSeveralProcesses:
    def test_a_number_is_not_used_again_when_its_version_comes_and_goes_meanwhile(
        self, repository: Repository, make: Callable[..., ModelPackage], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package, published = make(), []
        rename = Path.rename

        def rename_late(path: Path, target: Path) -> Path:
            if target.name == "1":  # the number is chosen: now another publishes and deletes
                monkeypatch.undo()
                published.append(repository.publish(package).version)
                repository.delete("ttH")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", rename_late)
        published.append(repository.publish(package).version)
        assert sorted(published) == [1, 2]

    @pytest.mark.parametrize("work", [publish_some, publish_and_delete], ids=lambda work: work.__name__)
    def test_concurrent_publishers_get_whole_versions_of_their_own(
        self,
        repository: Repository,
        make: Callable[..., ModelPackage],
        work: Callable[[Path, Path, int], list[int]],
    ) -> None:
        package = make()
        with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(work, repository.root, package.path, TIMES) for _ in range(WORKERS)]
            numbers = [number for job in jobs for number in job.result(timeout=120)]
        assert sorted(numbers) == list(range(1, WORKERS * TIMES + 1))
        kept = sorted(numbers) if work is publish_some else []
        assert [version.version for version in repository.list()] == kept
        for number in kept:
            repository.get("ttH", number).check()

    def test_a_reader_never_sees_half_a_version(
        self, repository: Repository, make: Callable[..., ModelPackage]
    ) -> None:
        package = make(content=b"x" * 100_000)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            job = pool.submit(publish_some, repository.root, package.path, TIMES)
            seen = 0
            while not job.done() or seen < TIMES:
                for version in repository.list()[-1:]:
                    repository.get(version.name, version.version).check()
                    seen = max(seen, version.version)
            job.result()
        assert seen == TIMES

    def test_a_publisher_killed_in_the_middle_leaves_nothing_to_see(
        self, repository: Repository, make: Callable[..., ModelPackage]
    ) -> None:
        package = make()
        program = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from mlaas_ray.repository import Repository\n"
            "def fill(folder):\n"
            "    for file in Path(sys.argv[2]).iterdir():\n"
            "        (folder / file.name).write_bytes(file.read_bytes())\n"
            "    print('filled', flush=True)\n"
            "    time.sleep(60)\n"
            "Repository(sys.argv[1]).add('ttH', fill)\n"
        )
        arguments = [sys.executable, "-c", program, str(repository.root), str(package.path)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as publisher:
            assert publisher.stdout is not None
            assert publisher.stdout.readline() == "filled\n"
            publisher.send_signal(signal.SIGKILL)
            assert publisher.wait(60) == -signal.SIGKILL
        assert any(repository.root.rglob("model.onnx"))  # it was in the middle indeed
        assert repository.list() == []
        with pytest.raises(ModelMissingError):
            repository.get("ttH")
        assert repository.publish(package) == ModelVersion("ttH", 1)
        assert [path.name[:7] for path in repository.sweep()] == [".draft-"]
        assert not any(path.name.startswith(".draft-") for path in repository.root.iterdir())
        assert repository.list() == [ModelVersion("ttH", 1)]
        repository.get("ttH").check()

    def test_what_others_publish_meanwhile_is_not_swept(
        self, repository: Repository, make: Callable[..., ModelPackage]
    ) -> None:
        def fill_and_sweep(folder: Path) -> None:
            assert repository.sweep() == []
            fill(folder)

        assert repository.add("ttH", fill_and_sweep) == ModelVersion("ttH", 1)

    def test_what_an_older_release_or_a_killed_delete_left_is_swept(self, repository: Repository) -> None:
        repository.add("ttH", fill)
        repository.set_alias("ttH", "production")
        left = [repository.root / name for name in (".incoming-1", ".deleting-2/lib", ".aliases/ttH/.x-3")]
        for folder in left:
            folder.mkdir(parents=True)
        left[2].rmdir()
        left[2].write_text("1\n")
        assert repository.sweep() == [repository.root / ".deleting-2"]
        for path in (left[0], left[2]):  # these may be of a process that lives
            os.utime(path, (time.time() - 100_000,) * 2)
        assert set(repository.sweep()) == {left[0], left[2]}
        assert repository.aliases("ttH") == {"production": 1}
        assert repository.list() == [ModelVersion("ttH", 1)]


class TestDisks:
    """What a disk refuses is said by its cause."""

    def test_a_full_disk_is_told_and_leaves_nothing(self, small_disk: Path) -> None:
        repository = Repository(small_disk / "models")
        repository.add("ttH", fill)
        taken = shutil.disk_usage(small_disk).free - 200_000
        (small_disk / "junk").write_bytes(bytes(taken))

        def fill_up(folder: Path) -> None:
            (folder / "weights").write_bytes(bytes(1_000_000))

        with pytest.raises(RepositoryFullError, match=r"No space left on device\. Free some space"):
            repository.add("ttH", fill_up)
        source = small_disk.parent / "source"
        source.mkdir()
        (source / "weights").write_bytes(bytes(1_000_000))
        with pytest.raises(RepositoryFullError, match="No space left on device"):
            repository.add("ttH", lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True))
        assert sorted(os.listdir(repository.root)) == [".numbers", "ttH"]
        # there is a way out
        (small_disk / "junk").unlink()
        (small_disk / "junk").write_bytes(bytes(shutil.disk_usage(small_disk).free))
        assert repository.delete("ttH") == [ModelVersion("ttH", 1)]

    def test_a_file_elsewhere_is_not_taken_for_the_repository(
        self, repository: Repository, read_only: Path
    ) -> None:
        with pytest.raises(RepositoryError, match=r"cannot read or write .*closed/x: Read-only file system"):
            repository.add("ttH", lambda _: (read_only / "x").write_text("made for the package"))

    def test_a_read_only_folder_is_told(self, read_only: Path) -> None:
        with pytest.raises(RepositoryError, match=r"Read-only file system\. Mount it"):
            Repository(read_only / "models").add("ttH", fill)
        assert Repository(read_only).sweep() == []

    def test_a_link_that_leads_nowhere_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "models").symlink_to(tmp_path / "gone")
        with pytest.raises(RepositoryError, match=r"is a link that leads nowhere\. Make the folder"):
            Repository(tmp_path / "models").add("ttH", fill)

    def test_a_repository_may_be_a_link_and_a_model_of_it_not_to_another_disk(
        self, tmp_path: Path, small_disk: Path
    ) -> None:
        (small_disk / "real").mkdir()
        (tmp_path / "models").symlink_to(small_disk / "real")
        repository = Repository(tmp_path / "models")
        assert repository.add("ttH", fill) == ModelVersion("ttH", 1)
        assert repository.delete("ttH") == [ModelVersion("ttH", 1)]
        (tmp_path / "other").mkdir()
        (small_disk / "real" / "far").symlink_to(tmp_path / "other")
        with pytest.raises(RepositoryError, match=r"ross-device link\. Link the repository as a whole"):
            repository.add("far", fill)

    def test_a_version_that_is_a_link_is_deleted_as_one(self, repository: Repository, tmp_path: Path) -> None:
        repository.add("ttH", fill)
        (tmp_path / "kept").mkdir()
        (repository.root / "ttH" / "2").symlink_to(tmp_path / "kept")
        assert repository.delete("ttH", 2) == [ModelVersion("ttH", 2)]
        assert (tmp_path / "kept").is_dir()
        assert not list(repository.root.glob(".deleting-*"))


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(
    tmp_path: Path, make: Callable[..., ModelPackage]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        RepositoryError, match=r"cannot write to the repository .*file.*rights and free space"
    ):
        Repository(tmp_path / "file").publish(make())
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "ttH").write_text("not a folder")
    with pytest.raises(RepositoryError, match="cannot write"):
        Repository(tmp_path / "models").publish(make(content=b"other"))
    assert os.listdir(tmp_path / "models") == ["ttH"]
