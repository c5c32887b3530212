"""Sample: the few validation events that a package carries along, with the network's answers."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.hashing import mix
from mlaas_ray.training.batches import block_arrays
from mlaas_ray.training.group import Group

ROWS = 256
COLUMNS = ("x", "dataset", "file", "entry")

Rows = dict[str, npt.NDArray[Any]]


class Sampler:
    """Chooses events by a hash of their identifiers: the same ones, whichever rank holds them.

    Args:
        width: Columns of ``x``.
        rows: Events wanted.
    """

    def __init__(self, width: int, rows: int = ROWS) -> None:
        self._rows = rows
        self.seen = False
        self._best: Rows = {
            "x": np.empty((0, width), np.float32),
            "dataset": np.empty(0, np.int32),
            "file": np.empty(0, np.int32),
            "entry": np.empty(0, np.int64),
        }

    def watch(self, tables: Iterable[Any]) -> Iterator[Any]:
        """Give Arrow tables on, and remember of the first pass over them the events to choose from."""
        for table in tables:
            if not self.seen:
                for arrays in block_arrays(table, COLUMNS):
                    few = np.argsort(_hash(arrays), kind="stable")[: self._rows]
                    part = {name: arrays[name][few] for name in COLUMNS}
                    self._best = _smallest([self._best, part], self._rows)
            yield table
        self.seen = True

    def chosen(self, group: Group) -> Rows:
        """Return ``x``, ``dataset``, ``file`` and ``entry`` of the events; all ranks must call together."""
        return _smallest(group.gather_objects(self._best), self._rows)


def write_sample(folder: Path, sample: Rows, prediction: npt.NDArray[np.float32]) -> None:
    """Write ``sample.npz``: the events, and the trained network's answers ``(events,)``."""
    # numpy.savez takes no array of the name "file"
    with zipfile.ZipFile(folder / "sample.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in {**sample, "prediction": prediction}.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.ascontiguousarray(values), allow_pickle=False)


def _smallest(parts: list[Rows], rows: int) -> Rows:
    joined = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    chosen = np.argsort(_hash(joined), kind="stable")[:rows]
    return {name: values[chosen] for name, values in joined.items()}


def _hash(arrays: Rows) -> npt.NDArray[np.uint64]:
    """Mix dataset, file and entry into one number."""
    value = np.zeros(len(arrays["entry"]), dtype=np.uint64)
    for name in ("dataset", "file", "entry"):
        value ^= arrays[name].astype(np.int64).view(np.uint64)
        value = mix(value + np.uint64(0x9E3779B97F4A7C15))
    return value
