"""Storage: folders that cannot be written to are told in one line that names them."""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlaas_ray.core.errors import MlaasError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
ROOM = "Make room there"


@contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """Tell what the operating system says to the writing in a block.

    Args:
        place: Where the block writes.

    Raises:
        StorageError: Naming it.
    """
    try:
        yield
    except MlaasError:
        raise
    except OSError as error:
        raise refused(place, error) from error


def refused(place: str | Path, error: Exception, doing: str = "write to") -> StorageError:
    """Return the error that says that something cannot be done with a place, and why."""
    number = getattr(error, "errno", None)
    reason = (number in _FULL + _CLOSED and getattr(error, "strerror", None)) or " ".join(
        (str(error) or type(error).__name__).split()
    )
    if number in _FULL:
        remedy = ROOM
    elif number in _CLOSED:
        remedy = "Make it writable, or choose another folder"
    elif str(place).startswith("s3"):
        remedy = "Check the bucket's name, the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        remedy += "~/.aws) and AWS_ENDPOINT_URL"
    else:
        remedy = "Look at that folder"
    return StorageError(f"cannot {doing} {place}: {reason.rstrip('.')}", remedy)


def check_room(folder: str | Path, wanted: int) -> None:
    """See that a file system has room for so many bytes.

    Raises:
        StorageError: When it has not; a folder that is not there has as much as the one above it.
    """
    place = _there(Path(folder))
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise StorageError(
            f"no room in {folder}: {free / 1e6:,.1f} MB are free, and {wanted / 1e6:,.1f} MB are wanted", ROOM
        )


def check_writable(folder: str | Path, wanted: int = 0) -> None:
    """Write a small file into a folder, or where it will be made, and delete it.

    Args:
        folder: The folder.
        wanted: Bytes that must be free there.

    Raises:
        StorageError: When it cannot be written to.
    """
    place = _there(Path(folder))
    with writing(place):
        check_room(folder, wanted)
        trial = place / f".mlaas-{uuid.uuid4().hex}"
        try:
            trial.write_bytes(bytes(4096))
        finally:
            trial.unlink(missing_ok=True)


def _there(folder: Path) -> Path:
    """Return the folder, or the nearest above it that there is."""
    return next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))
