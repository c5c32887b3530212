"""ModelPackage: a directory that holds a model and all that is needed to use it and to trust it.

::

    <package>/
      package.json     schema, name, framework, task, model format, time, checksum and size of every file
      signature.json   named inputs and outputs, the served one first: dtype, shape (null where any size will
                       do), class names where the model file has them
      task.json        Task: what the model answers (absent in a model that came from elsewhere)
      labels.json      class names, in the order of the outputs
      features.json    FeatureSpec (absent in a model that came from elsewhere)
      metrics.json     what was measured in training
      lineage.json     job, versions, input files, git commit
      sample.npz       some rows and the trained model's answers to them: x, prediction, dataset, file, entry
      evaluation.npz   answers to validation and training events, with labels and weights
      report.html      what came of the training, as a page
      state/           weights in the framework's own form, from which a training can begin
      model.onnx | model/   ONNX file | TensorFlow SavedModel, which a service loads
      model.pt2 | model.ubj   the same as a program of torch.export | XGBoost's own file
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mlaas_ray.core.errors import InvalidNameError, PackageError
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.task import Task, TaskKind

SCHEMA_VERSION: Literal[1] = 1
MANIFEST = "package.json"

ModelFormat = Literal["onnx", "savedmodel"]
MODEL_PATHS: dict[ModelFormat, str] = {"onnx": "model.onnx", "savedmodel": "model"}

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def check_name(name: str) -> str:
    """Return the name of a model, or refuse it.

    Raises:
        InvalidNameError: Unless it is 1 to 128 letters, digits, ``_``, ``-`` or ``.``, and starts with none
            of ``-`` and ``.``: such a name is one folder, whatever the file system.
    """
    if not _NAME.fullmatch(name):
        raise InvalidNameError(
            f"{name[:140]!r} cannot be a model's name", "Use 1 to 128 letters, digits, '_', '-' or '.'"
        )
    return name


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tensor(_Strict):
    """A named input or output.

    Attributes:
        name: As the model file names it.
        dtype: numpy's name, such as ``float32``.
        shape: Sizes; None where any size will do. The first is the batch.
        labels: Of an output of probabilities the class names in their order, where the model file says them.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    labels: tuple[str, ...] = ()


class Signature(_Strict):
    """What goes into a model and what comes out."""

    inputs: tuple[Tensor, ...] = Field(min_length=1)
    outputs: tuple[Tensor, ...] = Field(min_length=1)

    @property
    def width(self) -> int | None:
        """Values a row of the first input has; None when it may have any number."""
        sizes = self.inputs[0].shape[1:]
        known = [size for size in sizes if size is not None]
        if len(known) != len(sizes):
            return None
        width = 1
        for size in known:
            width *= size
        return width


class FileRecord(_Strict):
    """Checksum (SHA-256, hexadecimal) and size (bytes) of one file of a package."""

    sha256: str
    bytes: int


