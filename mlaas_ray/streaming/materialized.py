"""materialize: the events of a first pass, selected and with the branches they need, as Parquet shards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mlaas_ray.core.columns import Column, Jagged
from mlaas_ray.core.errors import JobError
from mlaas_ray.streaming.first_pass import FirstPass
from mlaas_ray.streaming.pieces import ReadPiece
from mlaas_ray.streaming.plan import Piece, cut
from mlaas_ray.streaming.read import event_reader, new_record
from mlaas_ray.streaming.reading import Block, Reader, planned_entries
from mlaas_ray.streaming.record import PieceRecord, Record
from mlaas_ray.streaming.settings import ReadingSettings
from mlaas_ray.streaming.split import entry_identifiers
from mlaas_ray.streaming.tasks import spread

# Identify events that have no identifiers of their own, so that the split stays what it was.
FILE, ENTRY = "mlaas_file", "mlaas_entry"

# Uncompressed bytes of a shard's branches, and events of its row groups at most.
SHARD_BYTES = 400_000_000
GROUP_EVENTS = 50_000

MANIFEST = "manifest.json"
FEATURES = "features.json"
_NOTES = b"mlaas_record"


def materialize(
    found: FirstPass,
    output: Path,
    *,
    reading: ReadingSettings | None = None,
    progress: bool | None = None,
) -> Record:
    """Write the events of all samples as Parquet shards, one folder a sample.

    The shards hold the branches that the features need, for the events that the selection keeps: definitions
    and object rules are applied when they are read, so that a model trained on them carries its own. A run
    that ended early goes on with the shards that are missing.

    Args:
        found: What the first pass found; its features are written beside the shards.
        output: Folder; all nodes of the cluster must see it.
        reading: How files are read.
        progress: Whether to show a bar; None for only on a terminal.

    Returns:
        The record of all shards, those of earlier runs too.

    Raises:
        JobError: When the folder holds something else, or an expression asks what the shards cannot tell.
        DataError: Naming the file, tree and branch that cannot be read.
    """
    _check_asked(found)
    shards = [replace(shard, index=index) for index, shard in enumerate(_shards(found))]
    _claim(output, found, shards)
    record = new_record(found, reading)
    record.plan("materialize", 0, planned_entries(shards))
    reader = event_reader(found, reading=reading)
    paths = [output / _name(found, shard, shards) for shard in shards]
    missing = [(shard, path) for shard, path in zip(shards, paths, strict=True) if not path.exists()]
    spread(
        _write_shard,
        [(reader, shard, str(path)) for shard, path in missing],
        description="shards",
        progress=progress,
    )
    for shard, path in zip(shards, paths, strict=True):
        record.note("materialize", 0, shard.index, _notes(path))
    return record


def _check_asked(found: FirstPass) -> None:
    """Refuse ``is_missing`` where files lack branches: shards have what was filled like any value."""
    spec = found.features
    texts = [*spec.define.values(), spec.select or ""]
    texts += [text or "" for rule in spec.objects.values() for text in (rule.where, rule.sort_by)]
    texts += [text for sample in found.samples for text in sample.truth.texts.values()]
    asking = next((text for text in texts if "is_missing" in text), None)
    if found.missing and asking is not None:
        raise JobError(
            f"{asking!r} asks which files lack a branch, and shards do not tell",
            "Read the files themselves, or leave is_missing out",
        )


def identifiers(found: FirstPass) -> tuple[str, ...]:
    """Return the branches of the shards that identify an event."""
    return found.key or (FILE, ENTRY)


def _shards(found: FirstPass) -> Iterator[Block]:
    """Give shards of one sample each, in the order of the files."""
    left = dict.fromkeys(range(len(found.samples)), found.max_events)
    for dataset, files in groupby(enumerate(found.files), key=lambda item: item[1].dataset):
        pieces: list[Piece] = []
        size = 0.0
        for index, file in files:
            each = file.bytes / max(1, file.entries)
            for start, stop in cut(file.boundaries, max(1.0, SHARD_BYTES / max(each, 1e-9))):
                limit = left[dataset]
                stop = stop if limit is None else min(stop, start + limit)
                if stop <= start:
                    break
                if limit is not None:
                    left[dataset] = limit - (stop - start)
                pieces.append(Piece(index, start, stop))
                size += each * (stop - start)
                if size >= SHARD_BYTES:
                    yield Block("materialize", 0, 0, tuple(pieces))
                    pieces, size = [], 0.0
        if pieces:
            yield Block("materialize", 0, 0, tuple(pieces))


def _name(found: FirstPass, shard: Block, shards: list[Block]) -> str:
    """Return a shard's file name below the output folder: its sample and its number there."""
    dataset = found.files[shard.pieces[0].file].dataset
    number = sum(found.files[other.pieces[0].file].dataset == dataset for other in shards[: shard.index])
    return f"{found.samples[dataset].name}/part-{number:05d}.parquet"


