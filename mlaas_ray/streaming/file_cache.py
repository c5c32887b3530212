"""Copies of remote files on a node's own disk, shared by all its processes, within a limit of bytes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mlaas_ray.core.errors import FileUnreadableError
from mlaas_ray.core.location import locate
from mlaas_ray.streaming.settings import Cache
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.transport import ByteSource, open_bytes

log = logging.getLogger(__name__)

# Asked for at once: the transport makes several requests of it, which are under way together (bytes).
STEP = 64 << 20
# Copies that a process keeps from being deleted: those it used last, twice as many as it keeps open.
HELD = 16

_COPY, _PART, _LOCK = ".copy", ".part", ".lock"


def cached(source: Source, cache: Cache) -> Source:
    """Make sure that a remote file has a copy here, if that can be had.

    A copy is known by its URL, size and checksum. Whoever comes first downloads it, and other processes wait
    for that. Copies used least recently make room, but none that a process of this node has just used. What
    cannot be copied (no room, a full disk, a broken download) is read where it lies, with a warning.

    Args:
        source: The file; a local one is returned as it is.
        cache: Where copies lie, and how large they may be in total.

    Returns:
        The source with ``local``, the path of its copy; or as it was.
    """
    if locate(source.path).is_local or source.local is not None:
        return source
    folder = Path(cache.folder).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return replace(source, local=str(_copied(source, folder, cache.max_bytes)))
    except OSError as error:  # among them our own errors about files
        log.warning("%s is read where it lies, without a copy: %s", source, error)
        return source


def _copied(source: Source, folder: Path, max_bytes: int) -> Path:
    """Return the path of a whole copy, which this process holds from now on."""
    with contextlib.ExitStack() as stack:
        opened: ByteSource | None = None
        size = source.size
        if size is None:
            opened = open_bytes(source)
            stack.callback(opened.close)
            size = opened.size
        if size > max_bytes:
            raise OSError(f"its {size:,} bytes are more than the cache may hold ({max_bytes:,})")
        identity = f"{source.path} {size} {source.adler32}"
        copy = folder / (hashlib.sha256(identity.encode()).hexdigest()[:32] + _COPY)
        while not _hold(copy, size):
            with _claimed(copy) as part:
                if part is None:  # somebody has just finished it
                    continue
                if opened is None:
                    opened = open_bytes(source)
                    stack.callback(opened.close)
                _reserve(folder, part, size, max_bytes)
                _download(opened, part, source.adler32)
                os.rename(copy.with_suffix(_PART), copy)
        return copy


def _download(opened: ByteSource, part: int, adler32: str | None) -> None:
    """Write a file into an open one of its size.

    Raises:
        FileUnreadableError: When it cannot be read, or its checksum is not the catalogue's.
        OSError: When it cannot be written.
    """
    from isal import isal_zlib  # eight times as fast as the standard library's

    value = 1
    for start in range(0, opened.size, STEP):
        [data] = opened.read([(start, min(start + STEP, opened.size))])
        value = isal_zlib.adler32(data, value)
        written = 0
        while written < len(data):
            written += os.pwrite(part, data[written:], start + written)
    if adler32 is not None and f"{value:08x}" != adler32.lower().rjust(8, "0"):
        raise FileUnreadableError(
            f"the checksum (adler32) of {opened.path} is {value:08x}, and the catalogue has {adler32}",
            "It is damaged, or another file",
        )
    os.fsync(part)  # or a crash of the node may leave zeros under a whole file's name


@contextlib.contextmanager
def _claimed(copy: Path) -> Iterator[int | None]:
    """Give the file to download into, locked against all others; None when the copy is there by now.

    Whoever waits here waits for the download. The lock ends with the process that holds it, and what one that
    died has left is written anew.
    """
    path = copy.with_suffix(_PART)
    part = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(part, fcntl.LOCK_EX)
        if not _is_at(part, path):  # renamed or deleted while we waited
            yield None
            return
        if copy.exists():
            path.unlink()
            yield None
            return
        try:
            yield part
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    finally:
        os.close(part)


def _reserve(folder: Path, part: int, size: int, max_bytes: int) -> None:
    """Take the room for a file, deleting what was used least recently.

    Raises:
        OSError: When there is not enough room even so.
    """
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.ftruncate(part, 0)
        there = _by_age(folder)
        total = sum(size for _, size, _ in there)
        for _, bytes_, path in there:
            if total + size <= max_bytes:
                break
            if _delete(path):
                total -= bytes_
        if total + size > max_bytes:
            raise OSError(f"the cache {folder} is full of files in use ({total:,} bytes)")
        if size:
            os.posix_fallocate(part, 0, size)  # a full disk is told now, not in the middle
    finally:
        os.close(lock)


def _by_age(folder: Path) -> list[tuple[int, int, Path]]:
    """Return when each file of a cache was last used, its bytes and its path; the oldest first."""
    found = []
    for path in folder.iterdir():
        if path.suffix in (_COPY, _PART):
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_size, path))
    return sorted(found)


def _delete(path: Path) -> bool:
    """Delete a file of the cache, unless somebody uses or writes it."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(file)


# By path: the open file whose shared lock keeps a copy from being deleted.
_held: OrderedDict[Path, int] = OrderedDict()
_held_lock = threading.Lock()


def _hold(copy: Path, size: int) -> bool:
    """Keep a copy until this process has used ``HELD`` others; False when it is not there."""
    with _held_lock:
        file = _held.pop(copy, None)
        if file is None:
            try:
                file = os.open(copy, os.O_RDONLY)
            except FileNotFoundError:
                return False
            fcntl.flock(file, fcntl.LOCK_SH)
        if not _is_at(file, copy) or os.fstat(file).st_size != size:  # deleted, or not what we wrote
            os.close(file)
            copy.unlink(missing_ok=True)
            return False
        with contextlib.suppress(PermissionError):  # another user's
            os.utime(file)
        _held[copy] = file
        while len(_held) > HELD:
            os.close(_held.popitem(last=False)[1])
        return True


def _is_at(file: int, path: Path) -> bool:
    """Tell whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
