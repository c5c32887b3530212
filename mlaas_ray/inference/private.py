"""Private: where things lie on the service's machine, which is nobody's business who asks it."""

from __future__ import annotations

import functools
import os
import re
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from mlaas_ray.core.cache import cache_folder

# Folders that are made for an upload: their names say nothing.
_PASSING = (".", "bundle-", "mlaas-", "content")

_repositories: set[str] = set()


def hide(repository: Path) -> None:
    """Have answers of this process name what is in a repository by where it is within."""
    _repositories.update((str(repository), str(repository.resolve())))
    _pattern.cache_clear()


def without_paths(text: str) -> str:
    """Return a text in which files have no folders but those within the repository."""
    return _pattern().sub(_shown, text)


def all_without_paths(content: Any) -> Any:
    """Return JSON's lists and objects with :func:`without_paths` of every text."""
    if isinstance(content, str):
        return without_paths(content)
    if isinstance(content, dict):
        return {name: all_without_paths(value) for name, value in content.items()}
    return [all_without_paths(value) for value in content] if isinstance(content, list | tuple) else content


@functools.cache
def _pattern() -> re.Pattern[str]:
    cache = cache_folder("")
    folders = [tempfile.gettempdir(), sys.prefix, sys.base_prefix, str(Path.home()), os.getcwd()]
    folders += [str(Path(__file__).parents[2]), *([str(cache)] if cache else []), *_repositories]
    # the innermost first
    known = sorted({folder.rstrip("/") for folder in folders} - {""}, key=len, reverse=True)
    below = r"(?:/(?:[^\s'\",;:()]*[^\s'\",;:().])?)?"
    folder = rf"(?<![\w./-])(?P<folder>{'|'.join(map(re.escape, known))})(?![\w-])"
    return re.compile(rf"(?P<before>the repository )?{folder}(?P<below>{below})")


def _shown(found: re.Match[str]) -> str:
    parts = PurePosixPath(found["below"].lstrip("/")).parts
    if found["folder"] in _repositories:
        if not parts:
            return "the repository"
        hidden = [number for number, part in enumerate(parts) if part.startswith(".")]
        parts = parts[hidden[-1] + 1 :] if hidden else parts
    else:
        parts = tuple(part for part in parts[-1:] if not part.startswith(_PASSING))
    return (found["before"] or "") + ("/".join(parts) or "the model")
