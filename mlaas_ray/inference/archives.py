"""Archives from strangers: a tar or tar.gz unpacked into a folder, or refused, with nothing outside it."""

from __future__ import annotations

import io
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from mlaas_ray.core.errors import PackageError

MEMBERS = 10_000
DEPTH = 12
# What tarfile reads in one piece: contents come in small portions, but a header is read as long as it says.
_LONGEST_READ = 1 << 20
_CHUNK = 1 << 16
_REMEDY = "Send a tar or tar.gz of one folder, made with: tar czf model.tar.gz model"


class TooLargeError(PackageError):
    """More than the service takes."""


def unpack(archive: Path, folder: Path, limit: int) -> str:
    """Unpack a tar or tar.gz of one top folder; compression is told by the content.

    Only plain files and folders are taken; anything that is, or could lead, elsewhere is refused.

    Args:
        archive: The file.
        folder: Where the top folder's content goes; exists.
        limit: Most bytes after decompression.

    Returns:
        The name of the top folder.

    Raises:
        PackageError: When it is no tar, has another shape, or tries tricks.
        TooLargeError: When it is larger than the limit.
    """
    with archive.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    plain = archive
    if gzipped:
        plain = archive.with_name(archive.name + ".tar")
        _gunzip(archive, plain, limit)
    try:
        with _Guarded(io.FileIO(plain)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return _extract(tar, folder, limit)
    except PackageError:
        raise
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise PackageError(f"not a tar archive: {error}", _REMEDY) from None
    finally:
        if gzipped:
            plain.unlink(missing_ok=True)


def _extract(tar: tarfile.TarFile, folder: Path, limit: int) -> str:
    top: str | None = None
    left = limit
    for count, member in enumerate(tar, start=1):
        if count > MEMBERS:
            raise TooLargeError(f"more than {MEMBERS} files", "Upload a smaller model")
        parts = _parts(member.name)
        if not parts:  # "./"
            continue
        if not (member.isdir() or member.isreg()) or member.issparse():
            raise PackageError(f"{member.name!r} is no plain file or folder", _REMEDY)
        if top is not None and parts[0] != top:
            raise PackageError(f"the archive has several top folders: {top!r} and {parts[0]!r}", _REMEDY)
        if len(parts) == 1 and not member.isdir():
            raise PackageError(f"{member.name!r} lies outside the archive's top folder", _REMEDY)
        top = parts[0]
        target = folder.joinpath(*parts[1:])
        left -= member.size
        if left < 0:
            raise TooLargeError(f"more than {limit} bytes once unpacked", "Upload a smaller model")
        try:
            _write(tar, member, target)
        except (FileExistsError, NotADirectoryError):
            raise PackageError(f"{member.name!r} is in the archive twice", _REMEDY) from None
    if top is None:
        raise PackageError("the archive is empty", _REMEDY)
    return top


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    if source is None:
        raise PackageError(f"{member.name!r} is no plain file", _REMEDY)
    with source, target.open("xb") as file:
        shutil.copyfileobj(source, file, _CHUNK)


def _parts(name: str) -> tuple[str, ...]:
    """Split a member's name, or refuse it.

    Raises:
        PackageError: For an absolute name, one that climbs, one too deep, and one with odd characters.
    """
    path = PurePosixPath(name)
    parts = path.parts
    odd = any(ord(letter) < 32 or letter == "\\" for letter in name)
    if path.is_absolute() or ".." in parts or odd or len(parts) > DEPTH:
        raise PackageError(f"{name[:200]!r} leads out of the archive, or is no portable name", _REMEDY)
    if any(len(part.encode()) > 200 for part in parts):
        raise PackageError(f"{name[:60]!r}… is too long a name", _REMEDY)
    return parts


def _gunzip(source: Path, target: Path, limit: int) -> None:
    """Decompress into a new file, up to a limit: a few kilobytes can say gigabytes."""
    # Room for the headers and padding of a tar of the limit's size.
    left = limit + MEMBERS * 1024
    unpacker = zlib.decompressobj(wbits=31)
    try:
        with source.open("rb") as compressed, target.open("xb") as plain:
            data = compressed.read(_CHUNK)
            while data and not unpacker.eof:
                chunk = unpacker.decompress(data, _CHUNK)
                left -= len(chunk)
                if left < 0:
                    raise TooLargeError(f"more than {limit} bytes once unpacked", "Upload a smaller model")
                plain.write(chunk)
                data = unpacker.unconsumed_tail or compressed.read(_CHUNK)
            if not unpacker.eof:
                raise PackageError("the gzip data ends too early", "Send the whole file")
    except zlib.error as error:
        target.unlink(missing_ok=True)
        raise PackageError(f"damaged gzip data: {error}", _REMEDY) from None
    except PackageError:
        target.unlink(missing_ok=True)
        raise


class _Guarded(io.BufferedReader):
    """A file whose reads are bounded, so that a header which claims to be huge is not believed."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or size > _LONGEST_READ:
            raise tarfile.ReadError("a header is too long")
        return super().read(size)
