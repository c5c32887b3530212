"""Repository: versions of named model packages in a folder, laid out ``<name>/<version>/…``.

A version is a package directory. It is filled beside its place and renamed into it, so that readers, of
which there may be many on many machines, see it whole or not at all. Version numbers count from 1 and are
never used twice, even after a deletion: what an answer was made with stays unambiguous. The numbers
given so far are kept as empty folders, ``.numbers/<name>/<version>``. An alias is a file with the number of
the version it stands for, ``.aliases/<name>/<alias>``. What is half written is in folders and files whose
names begin with a dot: ``.draft-*``, ``.deleting-*``; :meth:`Repository.sweep` removes what a killed process
left of these.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlaas_ray.core.errors import (
    InvalidNameError,
    MlaasError,
    ModelMissingError,
    RepositoryError,
    RepositoryFullError,
    VersionMissingError,
    nearest,
)
from mlaas_ray.core.held import held_folder, is_old, sweep
from mlaas_ray.core.package import ModelPackage, check_name, staging

_NUMBER = re.compile("[1-9][0-9]*")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REMEDIES = {
    errno.ENOSPC: "Free some space, or delete versions that nobody asks for",
    errno.EDQUOT: "Free some space, or delete versions that nobody asks for",
    errno.EROFS: "Mount it so that it can be written to",
    errno.EXDEV: "Link the repository as a whole: a model's folder must not lie on another file system",
}

# A version's number or an alias of it; None for the latest.
Reference = int | str | None


@dataclass(frozen=True, order=True)
class ModelVersion:
    """A name and a version, written ``name:version``."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"

    @classmethod
    def parse(cls, text: str) -> tuple[str, Reference]:
        """Split ``name``, ``name:version`` or ``name:alias``; None when the latest version is meant.

        Raises:
            InvalidNameError: For a name, version or alias that cannot be.
        """
        name, separator, reference = text.partition(":")
        check_name(name)
        if not separator:
            return name, None
        if _NUMBER.fullmatch(reference):
            return name, int(reference)
        if not reference or reference[0].isdigit():
            raise InvalidNameError(f"{text!r} names no version", "Write NAME, NAME:3 or NAME:alias")
        return name, check_name(reference)


