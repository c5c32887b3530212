"""RunFolder: where a training run keeps what it makes, on a file system or in an object store."""

from __future__ import annotations

import atexit
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from mlaas_ray.core.errors import JobError, MlaasError
from mlaas_ray.core.location import locate
from mlaas_ray.core.storage import check_writable, refused
from mlaas_ray.workflows.cluster import durable

# Bytes that the smallest run leaves: two checkpoints, pictures, report and package.
ROOM_OF_A_RUN = 16_000_000


class RunFolder:
    """One run's folder.

    Args:
        url: Path, or URL such as ``s3://bucket/runs/higgs-1``.

    Raises:
        JobError: When nobody here writes to such a place.
    """

    def __init__(self, url: str | Path) -> None:
        text = str(url)
        protocol, separator, _ = text.partition("://")
        if not separator or protocol == "file":
            text = str(durable(locate(text).path if separator else text))
        self.url = text.rstrip("/")
        try:
            if protocol in ("http", "https"):
                raise ValueError("HTTP is for reading")
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError, OSError) as error:
            remedy = "pip install 'mlaas-ray[s3]'" if text.startswith("s3") else "Give a folder, or s3://…"
            raise JobError(f"cannot keep runs in {text}: {error}", remedy) from None
        self.is_local = "://" not in self.url

    def __str__(self) -> str:
        return self.url

    def place(self, *names: str) -> str:
        """Return the path or URL of something in the folder."""
        return posixpath.join(self.url, *names)

    def check(self) -> None:
        """Try to write here, before hours are spent on what would have to be kept here.

        Raises:
            StorageError: When that is not possible, or there is no room for the smallest run.
        """
        if self.is_local:
            check_writable(self._root, ROOM_OF_A_RUN)
            return
        with self._access():
            trial = self._inside(f".mlaas-{uuid.uuid4().hex}")
            self._fs.pipe_file(trial, b"")
            self._fs.rm_file(trial)

    def exists(self, name: str) -> bool:
        """Tell whether there is a file or folder of that name."""
        with self._access("read"):
            return bool(self._fs.exists(self._inside(name)))

    def read(self, name: str) -> str | None:
        """Return a file's text; None when there is none."""
        with self._access("read"):
            try:
                content: bytes = self._fs.cat_file(self._inside(name))
            except FileNotFoundError:
                return None
        return content.decode()

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file; a reader sees all of it or what was there before."""
        data = content.encode() if isinstance(content, str) else content
        with self._access():
            if not self.is_local:
                self._fs.pipe_file(self._inside(name), data)
                return
            target = Path(self._inside(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            passing = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
            try:
                passing.write_bytes(data)
                passing.replace(target)
            finally:
                passing.unlink(missing_ok=True)

    def put(self, folder: Path, name: str, *, last: str | None = None) -> None:
        """Copy a folder of this machine into the run's; the file ``last`` comes after all others."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: path.name == last):
            target = posixpath.join(self._inside(name), path.relative_to(folder).as_posix())
            with self._access():
                if self.is_local:
                    Path(target).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
                else:
                    self._fs.put_file(str(path), target)

    def fetch(self, name: str) -> Path:
        """Return a folder of the run as one of this machine; a copy lives until the process ends."""
        if self.is_local:
            return Path(self._inside(name))
        copy = scratch() / name
        with self._access("read"):
            self._fs.get(self._inside(name), str(copy), recursive=True)
        return copy

    def _inside(self, name: str) -> str:
        return posixpath.join(self._root, name)

    @contextmanager
    def _access(self, doing: str = "write to") -> Iterator[None]:
        """Tell what a file system or an object store says, in one line."""
        try:
            yield
        except MlaasError:
            raise
        except Exception as error:  # each object store has errors of its own
            if self.is_local and not isinstance(error, OSError):
                raise
            raise refused(self.url, error, doing) from error


def scratch() -> Path:
    """Return a new folder of this machine that is gone when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="mlaas-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def filesystem(url: str) -> tuple[str, Any]:
    """Return what Ray Train needs to write to a place: a path, and pyarrow's file system (None for local)."""
    if "://" not in url:
        return url, None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = fsspec.core.url_to_fs(url)
    return path, PyFileSystem(FSSpecHandler(fs))