def _claim(output: Path, found: FirstPass, shards: list[Block]) -> None:
    """Note in the folder what is being written there, or see that it is the same as before."""
    wanted = {
        "features": found.features.digest,
        "files": [[file.path, file.uuid, file.entries] for file in found.files],
        "truths": [sample.truth.names for sample in found.samples if sample.truth.names],
        "shards": hashlib.sha256(repr([shard.pieces for shard in shards]).encode()).hexdigest(),
    }
    manifest = output / MANIFEST
    if manifest.exists():
        if json.loads(manifest.read_text()) != wanted:
            raise JobError(
                f"{output} holds the events of another job, or of other files", "Give another folder"
            )
        return
    if output.exists() and any(output.iterdir()):
        raise JobError(f"{output} is not empty, and nothing of ours", "Give a folder of its own")
    for sample in found.samples:
        (output / sample.name).mkdir(parents=True, exist_ok=True)
    (output / FEATURES).write_text(found.features.to_json())
    manifest.write_text(json.dumps(wanted, indent=1))


def _write_shard(reader: Reader, shard: Block, path: str) -> None:
    """Write one shard; whoever looks sees all of it or nothing."""
    passing = Path(path).with_name(f".{Path(path).name}-{os.getpid()}")
    names = list(reader.names[reader.files[shard.pieces[0].file].dataset])
    try:
        with _Writer(passing, reader, names) as writer:
            # one piece at a time, since together they may not fit in memory
            for _, (part,) in reader.parts(replace(shard, pieces=(piece,)) for piece in shard.pieces):
                writer.add(part)
        passing.replace(path)
    finally:
        passing.unlink(missing_ok=True)


class _Writer:
    """Writes parts as row groups, and their record into the footer."""

    def __init__(self, path: Path, reader: Reader, names: list[str]) -> None:
        self._path, self._reader, self._names = path, reader, names
        self._writer: pq.ParquetWriter | None = None
        self._notes: list[PieceRecord] = []

    def __enter__(self) -> _Writer:
        return self

    def add(self, part: ReadPiece) -> None:
        """Write a part's events."""
        self._notes.append(part.note)
        if part.error is None:
            self._write(self._table(part))

    def _table(self, part: ReadPiece) -> pa.Table:
        columns = {name: _kept(part.columns[name], part.mask) for name in self._names}
        file = self._reader.files[part.piece.file]
        if not self._reader.key:
            own = entry_identifiers(file.uuid, part.piece.start, part.piece.stop)
            columns |= {
                name: _kept(values, part.mask) for name, values in zip((FILE, ENTRY), own, strict=True)
            }
        return pa.table({name: _arrow(column, file.absent.get(name)) for name, column in columns.items()})

    def _write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path, table.schema, compression="zstd", write_page_checksum=True
            )
        # the first part's types hold for all: files may differ in them
        self._writer.write_table(table.cast(self._writer.schema), row_group_size=GROUP_EVENTS)

    def __exit__(self, kind: object, *error: object) -> None:
        if self._writer is None and kind is None:
            self._write(pa.table({name: pa.array([], pa.float32()) for name in self._names}))
        if self._writer is not None:
            notes = json.dumps([asdict(note) for note in self._notes])
            self._writer.add_key_value_metadata({_NOTES: notes.encode()})
            self._writer.close()


def _kept(column: Column, mask: npt.NDArray[np.bool_] | None) -> Column:
    """Return the events of a column for which the mask is true."""
    if mask is None:
        return column
    if not isinstance(column, Jagged):
        return column[mask]
    counts = column.counts
    offsets = np.concatenate([[0], np.cumsum(counts[mask])]).astype(np.int64)
    return Jagged(offsets, column.content[np.repeat(mask, counts)])


def _arrow(column: Column, absent: str | None) -> pa.Array:
    """Make an array; ``absent``: numpy type of a branch that the file lacks and this stands for."""
    if isinstance(column, Jagged):
        return pa.LargeListArray.from_arrays(pa.array(column.offsets), _numbers(column.content, absent))
    if column.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(_numbers(column.ravel(), absent), column.shape[1])
    return _numbers(column, absent)


def _numbers(values: npt.NDArray[Any], absent: str | None) -> pa.Array:
    if absent and values.dtype.kind == "f" and np.isnan(values).all():  # whole numbers have no NaN
        return pa.nulls(len(values), pa.from_numpy_dtype(np.dtype(absent)))
    return pa.array(np.ascontiguousarray(values, values.dtype.newbyteorder("=")))


def _notes(path: Path) -> list[PieceRecord]:
    metadata: Mapping[bytes, bytes] = pq.read_metadata(path).metadata
    return [PieceRecord(**note) for note in json.loads(metadata[_NOTES])]
