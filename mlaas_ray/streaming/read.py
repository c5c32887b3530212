"""read_root: ROOT files to a Ray Dataset in one call; read_events: what a first pass found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import ray.data

from mlaas_ray.core.errors import JobError
from mlaas_ray.core.features import FeatureSpec, Normalisation
from mlaas_ray.core.inputs import Inputs, ObjectSettings
from mlaas_ray.streaming.files import Files
from mlaas_ray.streaming.first_pass import FirstPass, Sample, first_pass
from mlaas_ray.streaming.root_datasource import RootDatasource, row_bytes

# A read task's block: large enough that Ray's cost per block vanishes, small enough for many in memory.
BLOCK_BYTES = 100_000_000
# Fewer blocks than this would leave workers without work, and classes badly mixed.
MIN_BLOCKS = 16
MIN_BLOCK_EVENTS = 1_000


def read_root(
    files: Files,
    tree: str | None = None,
    *,
    features: FeatureSpec | None = None,
    branches: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    lengths: Mapping[str, int] | None = None,
    label: float = 0.0,
    normalisation: Normalisation = "minmax",
    part: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    shuffle: bool = False,
    progress: bool | None = None,
) -> ray.data.Dataset:
    """Read events of ROOT files as rows of fixed size.

    Args:
        files: Paths, globs, folders, text files of them, ``root://`` URLs; one or several.
        tree: Name of the tree; None for the only one of each file, or ``Events`` among several.
        features: The columns; None to find them in a first pass over the files.
        branches: Branch names or globs to read, when there are no features; None for every numeric branch.
        exclude: Branch names or globs to leave out.
        lengths: Objects to keep of each event by collection, ``{"Jet": 8}``; otherwise the largest
            multiplicity seen.
        label: Class of the events: the column ``y``.
        normalisation: Written into the features that the first pass makes.
        part: Part of the events, ``(0.0, 0.8)`` for one and ``(0.8, 1.0)`` for the rest of a split.
        seed: Seed of the split and of the order.
        shuffle: Whether shards come in an order drawn from the seed, or in the order of the files.
        progress: Whether the first pass shows a bar; None for only on a terminal.

    Returns:
        Columns ``x`` float32 ``(features,)`` with NaN where there is no value, ``y``, ``weight``,
        ``dataset``, ``file``, ``entry``.

    Raises:
        DataError: Naming the file, tree and branch that cannot be used.

    Example:
        >>> events = read_root("ttbar/*.root", branches=["MET_pt", "Jet_*"], label=1)  # doctest: +SKIP
        >>> events.take_batch(2)["x"].shape  # doctest: +SKIP
        (2, 53)
    """
    if features is not None and (branches is not None or exclude or lengths):
        raise JobError("features say which branches are read", "Give features, or branches/exclude/lengths")
    found = first_pass(
        [Sample(files, tree, label)],
        Inputs(
            include=branches,
            exclude=exclude,
            objects={name: ObjectSettings(length=length) for name, length in (lengths or {}).items()},
            normalise=normalisation,
        ),
        features=features,
        progress=progress,
    )
    return read_events(found, part=part, seed=seed, shuffle=shuffle)


def read_events(
    found: FirstPass, *, part: tuple[float, float] = (0.0, 1.0), seed: int = 0, shuffle: bool = False
) -> ray.data.Dataset:
    """Read the events of all samples of a first pass; columns and arguments as in :func:`read_root`."""
    target = min(BLOCK_BYTES // row_bytes(found.features), max(MIN_BLOCK_EVENTS, found.entries // MIN_BLOCKS))
    shards = found.shards(max(1, target))
    if shuffle:
        shards = [shards[i] for i in np.random.default_rng(seed).permutation(len(shards))]
    source = RootDatasource(shards, found.features, part=part, seed=seed)
    # Without a number Ray would split the blocks into about 200.
    events: ray.data.Dataset = ray.data.read_datasource(source, override_num_blocks=len(shards))
    return events
