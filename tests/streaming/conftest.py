"""Small ROOT files, written for the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

Writer = Callable[..., Path]


@pytest.fixture
def write_tree(tmp_path: Path) -> Writer:
    """Write a TTree: ``write_tree("a.root", events=100, clusters=4)``; its events differ by seed."""

    def write(
        name: str = "a.root",
        *,
        events: int = 100,
        clusters: int = 4,
        seed: int = 0,
        tree: str = "Events",
        extra: dict[str, Any] | None = None,
    ) -> Path:
        random = np.random.default_rng(seed)
        counts = random.integers(0, 4, events)
        arrays: dict[str, Any] = {
            "event": np.arange(events, dtype=np.int64),
            "MET_pt": random.exponential(30.0, events).astype(np.float32),
            "Jet_pt": ak.unflatten(random.exponential(40.0, counts.sum()).astype(np.float32), counts),
            "Jet_id": ak.unflatten(random.integers(0, 7, counts.sum()).astype(np.int32), counts),
            **(extra or {}),
        }
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with uproot.recreate(path) as file:
            types = {key: getattr(array, "type", None) or array.dtype for key, array in arrays.items()}
            out = file.mktree(tree, types)
            for part in np.array_split(np.arange(events), clusters):
                if len(part):
                    out.extend({key: array[part[0] : part[-1] + 1] for key, array in arrays.items()})
        return path

    return write


def damage(path: Path, branch: str) -> None:
    """Overwrite a part of a branch's first basket with zeros."""
    with uproot.open(path) as file:
        basket = file["Events"][branch].member("fBasketSeek")[0]
    content = bytearray(path.read_bytes())
    content[basket + 200 : basket + 264] = bytes(64)
    path.write_bytes(content)
