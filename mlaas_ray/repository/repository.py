"""Repository: versions of named model packages in a folder, laid out ``<name>/<version>/…``.

A version is a package directory. It is filled beside its place and renamed into it, so that readers, of
which there may be many on many machines, see it whole or not at all. Version numbers count from 1 and are
never used twice, even after a deletion: what an answer was made with stays unambiguous.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlaas_ray.core.errors import (
    InvalidNameError,
    ModelMissingError,
    RepositoryError,
    VersionMissingError,
    nearest,
)
from mlaas_ray.core.package import ModelPackage, check_name, staging


@dataclass(frozen=True, order=True)
class ModelVersion:
    """A name and a version, written ``name:version``."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"

    @classmethod
    def parse(cls, text: str) -> tuple[str, int | None]:
        """Split ``name`` or ``name:version``; the version is None when the latest is meant.

        Raises:
            InvalidNameError: For a name or version that cannot be.
        """
        name, separator, version = text.partition(":")
        check_name(name)
        if not separator:
            return name, None
        if not (version.isascii() and version.isdigit()) or int(version) < 1:
            raise InvalidNameError(f"{text!r} names no version", "Write NAME or NAME:3")
        return name, int(version)


class Repository:
    """Model packages of a local (or mounted) folder.

    Args:
        root: The folder; made when the first package is published.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser().absolute()

    def __repr__(self) -> str:
        return f"Repository({str(self.root)!r})"

    def publish(self, package: ModelPackage, name: str | None = None) -> ModelVersion:
        """Copy a package into the repository as the next version of its name.

        Args:
            package: A package anywhere on this machine; its checksums are compared first.
            name: Publish under this name instead of the package's own.

        Raises:
            PackageError: When the package is damaged.
            InvalidNameError: For a name no model may have.
        """
        package.check()

        def fill(folder: Path) -> None:
            shutil.copytree(package.path, folder, dirs_exist_ok=True)

        return self.add(name or package.name, fill)

    def add(self, name: str, fill: Callable[[Path], object]) -> ModelVersion:
        """Make the next version by filling a folder, which then appears whole or not at all.

        Args:
            name: The model's name.
            fill: Writes a complete package into the folder it is given; called once.

        Raises:
            InvalidNameError: For a name no model may have.
            PackageError: When what was filled in is no package.
        """
        check_name(name)
        draft = self.root / f".draft-{uuid.uuid4().hex}"
        with staging(draft) as folder:
            fill(folder)
            ModelPackage(folder)
        (self.root / name).mkdir(exist_ok=True)
        try:
            while True:
                version = max([0, *self._numbers(self.root / name), *self._numbers(self._deleted(name))]) + 1
                try:
                    # Fails when another publisher took the number meanwhile: a version's folder is not empty.
                    draft.rename(self.root / name / str(version))
                except OSError:
                    if not (self.root / name / str(version)).exists():
                        raise
                else:
                    return ModelVersion(name, version)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise

    def names(self) -> list[str]:
        """Return the names of all models, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(entry.name for entry in self.root.iterdir() if self._numbers(entry))

    def versions(self, name: str) -> list[int]:
        """Return the versions of a model, oldest first.

        Raises:
            ModelMissingError: When there is none.
        """
        check_name(name)
        numbers = self._numbers(self.root / name)
        if not numbers:
            known = self.names()
            hint = nearest(name, known) if known else "The repository is empty: publish one with mlaas train"
            raise ModelMissingError(f"no model {name!r} in {self.root}", hint)
        return numbers

    def latest(self, name: str) -> ModelVersion:
        """Return a model's newest version.

        Raises:
            ModelMissingError: When there is none.
        """
        return ModelVersion(name, self.versions(name)[-1])

    def get(self, name: str, version: int | None = None) -> ModelPackage:
        """Return a package of the repository, the newest version unless one is given.

        Raises:
            ModelMissingError: When there is no such model.
            VersionMissingError: When the model has no such version.
        """
        numbers = self.versions(name)
        number = numbers[-1] if version is None else version
        if number not in numbers:
            raise VersionMissingError(
                f"model {name!r} has no version {number}", f"It has: {', '.join(map(str, numbers))}"
            )
        return ModelPackage(self.root / name / str(number))

    def delete(self, name: str, version: int | None = None) -> list[ModelVersion]:
        """Take a version, or all of a model's, out of the repository.

        Returns:
            What was deleted.

        Raises:
            ModelMissingError: When there is no such model.
            VersionMissingError: When the model has no such version.
        """
        numbers = self.versions(name) if version is None else [version]
        if version is not None:
            self.get(name, version)
        markers = self._deleted(name)
        markers.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            (markers / str(number)).mkdir(exist_ok=True)
            # Out of sight in one step, then taken apart.
            grave = self.root / f".deleting-{uuid.uuid4().hex}"
            try:
                (self.root / name / str(number)).rename(grave)
            except FileNotFoundError:  # another caller deleted it: what was asked for is so
                continue
            except OSError as error:
                raise RepositoryError(
                    f"cannot delete {name}:{number} in {self.root}: {error.strerror}",
                    "Check the folder's rights",
                ) from error
            shutil.rmtree(grave, ignore_errors=True)
        return [ModelVersion(name, number) for number in numbers]

    def _deleted(self, name: str) -> Path:
        return self.root / ".deleted" / name

    @staticmethod
    def _numbers(folder: Path) -> list[int]:
        """Return the numbered entries of a folder, in order."""
        try:
            entries = [entry.name for entry in os.scandir(folder)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(entry) for entry in entries if entry.isascii() and entry.isdigit())

    def list(self) -> list[ModelVersion]:
        """Return every version of every model, sorted."""
        return [
            ModelVersion(name, number) for name in self.names() for number in self._numbers(self.root / name)
        ]
