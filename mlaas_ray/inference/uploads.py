"""Uploads: what a client sends, as a form or a bundle, checked and published as the next version.

A bundle is a tar(.gz) of one folder, named like the model, with one of

- a package as ``mlaas train`` writes it (``package.json``);
- a SavedModel (``saved_model.pb``, ``variables/``), in the folder or in one folder below it;
- an ONNX file, its weights inside or beside it;

and for the latter two, if there are any, ``params.json``, ``labels.txt`` or ``labels.json`` and
``features.json``. A form has the parts ``model`` (an ONNX file) and, each optional, ``name``, ``params``,
``labels``, ``features``, ``op``.

The model is loaded and asked a sample in a process of its own before the version appears; whatever fails
leaves nothing behind.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlaas_ray.core.errors import FeatureError, ModelError, PackageError
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.package import (
    MANIFEST,
    ModelFormat,
    ModelPackage,
    Signature,
    check_name,
    write_package,
)
from mlaas_ray.inference.archives import unpack
from mlaas_ray.inference.params import PARAMS, read_params
from mlaas_ray.repository import ModelVersion, Repository

Inspect = Callable[[Path, ModelFormat], Signature]

_LABELS = ("labels.txt", "labels.json", "labels.csv", "labels")
_ACCEPTED = "Send an ONNX file, or a SavedModel as a bundle: tar czf model.tar.gz model"


def publish_bundle(repository: Repository, archive: Path, limit: int, inspect: Inspect) -> ModelVersion:
    """Publish a tar or tar.gz.

    Args:
        repository: Where it goes.
        archive: The file.
        limit: Most bytes once unpacked.
        inspect: Loads a model apart and returns its signature.

    Raises:
        PackageError: For a bundle of another shape.
        ModelError: For a model that does not load or answer.
        InvalidNameError: For a name no model may have.
    """
    with tempfile.TemporaryDirectory(prefix="bundle-", dir=archive.parent) as folder:
        content = Path(folder)
        name = check_name(unpack(archive, content, limit))
        return repository.add(name, lambda draft: _fill(draft, content, name, inspect))


def publish_form(repository: Repository, name: str, content: Path, inspect: Inspect) -> ModelVersion:
    """Publish the files of a form, laid into a folder as a bundle has them.

    Raises:
        PackageError: For a model file of an unknown kind, or a params.json of another name.
        ModelError: For a model that does not load or answer.
        InvalidNameError: For a name no model may have.
    """
    params = _params(content)
    name = name or params.get("name") or ""
    if not name:
        raise PackageError("the form names no model", "Send the part name")
    check_name(name)
    if params.get("name") not in (None, "", name):
        raise PackageError(f"the form says name={name}, its params {params['name']}", "Send the same name")
    return repository.add(name, lambda draft: _fill(draft, content, name, inspect))


def model_file_name(head: bytes) -> str:
    """Tell what a single model file is by its first bytes.

    Raises:
        PackageError: For a frozen TensorFlow 1 graph or anything else that is not ONNX.
    """
    # Both are protobuf without a signature: ONNX starts with field 1, a varint (its IR version); a GraphDef
    # with field 1, a message (its first node).
    if head[:1] == b"\x08":
        return "model.onnx"
    if head[:1] == b"\x0a":
        raise PackageError("the model is a frozen TensorFlow graph, which is not served", _ACCEPTED)
    raise PackageError("the model file is not ONNX", _ACCEPTED)


def _fill(draft: Path, content: Path, name: str, inspect: Inspect) -> None:
    """Make a package of what was sent."""
    if (content / MANIFEST).is_file():
        _copy_package(draft, content, inspect)
        return
    params = _params(content)
    labels = _labels(content, params)
    features = _features(content)
    model_format = _place_model(draft, content)
    if (content / PARAMS).is_file():
        shutil.copy(content / PARAMS, draft / PARAMS)
    signature = inspect(draft / ("model.onnx" if model_format == "onnx" else "model"), model_format)
    if features is not None and features.width != signature.width:
        raise ModelError(
            f"features.json has {features.width} columns, the model takes {signature.width} values a row",
            "Send the features.json the model was trained with",
        )
    _check_labels(labels, signature)
    write_package(
        draft,
        name=name,
        framework="unknown",
        model_format=model_format,
        signature=signature,
        features=features,
        labels=labels,
        lineage={"uploaded": True},
    )


def _copy_package(draft: Path, content: Path, inspect: Inspect) -> None:
    package = ModelPackage(content)
    package.check()
    shutil.copytree(content, draft, dirs_exist_ok=True)
    copy = ModelPackage(draft)
    signature = inspect(copy.model_path, copy.manifest.model_format)
    features = copy.features
    expected = features.width if features else copy.signature.width
    if not signature.width == copy.signature.width == expected:
        raise ModelError(
            f"the package says {expected} values a row, the model takes {signature.width}", "Package it again"
        )
    _check_labels(copy.labels, signature)


def _place_model(draft: Path, content: Path) -> ModelFormat:
    """Move the one model of a bundle to its place in a package."""
    saved = sorted(content.glob("saved_model.pb")) + sorted(content.glob("*/saved_model.pb"))
    onnx = sorted(content.glob("*.onnx"))
    if len(saved) + len(onnx) > 1:
        names = ", ".join(str(path.relative_to(content)) for path in [*saved, *onnx])
        raise PackageError(f"the bundle holds several models: {names}", "Send one model at a time")
    if saved:
        shutil.copytree(saved[0].parent, draft / "model", ignore=_sidecars)
        return "savedmodel"
    if not onnx:
        frozen = sorted(path.name for path in content.rglob("*.pb"))
        what = f"a frozen TensorFlow graph ({frozen[0]}), which is not served" if frozen else "no model"
        raise PackageError(f"the bundle holds {what}", _ACCEPTED)
    # Weights beside the file keep their names, by which the file knows them.
    for path in content.iterdir():
        if path.is_file() and path.name not in {onnx[0].name, PARAMS, "features.json", *_LABELS}:
            shutil.copy(path, draft / path.name)
    shutil.copy(onnx[0], draft / "model.onnx")
    return "onnx"


def _sidecars(_folder: str, names: list[str]) -> set[str]:
    return {PARAMS, "features.json", *_LABELS} & set(names)


def _params(content: Path) -> dict[str, Any]:
    path = content / PARAMS
    return read_params(path.read_bytes()) if path.is_file() else {}


def _features(content: Path) -> FeatureSpec | None:
    path = content / "features.json"
    if not path.is_file():
        return None
    try:
        return FeatureSpec.from_json(path.read_bytes())
    except FeatureError as error:
        raise PackageError(f"features.json: {error.message}", error.remedy) from None


def _check_labels(labels: list[str], signature: Signature) -> None:
    """Refuse labels that would name other outputs than the model's.

    Raises:
        PackageError: Unless there is one for each output, or two for one output: that of class 1.
    """
    sizes = signature.outputs[0].shape[1:]
    if not labels or None in sizes:
        return
    outputs = math.prod(size for size in sizes if size is not None)
    if len(labels) != outputs and (outputs, len(labels)) != (1, 2):
        raise PackageError(
            f"there are {len(labels)} labels, but the model has {outputs} outputs",
            "Send one label for each output, in their order; one output may have those of both its classes",
        )


def _labels(content: Path, params: dict[str, Any]) -> list[str]:
    """Read the class names: a JSON list, or one a line."""
    named = Path(params.get("labels") or "").name
    path = next((content / name for name in (named, *_LABELS) if name and (content / name).is_file()), None)
    if path is None:
        return []
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        raise PackageError(f"{path.name} is not text", "Send one class name a line") from None
    if text.lstrip().startswith("["):
        try:
            return [str(label) for label in json.loads(text)]
        except ValueError as error:
            raise PackageError(f"{path.name} is no JSON list: {error}", "Correct it") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
