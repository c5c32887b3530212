"""Bundles: a model on disk as the tar that a service takes, with the model's name as its top folder."""

from __future__ import annotations

import contextlib
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mlaas_ray.core.errors import PackageError

_MANIFEST = "package.json"


@contextlib.contextmanager
def open_bundle(path: Path, name: str | None = None) -> Iterator[IO[bytes]]:
    """Open a package, a SavedModel folder or an ONNX file as a bundle; or one as it is (tar, tar.gz).

    Args:
        path: The model.
        name: Its name; the package's, folder's or file's own when it is not given. A bundle has it inside.

    Raises:
        PackageError: When it is none of these, or a bundle is to have another name.
    """
    if path.is_file() and path.name.endswith((".tar", ".tar.gz", ".tgz")):
        if name:
            raise PackageError(f"{path} has its model's name inside", "Leave the name out, or unpack it")
        with path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as bundle:
        write_bundle(path, name or model_name(path), bundle)
        bundle.seek(0)
        yield bundle


def model_name(path: Path) -> str:
    """Return the name a model on disk has: its package's, or that of its folder or file.

    Raises:
        PackageError: When there is nothing.
    """
    if not path.exists():
        raise PackageError(f"no model at {path}", "Give a package, a SavedModel folder or an ONNX file")
    if path.is_file():
        return path.name.removesuffix(".onnx")
    try:
        return str(json.loads((path / _MANIFEST).read_text())["name"])
    except FileNotFoundError:
        return path.resolve().name
    except (ValueError, KeyError, TypeError):
        raise PackageError(
            f"{path / _MANIFEST} is damaged", "Give the folder that mlaas train wrote"
        ) from None


def write_bundle(path: Path, name: str, file: IO[bytes]) -> None:
    """Write a package, a SavedModel folder or an ONNX file (its weights beside it along) as a tar.

    Raises:
        PackageError: When it is none of these.
    """
    if path.is_dir() and ((path / _MANIFEST).is_file() or (path / "saved_model.pb").is_file()):
        members = [(path, name)]
    elif path.is_file() and path.suffix == ".onnx":
        weights = sorted(path.parent.glob(f"{path.name}[._]*"))
        members = [(file_, f"{name}/{file_.name}") for file_ in (path, *weights)]
    else:
        raise PackageError(
            f"{path} is no model", "Give a package, a SavedModel folder, an ONNX file or a tar of one"
        )
    with tarfile.open(fileobj=file, mode="w", dereference=True) as tar:
        if path.is_file():
            top = tarfile.TarInfo(name)
            top.type, top.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(top)
        for source, target in members:
            tar.add(source, target)
