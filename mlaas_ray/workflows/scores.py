"""Scores: a model's answers to every entry of a file, in a file of their own with as many entries."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import uproot

from mlaas_ray.client import Client
from mlaas_ray.core.errors import BranchMissingError, EventError, FeatureError, JobError, MlaasError, nearest
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.flatten import Rows, flatten
from mlaas_ray.core.location import locate
from mlaas_ray.core.package import Signature
from mlaas_ray.core.prepare import Mask, needed_branches, prepare
from mlaas_ray.core.task import Task
from mlaas_ray.inference.rows import FLOAT32, carrier, fit
from mlaas_ray.inference.runtimes import load_runtime, predict
from mlaas_ray.repository import Repository
from mlaas_ray.streaming.events import Events, open_events
from mlaas_ray.streaming.plan import cut
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.sources import find_sources

# Name of the tree in a ROOT file of scores.
TREE = "scores"
# Uncompressed bytes of a file, and bytes of rows, that are read at once; two such pieces are in memory.
_PIECE_BYTES = 32_000_000
# Rows that a model of this process is given at once.
_BATCH = 8192
# Scores that are written at once.
_BASKET = 65_536

Answers = npt.NDArray[np.float32]
Ask = Callable[[Rows], Answers]


@dataclass(frozen=True)
class Scorer:
    """A model that can be asked.

    Attributes:
        model: Its name and version, ``higgs:3``.
        features: What makes rows of events.
        task: What it answers; None where nobody noted it.
        start: Returns what answers rows ``(events, features)`` of finite numbers and NaN.
        dtype: Type of the rows' values.
    """

    model: str
    features: FeatureSpec
    task: Task | None
    start: Callable[[], Ask]
    dtype: np.dtype[Any] = FLOAT32

    def branches(self, outputs: int) -> tuple[str, ...]:
        """Name the outputs: as the classes or targets, one alone of two classes ``score``."""
        names = self.task.names if self.task else ()
        if len(names) != outputs:
            names = ("score",) if outputs == 1 else tuple(f"score_{number}" for number in range(outputs))
        plain = [re.sub(r"\W", "_", re.sub(r"^(?=\d)", "_", name), flags=re.ASCII) for name in names]
        return tuple(
            plain if len(set(plain)) == len(plain) else (f"{name}_{i}" for i, name in enumerate(plain))
        )


@dataclass(frozen=True)
class Scored:
    """What came of a file.

    Attributes:
        output: The file of scores.
        tree: Name of the tree that was read; empty for formats without.
        branches: What the output holds.
        events: Entries of both files.
        selected: Those that pass the model's selection; the scores of others are NaN.
        seconds: What it took, without the start of the model.
    """

    output: Path
    tree: str
    branches: tuple[str, ...]
    events: int
    selected: int
    seconds: float


def published(folder: Path, name: str | None) -> Scorer:
    """Return a model of a repository, to run in this process; without a name the only one.

    Raises:
        RepositoryError: When it is not there.
        EventError: When it does not know which branches it is made of.
    """
    repository = Repository(folder)
    version = repository.find(name or _only(repository.names(), str(folder)))
    package = repository.get(version.name, version.version)

    def start() -> Ask:
        runtime = load_runtime(package, threads=len(os.sched_getaffinity(0)))

        def ask(rows: Rows) -> Answers:
            parts = [predict(runtime, rows[at : at + _BATCH]) for at in range(0, len(rows), _BATCH)]
            return np.concatenate(parts).reshape(len(rows), -1)

        return ask

    features = _known(package.features, str(version))
    return Scorer(str(version), features, package.task, start, _type(package.signature))


def served(client: Client, name: str | None) -> Scorer:
    """Return a model of a running service; without a name the only one.

    Raises:
        ServiceError: When the service does not have it.
        EventError: When it does not know which branches it is made of.
    """
    params = client.params(name or _only([model["name"] for model in client.models()], client.url))
    model = f"{params['name']}:{params['version']}"  # one version answers for the whole file
    told, task = params.get("features"), params.get("task")
    features = _known(FeatureSpec.from_json(json.dumps(told)) if told else None, model)

    def ask(rows: Rows) -> Answers:
        answers: Answers = client.predict(model, values=rows)
        return answers

    dtype = _type(Signature.model_validate(params["signature"]))
    return Scorer(model, features, Task.model_validate(task) if task else None, lambda: ask, dtype)


def score_file(
    path: str,
    scorer: Scorer,
    output: Path | None = None,
    *,
    tree: str | None = None,
    force: bool = False,
    told: Callable[[int, int], None] = lambda done, events: None,
) -> Scored:
    """Ask a model about every entry of a file, piece by piece, and write the answers.

    Entry ``i`` of the output is that of the file: where the model's selection is not passed, scores are NaN.
    The output has its name only when it is whole.

    Args:
        path: A file, also remote: ROOT (TTree or RNTuple), Parquet, CSV or JSON lines; named as for
            :func:`.find_sources`.
        scorer: The model.
        output: ``.root``, for one tree ``scores``, or ``.parquet``; left out, a file of the format of the
            input in the working folder, named like it and the model.
        tree: Name of the tree; None for that named with the file, the only one, or that of the events.
        force: Whether an output that is there is overwritten.
        told: Called with the entries done, and those there are.

    Raises:
        DataError: Naming the file, tree and branch that cannot be used.
        JobError: When the output cannot be written.
    """
    source = _found(path)
    events, names = _opened(source, tree, scorer)
    path = source.path
    output = output or _beside(path, events, scorer)
    # before the model is started, and after XRootD is loaded: docs/decisions/0002-xrootd-before-tensorflow.md
    _check_output(output, path, force)
    ask = scorer.start()
    begun = time.perf_counter()
    # how many outputs there are, also where no event is selected
    branches = scorer.branches(ask(np.zeros((1, scorer.features.width), scorer.dtype)).shape[1])
    done = selected = 0
    with _writing(output, branches, scorer.model) as write:
        waiting: list[Answers] = []
        for rows, keep in _pieces(events, names, scorer):
            scores = np.full((len(rows), len(branches)), np.nan, np.float32)
            try:
                asked = fit(rows[keep], scorer.dtype, scorer.features)
            except EventError as error:
                where = f"{path}: of the selected entries from {done} on, {error.message}"
                raise EventError(where, error.remedy) from None
            if len(asked):
                scores[keep] = ask(asked)
            done, selected = done + len(rows), selected + len(asked)
            waiting.append(scores)
            if sum(map(len, waiting)) >= _BASKET or done == events.entries:
                write(np.concatenate(waiting))
                waiting.clear()
            told(done, events.entries)
    return Scored(output, events.tree, branches, done, selected, time.perf_counter() - begun)


def _only(names: list[str], where: str) -> str:
    if len(names) != 1:
        raise EventError(f"no model is named, and {where} has {len(names)}", nearest("", names))
    return names[0]


def _known(features: FeatureSpec | None, model: str) -> FeatureSpec:
    if features is None:
        raise EventError(
            f"{model} does not know which branches its columns are: it has no features.json",
            "Ask it for rows: client.predict(values=…)",
        )
    return features


def _found(name: str) -> Source:
    sources = find_sources(name)
    if len(sources) > 1:
        raise JobError(f"{name} names {len(sources)} files", "Score one after the other")
    return sources[0]


def _opened(source: Source, tree: str | None, scorer: Scorer) -> tuple[Events, list[str]]:
    """Open a file, and return it with the branches that the model needs."""
    names = sorted(needed_branches(scorer.features))
    events = open_events(source, tree)
    lacking = [name for name in names if name not in events.branches]
    if lacking and any(name in events.left_out for name in lacking):
        # a model that was trained with reading.nested: flatten
        events = open_events(source, tree, nested="flatten")
        lacking = [name for name in names if name not in events.branches]
    if lacking:
        where = f"{source}, tree {events.tree!r}" if events.tree else source.path
        listed = ", ".join(map(repr, lacking[:5])) + (
            f", … ({len(lacking)} in all)" if len(lacking) > 5 else ""
        )
        of_type = events.left_out.get(lacking[0])
        raise BranchMissingError(
            f"{where}: {scorer.model} needs {listed}, which "
            + (f"is {of_type}" if of_type else "is not there"),
            nearest(lacking[0], events.branches),
        )
    return events, names


def _type(signature: Signature) -> np.dtype[Any]:
    return np.dtype(signature.inputs[0].dtype)


def _pieces(events: Events, names: list[str], scorer: Scorer) -> Iterator[tuple[Rows, Mask | slice]]:
    """Read piece after piece, the next one while a model works on one.

    Yields:
        ``(events, features)`` finite or NaN, and which of them the model's selection keeps.
    """
    spec, wide = scorer.features, np.dtype(carrier(scorer.dtype))
    size = sum(events.branches[name].bytes for name in names) or events.size
    share = _PIECE_BYTES / max(1, size / max(1, events.entries), wide.itemsize * spec.width)
    where = f"{events.path}, tree {events.tree!r}" if events.tree else events.path

    def read(piece: tuple[int, int]) -> tuple[Rows, Mask | slice]:
        columns = events.decode(events.fetch(names, *piece))
        try:
            prepared, keep = prepare(columns, spec)
            rows = flatten(prepared, spec, dtype=wide)
        except FeatureError as error:
            raise FeatureError(f"{error.message}, in {where}", error.remedy) from None
        # training takes what is infinite for missing, and a service refuses it
        rows[np.isinf(rows)] = np.nan
        return rows, slice(None) if keep is None else keep

    pieces = cut(events.boundaries(names), share)
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, pieces[0]) if pieces else None
        for following in [*pieces[1:], None]:
            if ahead is None:
                return
            now = ahead.result()
            ahead = reader.submit(read, following) if following else None
            yield now


def _beside(path: str, events: Events, scorer: Scorer) -> Path:
    stem = re.sub(r"\.\w+$", "", path.partition("?")[0].rstrip("/").rpartition("/")[2])
    suffix = ".root" if events.format in ("TTree", "RNTuple") else ".parquet"
    return Path(f"{stem}_{scorer.model.partition(':')[0]}_scores{suffix}")


def _check_output(output: Path, path: str, force: bool) -> None:
    if output.suffix not in (".root", ".parquet"):
        raise JobError(f"{output} is neither .root nor .parquet", "Give --output such a name")
    if not output.parent.is_dir():
        raise JobError(f"there is no folder {output.parent}", "Make it, or give another --output")
    if not output.exists():
        return
    location = locate(path)
    if location.is_local and os.path.samefile(output, location.path):
        raise JobError(f"{output} is the input itself", "Give another --output")
    if not force:
        raise JobError(f"{output} is there already", "Give another --output, or --force to overwrite it")


@contextmanager
def _writing(output: Path, branches: tuple[str, ...], model: str) -> Iterator[Callable[[Answers], None]]:
    """Give what writes scores ``(events, outputs)``; the output has its name only when all are written."""
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.unfinished")
    kind = _root_file if output.suffix == ".root" else _parquet_file
    try:
        with kind(unfinished, branches, model) as write:
            yield write
        os.replace(unfinished, output)
    except OSError as error:
        if isinstance(error, MlaasError):  # of the input
            raise
        raise JobError(f"cannot write {output}: {error.strerror or error}", "Give another --output") from None
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def _root_file(path: Path, branches: tuple[str, ...], model: str) -> Iterator[Callable[[Answers], None]]:
    with uproot.recreate(path) as file:
        tree = file.mktree(TREE, dict.fromkeys(branches, np.float32), title=model)
        yield lambda scores: tree.extend(dict(zip(branches, np.ascontiguousarray(scores.T), strict=True)))


@contextmanager
def _parquet_file(path: Path, branches: tuple[str, ...], model: str) -> Iterator[Callable[[Answers], None]]:
    schema = pa.schema([(name, pa.float32()) for name in branches], metadata={"model": model})
    with pq.ParquetWriter(path, schema) as file:
        yield lambda scores: file.write_table(pa.table(list(scores.T), schema=schema))