def check_alias(alias: str) -> str:
    """Return the alias of a version, or refuse it.

    Raises:
        InvalidNameError: For one that begins like a version's number, or no name a model could have.
    """
    if alias[:1].isdigit():
        raise InvalidNameError(f"{alias!r} cannot be an alias: it begins like a version", "Use a word")
    return check_name(alias)


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
            RepositoryError: When the folder cannot be written.
        """
        package.check()

        def fill(folder: Path) -> None:
            shutil.copytree(package.path, folder, dirs_exist_ok=True)

        return self.add(name or package.name, fill)

    def holding(self, package: ModelPackage, name: str) -> ModelVersion | None:
        """Return the newest version of a name that is this very package; None when there is none.

        Raises:
            PackageError: When the package, or one of those it is compared with, is damaged.
            InvalidNameError: For a name no model may have.
        """
        for number in reversed(self._numbers(self.root / check_name(name))):
            if ModelPackage(self.root / name / str(number)).digest == package.digest:
                return ModelVersion(name, number)
        return None

    def add(self, name: str, fill: Callable[[Path], object]) -> ModelVersion:
        """Make the next version by filling a folder, which then appears whole or not at all.

        Args:
            name: The model's name.
            fill: Writes a complete package into the folder it is given; called once.

        Raises:
            InvalidNameError: For a name no model may have.
            PackageError: When what was filled in is no package.
            RepositoryError: When the folder cannot be written.
        """
        check_name(name)
        with self.writing():
            self.root.mkdir(parents=True, exist_ok=True)
            with held_folder(self.root, ".draft-") as held:
                draft = held / name
                with staging(draft) as folder:
                    fill(folder)
                    ModelPackage(folder)
                (self.root / name).mkdir(exist_ok=True)
                version = self._next_number(name)
                draft.rename(self.root / name / str(version))
        return ModelVersion(name, version)

    def names(self) -> list[str]:
        """Return the names of all models, sorted."""
        if not self.root.is_dir():
            return []
        entries = (entry for entry in self.root.iterdir() if not entry.name.startswith("."))
        return sorted(entry.name for entry in entries if self._numbers(entry))

    def versions(self, name: str) -> list[int]:
        """Return the versions of a model, oldest first.

        Raises:
            ModelMissingError: When there is none.
        """
        check_name(name)
        numbers = self._numbers(self.root / name)
        if not numbers:
            known = self.names()
            empty = "The repository is empty" + ("" if self.root.is_dir() else ", there is no such folder")
            hint = nearest(name, known) if known else f"{empty}: publish one with mlaas train"
            raise ModelMissingError(f"no model {name!r} in {self.root}", hint)
        return numbers

    def latest(self, name: str) -> ModelVersion:
        """Return a model's newest version.

        Raises:
            ModelMissingError: When there is none.
        """
        return ModelVersion(name, self.versions(name)[-1])

    def find(self, text: str) -> ModelVersion:
        """Return the version that ``name``, ``name:version`` or ``name:alias`` stands for.

        Raises:
            InvalidNameError: For a name, version or alias that cannot be.
            ModelMissingError: When there is no such model.
            VersionMissingError: When the model has no such version or alias.
        """
        name, reference = ModelVersion.parse(text)
        return ModelVersion(name, self._number(name, reference))

    def get(self, name: str, version: Reference = None) -> ModelPackage:
        """Return a package of the repository, the newest version unless one is given.

        Raises:
            ModelMissingError: When there is no such model.
            VersionMissingError: When the model has no such version or alias.
        """
        return ModelPackage(self.root / name / str(self._number(name, version)))

    def aliases(self, name: str) -> dict[str, int]:
        """Return the aliases of a model's versions, sorted.

        Raises:
            ModelMissingError: When there is no such model.
        """
        numbers = self.versions(name)
        try:
            files = sorted((self.root / ".aliases" / name).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = {file.name: file.read_text().strip() for file in files if not file.name.startswith(".")}
        return {alias: int(text) for alias, text in found.items() if text.isdigit() and int(text) in numbers}

    def set_alias(self, name: str, alias: str, version: Reference = None) -> ModelVersion:
        """Let an alias stand for a version from now on; the newest one unless one is given.

        Raises:
            InvalidNameError: For an alias that cannot be, such as a number.
            ModelMissingError: When there is no such model.
            VersionMissingError: When the model has no such version.
            RepositoryError: When the folder cannot be written.
        """
        file = self.root / ".aliases" / name / check_alias(alias)
        number = self._number(name, version)
        with self.writing():
            file.parent.mkdir(parents=True, exist_ok=True)
            passing = file.with_name(f".{alias}-{uuid.uuid4().hex}")
            passing.write_text(f"{number}\n")
            passing.replace(file)
        return ModelVersion(name, number)

    def delete(self, name: str, version: Reference = None) -> list[ModelVersion]:
        """Take a version, or all of a model's, out of the repository, and the aliases of what is gone.

        Returns:
            What was deleted.

        Raises:
            ModelMissingError: When there is no such model.
            VersionMissingError: When the model has no such version or alias.
            RepositoryError: When the folder cannot be written.
        """
        numbers = self.versions(name) if version is None else [self._number(name, version)]
        gone = [alias for alias, number in self.aliases(name).items() if number in numbers]
        with self.writing():
            for number in numbers:
                # also for a version that was put here by hand
                self._given(name, number).mkdir(parents=True, exist_ok=True)
                # Out of sight in one step, then taken apart.
                grave = self.root / f".deleting-{uuid.uuid4().hex}"
                try:
                    (self.root / name / str(number)).rename(grave)
                except FileNotFoundError:  # another caller deleted it: what was asked for is so
                    continue
                _remove(grave)
            for alias in gone:
                (self.root / ".aliases" / name / alias).unlink(missing_ok=True)
        return [ModelVersion(name, number) for number in numbers]

    def sweep(self) -> list[Path]:
        """Remove what processes that were killed left half written, and return it."""
        swept = [path for prefix in (".draft-", ".incoming-") for path in sweep(self.root, prefix)]
        for grave in self.root.glob(".deleting-*"):
            _remove(grave)
            swept.append(grave)
        for pattern in (".aliases/*/.*", ".deployments/.*"):
            for file in self.root.glob(pattern):
                with contextlib.suppress(OSError):
                    if is_old(file):
                        file.unlink()
                        swept.append(file)
        return swept

    def _number(self, name: str, reference: Reference) -> int:
        """Return the number of a version there is."""
        numbers = self.versions(name)
        if isinstance(reference, str):
            aliases = self.aliases(name)
            if reference not in aliases:
                known = nearest(reference, aliases) if aliases else "It has no aliases"
                raise VersionMissingError(f"model {name!r} has no alias {reference!r}", known)
            return aliases[reference]
        number = numbers[-1] if reference is None else reference
        if number not in numbers:
            raise VersionMissingError(
                f"model {name!r} has no version {number}", f"It has: {', '.join(map(str, numbers))}"
            )
        return number

    def _next_number(self, name: str) -> int:
        """Take the next number of a name for good: one ``mkdir`` decides between publishers."""
        while True:
            numbers = {*self._numbers(self.root / name), *self._numbers(self.root / ".numbers" / name)}
            number = max(numbers, default=0) + 1
            with contextlib.suppress(FileExistsError):  # another publisher took it meanwhile
                self._given(name, number).mkdir(parents=True)
                return number

    def _given(self, name: str, number: int) -> Path:
        return self.root / ".numbers" / name / str(number)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Write into the folder while the block runs.

        Raises:
            RepositoryError: For what the operating system refuses, naming the cause.
        """
        try:
            yield
        except MlaasError:
            raise
        except OSError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> RepositoryError:
        """Say why the folder cannot be written to."""
        if self.root.is_symlink() and not self.root.exists():
            return RepositoryError(
                f"the repository {self.root} is a link that leads nowhere",
                "Make the folder it leads to, or correct it",
            )
        # several errors of a copy are one, which has no number but theirs in its text
        told = re.search(r"\[Errno (\d+)\]", str(error))
        number = error.errno or (int(told[1]) if told else 0)
        kind = RepositoryFullError if number in _FULL else RepositoryError
        what = f"write to the repository {self.root}"
        # a copy has two
        files = [str(file) for file in (error.filename, error.filename2) if file is not None]
        if files and not any(Path(file).is_relative_to(self.root) for file in files):
            what = f"read or write {files[0]}"
        return kind(
            f"cannot {what}: {os.strerror(number) if number else error}",
            _REMEDIES.get(number, "Check the folder's rights and free space"),
        )

    @staticmethod
    def _numbers(folder: Path) -> list[int]:
        """Return the numbered folders of a folder, in order."""
        try:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries if entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if _NUMBER.fullmatch(name))

    def list(self) -> list[ModelVersion]:
        """Return every version of every model, sorted."""
        return [
            ModelVersion(name, number) for name in self.names() for number in self._numbers(self.root / name)
        ]


def _remove(path: Path) -> None:
    """Remove a version's folder; of one that is a link, the link."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
