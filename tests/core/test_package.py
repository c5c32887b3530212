from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlaas_ray.core.errors import FeatureError, InvalidNameError, PackageError
from mlaas_ray.core.features import Feature, FeatureSpec
from mlaas_ray.core.package import ModelPackage, Signature, Tensor, check_name, staging, write_package
from mlaas_ray.core.task import Task

SPEC = FeatureSpec.of([Feature(name="MET_pt", kind="flat"), Feature(name="Jet_pt", kind="jagged", length=2)])
SIGNATURE = Signature(
    inputs=(Tensor(name="x", dtype="float32", shape=(None, 3)),),
    outputs=(Tensor(name="probability", dtype="float32", shape=(None, 1)),),
)


def write(folder: Path, **changes: Any) -> ModelPackage:
    """Write a package whose model file is some bytes: nothing here looks into it."""
    (folder / "model.onnx").write_bytes(b"graph")
    options: dict[str, Any] = {
        "name": "ttH",
        "framework": "torch",
        "model_format": "onnx",
        "task": Task(),
        "signature": SIGNATURE,
        "features": SPEC,
        "labels": ["ttbar", "ttH"],
        "metrics": {"validation": {"auc": 0.9}},
        "lineage": {"commit": "abc"},
    }
    return write_package(folder, **options | changes)


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    folder = tmp_path / "package"
    folder.mkdir()
    return write(folder)


class TestContent:
    def test_what_was_written_is_read_back(self, package: ModelPackage) -> None:
        read = ModelPackage(str(package.path))
        assert read.name == "ttH"
        assert (read.manifest.framework, read.manifest.task) == ("torch", "binary")
        assert read.model_path.read_bytes() == b"graph"
        assert read.features == SPEC
        assert read.signature == SIGNATURE
        assert read.signature.width == 3
        assert read.labels == ["ttbar", "ttH"]
        assert read.metrics == {"validation": {"auc": 0.9}}
        assert read.lineage == {"commit": "abc"}
        assert read.manifest.created.utcoffset() is not None

    def test_a_model_from_elsewhere_has_no_features(self, tmp_path: Path) -> None:
        read = write(tmp_path, features=None, labels=None, metrics=None, lineage=None)
        assert read.features is None
        assert (read.labels, read.metrics, read.lineage) == ([], {}, {})

    def test_every_file_is_in_the_manifest_also_of_a_saved_model_and_of_the_users_own(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "model" / "variables").mkdir(parents=True)
        (tmp_path / "model" / "saved_model.pb").write_bytes(b"graph")
        (tmp_path / "model" / "variables" / "variables.index").write_bytes(b"index")
        (tmp_path / "notes.txt").write_text("mine")
        package = write(tmp_path, model_format="savedmodel")
        assert package.model_path == tmp_path / "model"
        files = set(package.manifest.files)
        assert {
            "model/saved_model.pb",
            "model/variables/variables.index",
            "notes.txt",
            "features.json",
        } <= files
        assert "package.json" not in files
        assert package.manifest.files["notes.txt"].bytes == 4

    def test_the_digest_changes_with_any_file(self, tmp_path: Path) -> None:
        digests = set()
        for content in (b"one", b"two"):
            folder = tmp_path / content.decode()
            folder.mkdir()
            (folder / "extra").write_bytes(content)
            digests.add(write(folder).digest)
        assert len(digests) == 2

    def test_without_a_model_file_there_is_no_package(self, tmp_path: Path) -> None:
        with pytest.raises(PackageError, match=r"no model to package.*Export the model first"):
            write(tmp_path, model_format="savedmodel")
        assert not (tmp_path / "package.json").exists()

    @pytest.mark.parametrize(
        ("shape", "width"), [((None, 42), 42), ((None, 3, 4), 12), ((None, None), None), ((None,), 1)]
    )
    def test_the_width_of_a_signature_is_the_values_of_a_row(self, shape: Any, width: int | None) -> None:
        tensor = Tensor(name="x", dtype="float32", shape=shape)
        assert Signature(inputs=(tensor,), outputs=(tensor,)).width == width


class TestTask:
    def test_what_was_learnt_is_read_back(self, tmp_path: Path) -> None:
        task = Task(kind="regression", names=("m", "n"), offset=(100.0, -1.0), scale=(30.0, 2.0), loss="mae")
        read = ModelPackage(write(tmp_path, task=task).path)
        assert read.task == task
        assert read.manifest.task == "regression"
        assert "task.json" in read.manifest.files

    def test_an_older_package_that_says_binary_tells_signal_from_background(
        self, package: ModelPackage
    ) -> None:
        (package.path / "task.json").unlink()
        assert ModelPackage(package.path).task == Task()

    def test_of_a_model_from_elsewhere_nothing_is_known(self, tmp_path: Path) -> None:
        read = write(tmp_path, task=None)
        assert read.manifest.task == "unknown"
        assert read.task is None
        assert not (tmp_path / "task.json").exists()

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", '{"kind": "ranking"}', '{"names": ["one"]}', '{"kind": "binary", "more": 1}']
    )
    def test_a_damaged_task_is_refused_by_name(self, package: ModelPackage, text: str) -> None:
        (package.path / "task.json").write_text(text)
        with pytest.raises(PackageError, match=r"task\.json is damaged"):
            _ = ModelPackage(package.path).task


