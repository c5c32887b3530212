"""Memo: what earlier first passes learnt, kept on disk by content, so that nothing is looked at twice.

Three kinds of entries, each a compressed JSON file named by the SHA-256 of its key:

- ``file``: a path's or URL's state (size and time of change) to the identifier of the file that lay there;
- ``visit``: an identifier, size and request to what was learnt of that file;
- ``total``: the states of all files of a first pass and its request to its whole result.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from mlaas_ray.core.cache import cache_folder
from mlaas_ray.core.statistics import Sketches
from mlaas_ray.streaming.events import Branch
from mlaas_ray.streaming.scan import Request, ScannedFile
from mlaas_ray.streaming.source import Source

if TYPE_CHECKING:
    from mlaas_ray.streaming.visit import Job, Visit

# Part of every key: raise it when measuring changes, and what older versions wrote is not found.
VERSION = 3
MOST_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Memo:
    """Entries in a folder; pickles.

    Attributes:
        folder: Where they are.
    """

    folder: Path

    def get(self, kind: str, key: Any) -> Any:
        """Return what was put, or None; what is damaged counts as not there."""
        try:
            content = orjson.loads(zlib.decompress(self._path(kind, key).read_bytes()))
        except (OSError, zlib.error, ValueError):
            return None
        return content["value"] if isinstance(content, dict) and content.get("key") == _plain(key) else None

    def put(self, kind: str, key: Any, value: Any) -> None:
        """Keep a JSON document; a folder that cannot be written to keeps nothing."""
        path = self._path(kind, key)
        content = zlib.compress(orjson.dumps({"key": _plain(key), "value": value}), 1)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            # another process may read or write the same
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                os.replace(name, path)
            except OSError:
                os.unlink(name)

    def trim(self, most: int = MOST_BYTES) -> None:
        """Delete the entries written longest ago until the rest fits."""
        entries = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):
                state = path.stat()
                entries.append((state.st_mtime, state.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= most:
                break
            path.unlink(missing_ok=True)
            total -= size

    def visit(self, uuid: str, size: int, job: Job, request: Request) -> Visit | None:
        """Return what is known of a file, by its content."""
        from mlaas_ray.streaming.visit import Visit

        found = self.get("visit", visit_key(uuid, size, job, request))
        if found is None:
            return None
        try:
            sketches = Sketches.from_document(found["sketches"]) if found["sketches"] else None
            file = unpack_file(found["file"], job.source, job.dataset)
            return Visit(file, sketches, found["events"], digests=found["digests"])
        except (KeyError, TypeError, ValueError):
            return None

    def put_visit(self, visit: Visit, job: Job, request: Request) -> None:
        """Keep what was learnt of a file."""
        sketches = visit.sketches.document() if visit.sketches is not None else None
        value = {
            "file": pack_file(visit.file),
            "sketches": sketches,
            "events": visit.events,
            "digests": dict(visit.digests),
        }
        self.put("visit", visit_key(visit.file.uuid, visit.file.size, job, request), value)

    def _path(self, kind: str, key: Any) -> Path:
        text = orjson.dumps([VERSION, _plain(key)], option=orjson.OPT_SORT_KEYS)
        return self.folder / kind / f"{hashlib.sha256(text).hexdigest()}.json.z"


def open_memo() -> Memo | None:
    """Return this user's memo, by ``MLAAS_CACHE`` (a folder, or ``off``) or in the usual place."""
    folder = cache_folder("first_pass")
    return None if folder is None else Memo(folder)


def visit_key(uuid: str, size: int, job: Job, request: Request) -> Any:
    """Return what decides the result of a visit."""
    absent = [[branch.name, branch.kind, branch.length, branch.dtype] for branch in job.absent]
    return [uuid, size, job.tree, job.measure, job.stop, absent, request.document()]


def pack_file(file: ScannedFile) -> dict[str, Any]:
    """Return a file's metadata as JSON, without where it lies."""
    return {
        "tree": file.tree,
        "format": file.format,
        "uuid": file.uuid,
        "size": file.size,
        "entries": file.entries,
        "boundaries": list(file.boundaries),
        "bytes": file.bytes,
        "beside": list(file.beside),
        **pack_layout(file),
    }


def pack_layout(file: ScannedFile) -> dict[str, Any]:
    """Return what is the same in most files of a dataset."""
    return {
        "branches": [asdict(branch) for branch in file.branches.values()],
        "chosen": {name: list(shape) for name, shape in file.chosen.items()},
        "left_out": dict(file.left_out),
    }


def unpack_file(content: Mapping[str, Any], source: Source, dataset: int) -> ScannedFile:
    """Make what :func:`pack_file` returned."""
    return ScannedFile(
        source=source,
        dataset=dataset,
        tree=content["tree"],
        format=content["format"],
        uuid=content["uuid"],
        size=content["size"],
        entries=content["entries"],
        boundaries=tuple(content["boundaries"]),
        bytes=content["bytes"],
        beside=tuple(content["beside"]),
        **unpack_layout(content),
    )


def unpack_layout(content: Mapping[str, Any]) -> dict[str, Any]:
    """Make what :func:`pack_layout` returned."""
    return {
        "branches": {branch["name"]: Branch(**branch) for branch in content["branches"]},
        "chosen": {name: (kind, length) for name, (kind, length) in content["chosen"].items()},
        "left_out": dict(content["left_out"]),
    }


def _plain(key: Any) -> Any:
    """Return a key as JSON would give it back."""
    return orjson.loads(orjson.dumps(key))
