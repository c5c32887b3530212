"""Measure: the columns of some events to the sketches of what a model would see of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.columns import Column, Columns, Jagged
from mlaas_ray.core.hashing import mix
from mlaas_ray.core.inputs import Inputs
from mlaas_ray.core.prepare import prepare, rule_of
from mlaas_ray.core.statistics import Sketches, Summary
from mlaas_ray.streaming.events import Branch
from mlaas_ray.streaming.missing import valued
from mlaas_ray.streaming.plan import cut
from mlaas_ray.streaming.scan import Request, ScannedFile

# Uncompressed bytes that are read and measured at once.
PIECE_BYTES = 32_000_000


def measured(
    columns: Columns,
    names: Sequence[str],
    inputs: Inputs,
    place: str = "",
    absent: Mapping[str, str] | None = None,
) -> tuple[Sketches, dict[str, int]]:
    """Measure what the model would see of some events, before objects beyond its length are cut.

    Args:
        columns: What was read.
        names: What to measure, of the file or defined.
        inputs: What is defined, selected and done to objects.
        place: Where the events come from, different for all that are measured apart.
        absent: Columns that stand for branches that the file lacks, with the branches' numpy types.

    Returns:
        The sketches, and by branch a digest of its values in the events' order: equal for equal branches.

    Raises:
        DataError, FeatureError: When the columns do not fit the expressions.
    """
    from mlaas_ray.streaming.sweep import digest, summarise  # which brings numba

    prepared, keep = prepare(columns, inputs, names, absent=absent)
    summaries: dict[str, Summary] = {}
    digests: dict[str, int] = {}
    seed = int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "little")
    for name in names:
        column = prepared[name] if keep is None else _selected(prepared[name], keep)
        if isinstance(column, Jagged):
            largest = int(column.counts.max(initial=0))
            summaries[name] = summarise(column.content, largest=largest)
            digests[name] = digest(column.content, seed) ^ digest(column.counts, ~seed)
        else:
            summaries[name] = summarise(column)
            digests[name] = digest(column, seed)
    return Sketches.of(summaries), digests


def added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Add the digests of branches in one part of the data to those in another."""
    return {name: (one.get(name, 0) + other.get(name, 0)) % 2**64 for name in {**one, **other}}


def counted(columns: Columns, counters: Mapping[str, str]) -> Sketches:
    """Learn multiplicities from the branches that count the values: ``{"Jet_pt": "nJet"}``."""
    largest = {counter: int(np.asarray(columns[counter]).max(initial=0)) for counter in counters.values()}
    return Sketches.of({name: Summary(largest=largest[counter]) for name, counter in counters.items()})


def _selected(column: Column, keep: npt.NDArray[np.bool_]) -> Column:
    if not isinstance(column, Jagged):
        return column[keep]
    counts = column.counts
    content = column.content[np.repeat(keep, counts)]
    return Jagged(np.concatenate([[0], np.cumsum(counts[keep])]).astype(np.int64), content)


def wishes(
    file: ScannedFile, request: Request, absent: Sequence[Branch] = ()
) -> tuple[list[str], dict[str, str]]:
    """Tell what of a file must be read to learn what the features need.

    Args:
        file: The file.
        request: What is asked of it.
        absent: Branches of other files that it lacks, and that will be filled.

    Returns:
        What is to be measured, and by branch the counters that do for those whose multiplicity alone counts.
    """
    inputs = request.inputs
    if request.features is not None:
        return [], {}
    # what will have no value is not measured
    there = {*file.branches, *inputs.define, *valued(absent, request.reading.fill)}
    names = [name for name in file.chosen if name in there]
    if request.everything or inputs.normalise != "none" or inputs.representation == "grid":
        return names, {}
    full: list[str] = []
    counters: dict[str, str] = {}
    for name in names:
        rule = rule_of(name, inputs.objects)
        if file.chosen[name][0] != "jagged" or (rule and inputs.objects[rule].length is not None):
            continue
        shaped = inputs.select is not None or name in inputs.define or (rule and inputs.objects[rule].where)
        counter = file.branches[name].counter if name in file.branches else None
        if shaped or counter is None:
            full.append(name)
        else:
            counters[name] = counter
    return full, counters


def pieces(file: ScannedFile, sample: float, stop: int | None = None) -> list[tuple[int, int]]:
    """Cut what is to be measured of a file into ranges of entries that fit in memory.

    The same for every run: which clusters make a sample is decided by the file's identifier, and how they
    are cut by its size.

    Args:
        file: The file.
        sample: Share of its clusters; at least one.
        stop: Entries to measure at most, from the first.
    """
    edges = [edge for edge in file.boundaries if stop is None or edge < stop]
    if stop is not None and stop < file.entries:
        edges.append(stop)
    if len(edges) < 2:
        return []
    target = max(1, PIECE_BYTES * file.entries // max(1, file.bytes))
    if sample >= 1:
        return cut(edges, target)
    seed = int.from_bytes(hashlib.blake2b(file.uuid.encode(), digest_size=8).digest(), "little")
    with np.errstate(over="ignore"):
        numbers = mix(np.arange(len(edges) - 1, dtype=np.uint64) + np.uint64(seed))
    wanted = numbers < np.uint64(int(sample * (2**64 - 1)))
    wanted[np.argmin(numbers)] = True
    return [
        piece
        for chosen, clusters in zip(wanted, pairwise(edges), strict=True)
        if chosen
        for piece in cut(clusters, target)
    ]