class TestNames:
    @pytest.mark.parametrize("name", ["ttH", "a", "7", "_x", "ttH-resolved_v2.1", "x" * 128])
    def test_a_name_that_is_one_folder_is_good(self, name: str) -> None:
        assert check_name(name) == name

    @pytest.mark.parametrize(
        "name",
        [
            "",
            ".",
            "..",
            ".hidden",
            "-rf",
            "a/b",
            "../a",
            "/etc",
            "a\\b",
            "a b",
            "a:1",
            "a\n",
            "ä",
            "x" * 129,
            "a\0",
        ],
    )
    def test_any_other_name_is_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidNameError, match="cannot be a model's name"):
            check_name(name)
        with pytest.raises(InvalidNameError):
            write(tmp_path, name=name)
        assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


class TestCheck:
    def test_an_untouched_package_passes(self, package: ModelPackage) -> None:
        package.check()

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda path: (path / "model.onnx").write_bytes(b"grapH"), "model.onnx was changed"),
            (lambda path: (path / "model.onnx").write_bytes(b"graph, longer"), "model.onnx was changed"),
            (lambda path: (path / "labels.json").write_text("[]"), "labels.json was changed"),
            (lambda path: (path / "features.json").unlink(), "features.json is missing"),
            (lambda path: (path / "model.onnx").rename(path / "other"), "model.onnx is missing"),
            (lambda path: (path / "stranger.py").write_text("pass"), "stranger.py does not belong"),
        ],
        ids=["same size", "longer", "labels", "missing", "renamed", "stranger"],
    )
    def test_a_file_that_differs_is_named(
        self, package: ModelPackage, damage: Callable[[Path], object], reason: str
    ) -> None:
        damage(package.path)
        with pytest.raises(PackageError, match=reason):
            ModelPackage(package.path).check()

    def test_a_folder_without_a_package_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PackageError, match=r"is no model package: it has no package\.json"):
            ModelPackage(tmp_path)
        with pytest.raises(PackageError, match="is no model package"):
            ModelPackage(tmp_path / "nowhere")
        (tmp_path / "file").write_text("")
        with pytest.raises(PackageError, match="is no model package"):
            ModelPackage(tmp_path / "file")

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "damaged"),
            ('{"schema_version": 1', "damaged"),
            ("[]", "damaged"),
            ("{}", "schema None is unknown"),
            ('{"schema_version": 2}', "schema 2 is unknown here.*Upgrade"),
            ('{"schema_version": 1}', "Field required"),
            ("\x00\xff", "damaged"),
        ],
    )
    def test_a_manifest_that_is_none_is_refused(self, package: ModelPackage, text: str, reason: str) -> None:
        (package.path / "package.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(PackageError, match=reason):
            ModelPackage(package.path)

    @pytest.mark.parametrize("part", ["signature", "labels", "metrics", "lineage"])
    def test_damaged_json_is_named_where_it_is_read(self, package: ModelPackage, part: str) -> None:
        (package.path / f"{part}.json").write_text('{"inputs": ')
        with pytest.raises(PackageError, match=rf"{part}\.json is damaged"):
            getattr(ModelPackage(package.path), part)

    def test_a_damaged_feature_spec_is_a_feature_error(self, package: ModelPackage) -> None:
        (package.path / "features.json").write_text("{")
        with pytest.raises(FeatureError, match="not a FeatureSpec"):
            _ = ModelPackage(package.path).features

    def test_a_name_changed_in_the_manifest_cannot_lead_out_of_the_repository(
        self, package: ModelPackage
    ) -> None:
        manifest = package.path / "package.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"name": "../../etc"}))
        with pytest.raises(PackageError, match="cannot be a model's name"):
            ModelPackage(package.path)


class Interrupted(BaseException):
    """What ends a block without being an Exception, as Ctrl-C does."""


class TestStaging:
    def test_the_folder_appears_when_the_block_ends(self, tmp_path: Path) -> None:
        target = tmp_path / "sub" / "package"
        with staging(target) as folder:
            (folder / "inside").mkdir()
            (folder / "inside" / "file").write_text("content")
            assert not target.exists()
        assert (target / "inside" / "file").read_text() == "content"
        assert os.listdir(target.parent) == ["package"]

    @pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, Interrupted])
    def test_nothing_is_left_when_the_block_fails(self, tmp_path: Path, failure: type[BaseException]) -> None:
        def fill(folder: Path) -> None:
            (folder / "file").write_text("half")
            raise failure

        with pytest.raises(failure), staging(tmp_path / "package") as folder:
            fill(folder)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("existing", ["empty folder", "full folder", "file"])
    def test_what_exists_is_never_replaced(self, tmp_path: Path, existing: str) -> None:
        target = tmp_path / "package"
        if existing == "file":
            target.write_text("before")
        else:
            target.mkdir()
            if existing == "full folder":
                (target / "before").write_text("before")
        with pytest.raises(FileExistsError), staging(target) as folder:
            (folder / "file").write_text("after")
        assert os.listdir(tmp_path) == ["package"]
        assert not target.is_dir() or "file" not in os.listdir(target)