class Manifest(_Strict):
    """What ``package.json`` holds."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Annotated[str, AfterValidator(check_name)]
    framework: str
    task: TaskKind | Literal["unknown"]
    model_format: ModelFormat
    created: datetime
    files: dict[str, FileRecord]


class ModelPackage:
    """A package on disk, read as it is asked for.

    Args:
        path: The package's directory.

    Raises:
        PackageError: When there is no package, or one of a schema unknown here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        text = self._text(MANIFEST, required=True)
        version = self._parse(MANIFEST, text or "", dict).get("schema_version")
        if version != SCHEMA_VERSION:
            raise PackageError(f"{self.path}: package schema {version} is unknown here", "Upgrade mlaas-ray")
        try:
            self.manifest = Manifest.model_validate_json(text or "")
        except ValidationError as error:
            raise PackageError(
                f"{self.path / MANIFEST}: {error.errors()[0]['msg']}", "Publish it again"
            ) from None

    def __repr__(self) -> str:
        return f"ModelPackage({str(self.path)!r})"

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def model_path(self) -> Path:
        """The ONNX file, or the SavedModel's directory."""
        return self.path / MODEL_PATHS[self.manifest.model_format]

    @cached_property
    def features(self) -> FeatureSpec | None:
        """The FeatureSpec; None in a model that came from elsewhere."""
        text = self._text("features.json")
        return None if text is None else FeatureSpec.from_json(text)

    @cached_property
    def task(self) -> Task | None:
        """What the model answers; None in a model that came from elsewhere."""
        text = self._text("task.json")
        if text is None:
            return Task() if self.manifest.task == "binary" else None
        try:
            return Task.model_validate_json(text)
        except ValidationError:
            raise self._damaged("task.json") from None

    @cached_property
    def signature(self) -> Signature:
        """Named inputs and outputs."""
        try:
            return Signature.model_validate_json(self._text("signature.json", required=True) or "")
        except ValidationError:
            raise self._damaged("signature.json") from None

    @cached_property
    def labels(self) -> list[str]:
        """Class names in the order of the outputs; empty when not known."""
        return list(self._parse("labels.json", self._text("labels.json") or "[]", list))

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What was measured in training."""
        return dict(self._parse("metrics.json", self._text("metrics.json") or "{}", dict))

    @cached_property
    def lineage(self) -> dict[str, Any]:
        """Where the model comes from."""
        return dict(self._parse("lineage.json", self._text("lineage.json") or "{}", dict))

    @property
    def identity(self) -> tuple[int, int, int]:
        """What tells at a look whether another package lies here now: its manifest's inode, time, size."""
        status = (self.path / MANIFEST).stat()
        return status.st_ino, status.st_mtime_ns, status.st_size

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, and through its checksums of every file."""
        return hashlib.sha256((self.path / MANIFEST).read_bytes()).hexdigest()

    def check(self) -> None:
        """Compare every file with its recorded checksum.

        Raises:
            PackageError: Naming the first file that is missing, differs or does not belong.
        """
        found = set(_files(self.path)) - {MANIFEST}
        for name, record in sorted(self.manifest.files.items()):
            if name not in found:
                raise PackageError(f"{self.path}: {name} is missing", "Publish the package again")
            if _record(self.path / name) != record:
                raise PackageError(
                    f"{self.path}: {name} was changed after it was written", "Publish it again"
                )
        strangers = found - set(self.manifest.files)
        if strangers:
            raise PackageError(f"{self.path}: {min(strangers)} does not belong to the package", "Take it out")

    def _text(self, name: str, *, required: bool = False) -> str | None:
        try:
            return (self.path / name).read_text()
        except (FileNotFoundError, NotADirectoryError):
            if required:
                raise PackageError(
                    f"{self.path} is no model package: it has no {name}",
                    "Give the folder that mlaas train wrote",
                ) from None
            return None
        except UnicodeDecodeError:
            raise self._damaged(name) from None

    def _parse(self, name: str, text: str, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
        try:
            content = json.loads(text)
        except ValueError:
            raise self._damaged(name) from None
        if not isinstance(content, kind):
            raise self._damaged(name)
        return content

    def _damaged(self, name: str) -> PackageError:
        return PackageError(f"{self.path / name} is damaged", "Publish the package again")


@contextlib.contextmanager
def staging(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder to fill, that becomes ``destination`` when the block ends well, and is gone when not.

    The folder lies beside the destination, so that the last step is one rename: what is at the
    destination is whole, or not there.

    Raises:
        FileExistsError: When the destination exists by then.
    """
    target = Path(destination)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".incoming-{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        yield draft
        for name in _files(draft):
            _sync(draft / name)
        # A rename onto an empty folder would succeed: refuse what exists, whatever it is.
        if target.exists():
            raise FileExistsError(f"{target} exists")
        draft.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write_package(
    folder: Path,
    *,
    name: str,
    framework: str,
    model_format: ModelFormat,
    signature: Signature,
    task: Task | None = None,
    features: FeatureSpec | None = None,
    labels: list[str] | None = None,
    metrics: dict[str, Any] | None = None,
    lineage: dict[str, Any] | None = None,
) -> ModelPackage:
    """Complete a folder that already holds the model file(s) into a package.

    Use inside :func:`staging`. Files of any other name that lie in the folder become part of the package.

    Args:
        folder: Holds ``model.onnx`` or the SavedModel ``model/``.
        name: The model's name.
        framework: What trained it: ``torch``, ``keras``, ``xgboost``, another's name, or ``unknown``.
        model_format: What the model file is.
        signature: Named inputs and outputs.
        task: What the outputs mean, when that is known.
        features: The FeatureSpec, when the columns are known.
        labels: Class names, in the order of the classes; where none are given, those of the model file.
        metrics: What was measured.
        lineage: Where it comes from.

    Raises:
        InvalidNameError: For a name no model may have.
        PackageError: When the model file is not there.
    """
    check_name(name)
    if not (folder / MODEL_PATHS[model_format]).exists():
        raise PackageError(f"no {MODEL_PATHS[model_format]} to package", "Export the model first")
    contents: dict[str, str | None] = {
        "signature.json": signature.model_dump_json(indent=1),
        "features.json": features.to_json() if features else None,
        "task.json": task.model_dump_json(indent=1) if task else None,
        "labels.json": json.dumps(labels or signature.outputs[0].labels),
        "metrics.json": json.dumps(metrics or {}, indent=1),
        "lineage.json": json.dumps(lineage or {}, indent=1),
    }
    for file, text in contents.items():
        if text is not None:
            (folder / file).write_text(text)
    manifest = Manifest(
        name=name,
        framework=framework,
        task=task.kind if task else "unknown",
        model_format=model_format,
        created=datetime.now(UTC),
        files={file: _record(folder / file) for file in _files(folder) if file != MANIFEST},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1))
    return ModelPackage(folder)


def _files(folder: Path) -> list[str]:
    """Return the relative names of all files below a folder, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)


def _sync(path: Path) -> None:
    """Ask the disk to keep a file or folder before others are told of it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
