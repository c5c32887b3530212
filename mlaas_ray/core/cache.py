"""The folder of this user in which layers keep what they would otherwise have to find out again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """Return where a layer's entries lie, which need not exist yet.

    Args:
        name: The layer's folder within the cache.

    Returns:
        The folder below the one that ``MLAAS_CACHE`` names, else below ``mlaas_ray`` in ``XDG_CACHE_HOME`` or
        ``~/.cache``; None when ``MLAAS_CACHE`` is ``off``.
    """
    wish = os.environ.get("MLAAS_CACHE", "")
    if wish.lower() in {"off", "0", "no", "none"}:
        return None
    if wish:
        return Path(wish).expanduser().absolute() / name
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "mlaas_ray" / name
