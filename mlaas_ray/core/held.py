"""Held folders: what is half made goes with whoever makes it, also when that process is killed.

A held folder has a locked file beside its content. The kernel takes the lock from a process that dies, so
:func:`sweep` can tell, from any process that sees the folder, what nobody makes any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

# Where no lock tells, as on some network file systems, this old is abandoned, seconds.
ABANDONED_S = 86_400
_LOCK, _CONTENT, _NEW = "lock", "content", "new-"


@contextlib.contextmanager
def held_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Give an empty folder to work in, which is removed when the block ends.

    Args:
        parent: Where it is made.
        prefix: What its name begins with, for :func:`sweep`.
    """
    # it has its name when it is locked, and not before
    new = Path(tempfile.mkdtemp(prefix=f"{prefix}{_NEW}", dir=parent))
    folder = new.with_name(f"{prefix}{uuid.uuid4().hex}")
    try:
        with (new / _LOCK).open("wb") as lock:
            with contextlib.suppress(OSError):  # some network file systems know no locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            (new / _CONTENT).mkdir()
            new.rename(folder)
            yield folder / _CONTENT
    finally:
        for one in (new, folder):
            shutil.rmtree(one, ignore_errors=True)


def sweep(parent: Path, prefix: str) -> list[Path]:
    """Remove the folders that nobody holds any more, and return them."""
    swept = []
    for folder in parent.glob(f"{prefix}*"):
        # another may sweep it too
        with contextlib.suppress(OSError):
            if not _is_held(folder, certain=not folder.name.startswith(f"{prefix}{_NEW}")):
                shutil.rmtree(folder)
                swept.append(folder)
    return swept


def is_old(path: Path) -> bool:
    """Tell whether something changed so long ago that nobody makes it any more."""
    return path.lstat().st_mtime < time.time() - ABANDONED_S


def _is_held(folder: Path, *, certain: bool) -> bool:
    if certain:
        try:
            with (folder / _LOCK).open("rb+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return False
        except BlockingIOError:
            return True
        except OSError:  # it has no lock, or locks are not known here
            pass
    return not is_old(folder)
