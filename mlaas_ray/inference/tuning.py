"""Tuning: the runtimes of a model tried and timed against each other, in a process that may die of it.

The program ``python -m mlaas_ray.inference.tuning`` writes what it finds into a folder as it goes, so that a
runtime that takes the process along costs no more than itself. :mod:`mlaas_ray.inference.inspection` starts
it and reads the folder.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import signal
import sys
import time
import zipfile
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import MlaasError
from mlaas_ray.core.flatten import Rows
from mlaas_ray.core.package import ModelFormat, Signature
from mlaas_ray.inference.candidates import MADE, make, open_made, open_model
from mlaas_ray.inference.examination import (
    SIZES,
    TOLERANCE,
    Candidate,
    Examination,
    RuntimeName,
    choose,
    difference,
)
from mlaas_ray.inference.inspection import ERROR, FOUND, PROBE, UNFINISHED
from mlaas_ray.inference.onnx_runtime import check_external_data
from mlaas_ray.inference.predictions import Predictions, Runtime, check_signature, first_line, predict
from mlaas_ray.inference.saved_model import SavedModelRuntime

# Rows of each kind (random, random with holes, real) that are compared, and the numbers in all of a kind.
PROBED, PROBED_VALUES = 96, 1 << 20
# Batches that are compared: also a smaller one after a larger one.
COMPARED = (64, 1, 7, 2)
# Rows of the batches in which the chosen runtime is timed once more, for the size a batcher should aim at.
FINER = tuple(1 << power for power in range(11))
# Seconds given to one size, and calls after which more say nothing new.
BUDGET, CALLS = 0.15, 2000
# The longest call that is made only to be timed, and the largest batch, in values.
LONGEST_S, MOST_VALUES = 0.5, 1 << 24


def examine(
    path: Path, model_format: ModelFormat, threads: int, samples: Rows | None, folder: Path
) -> Examination:
    """Load a model, ask it, and compare and time all the ways to run it.

    Args:
        path: Its file or directory.
        model_format: What it is.
        threads: Threads one prediction may use.
        samples: Real rows ``(events, features)``, where there are some.
        folder: Receives :data:`FOUND`, :data:`PROBE` and what the chosen runtime opens.

    Raises:
        ModelError: When the model is not fit to be served.
    """
    reference = open_reference(path, model_format, threads)
    signature = reference.signature
    rows, answers = probe(reference, samples)
    np.savez(folder / PROBE, rows=rows, answers=answers)
    found = [Candidate(name=reference.name, seconds=timed(reference, SIZES), difference=0.0)]
    best = reference
    if isinstance(reference, SavedModelRuntime):
        for name in MADE:
            # what is read should this process end here
            _keep(folder, signature, threads, [*found, Candidate(name=name, reason=UNFINISHED)])
            candidate, runtime = _try(name, reference, folder, threads, rows, answers)
            found.append(candidate)
            if runtime is not None and choose(found) is candidate:
                best = runtime
    examination = _keep(folder, signature, threads, found)
    for name in MADE:
        if name != examination.chosen:
            (folder / MADE[name]).unlink(missing_ok=True)
    if best.name != examination.chosen:
        return examination
    return _keep(folder, signature, threads, found, timed(best, FINER, BUDGET / 2))


def open_reference(path: Path, model_format: ModelFormat, threads: int = 1) -> Runtime:
    """Load a model as it is, and have it answer.

    Raises:
        ModelError: When it does not load, does not take rows of numbers, or does not answer.
    """
    if model_format == "onnx":
        check_external_data(path)
    runtime = open_model(path, model_format, threads)
    check_signature(runtime.signature)
    predict(runtime, np.zeros((2, runtime.signature.width or 0), dtype=np.float32))
    return runtime


def probe(reference: Runtime, samples: Rows | None) -> tuple[Rows, Predictions]:
    """Return rows to compare runtimes on, and the reference's answers, which are all finite.

    Rows with holes (NaN) count where the reference knows what to do about them: one that does not gives NaN,
    or, where an activation has swallowed it, the same answer whatever else is in the row.
    """
    width = reference.signature.width or 1
    count = max(2, min(PROBED, PROBED_VALUES // width))
    random = np.random.default_rng(20)
    kinds: list[tuple[Rows, Predictions]] = [_answered(reference, _rows(reference, count, random))]
    if np.dtype(reference.signature.inputs[0].dtype).kind == "f":
        holes = _rows(reference, count, random)
        holes[random.random(holes.shape) < 0.2] = np.nan
        # one in every row
        holes[np.arange(count), random.integers(0, width, count)] = np.nan
        rows, answers = _answered(reference, holes)
        if len(rows) and float(np.ptp(answers.astype(np.float64), axis=0).max()) > TOLERANCE / 10:
            kinds.append((rows, answers))
    if samples is not None and samples.shape[1:] == (width,):
        kinds.append(_answered(reference, samples[:count]))
    some = [kind for kind in kinds if len(kind[0])]
    if not some:
        return np.zeros((0, width), dtype=np.float32), np.zeros((0, 1), dtype=np.float32)
    return np.concatenate([rows for rows, _ in some]), np.concatenate([answers for _, answers in some])


def timed(runtime: Runtime, sizes: tuple[int, ...], budget: float = BUDGET) -> dict[int, float]:
    """Return the median seconds of a call by rows, without the sizes that would take too long."""
    random = np.random.default_rng(21)
    seconds: dict[int, float] = {}
    expected = 0.0
    for size in sizes:
        if seconds and (expected > LONGEST_S or size * (runtime.signature.width or 1) > MOST_VALUES):
            break
        rows = _rows(runtime, size, random)
        # the first call of a size makes room for it
        predict(runtime, rows)
        calls: list[float] = []
        end = time.perf_counter() + budget
        while not calls or (time.perf_counter() < end and len(calls) < CALLS):
            start = time.perf_counter()
            predict(runtime, rows)
            calls.append(time.perf_counter() - start)
        seconds[size] = median(calls)
        expected = seconds[size] * sizes[min(len(seconds), len(sizes) - 1)] / size
    return seconds


def _try(
    name: RuntimeName,
    reference: SavedModelRuntime,
    folder: Path,
    threads: int,
    rows: Rows,
    answers: Predictions,
) -> tuple[Candidate, Runtime | None]:
    """Make a runtime, compare it, and time it if it answers as the reference does."""
    try:
        make(name, reference, folder)
        runtime = open_made(name, folder, reference.signature, threads)
        if not len(rows):
            return Candidate(name=name, reason="there is no finite answer to compare it on"), None
        largest = max(
            difference(predict(runtime, rows[:size]), answers[:size]) for size in (*COMPARED, len(rows))
        )
        if not largest < TOLERANCE:
            reason = f"its answers differ by {largest:.2g} from the reference's"
            known = largest if np.isfinite(largest) else None
            return Candidate(name=name, difference=known, reason=reason), None
        return Candidate(name=name, difference=largest, seconds=timed(runtime, SIZES)), runtime
    except Exception as error:  # converters and kernels raise what they like
        return Candidate(name=name, reason=first_line(error)), None


def _answered(reference: Runtime, rows: Rows) -> tuple[Rows, Predictions]:
    """Return the rows to which the answer is finite, and the answers; none if the model fails on them."""
    try:
        answers = predict(reference, rows)
    except MlaasError:
        # random numbers need not mean anything to it
        return rows[:0], np.zeros((0, 1), dtype=np.float32)
    finite = np.isfinite(answers.astype(np.float64)).reshape(len(rows), -1).all(axis=1)
    return rows[finite], answers[finite]


def _rows(runtime: Runtime, count: int, random: np.random.Generator) -> Rows:
    """Return random rows: normally distributed, or zeros and ones where a model takes integers."""
    shape = (count, runtime.signature.width or 1)
    if np.dtype(runtime.signature.inputs[0].dtype).kind == "f":
        return random.normal(size=shape).astype(np.float32)
    return random.integers(0, 2, size=shape).astype(np.float32)


def _keep(
    folder: Path,
    signature: Signature,
    threads: int,
    found: list[Candidate],
    finer: dict[int, float] | None = None,
) -> Examination:
    """Write what is known so far, whole at any time."""
    examination = Examination.of(signature, threads, found, finer or {})
    draft = folder / f".{FOUND}"
    draft.write_text(examination.model_dump_json(indent=1))
    draft.replace(folder / FOUND)
    return examination


def _samples(path: Path | None) -> Rows | None:
    """Read the rows of a package's ``sample.npz``; None where there are none."""
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            rows: npt.NDArray[Any] = content["x"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return np.asarray(rows.reshape(len(rows), -1), dtype=np.float32)


def main(arguments: list[str] | None = None) -> int:
    """Examine one model; the result, or an error, lies in the folder when the program has ended."""
    parser = argparse.ArgumentParser(prog="python -m mlaas_ray.inference.tuning")
    parser.add_argument("path", type=Path)
    parser.add_argument("format", choices=get_args(ModelFormat))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--parent", type=int, help="process with which this one ends")
    parser.add_argument("--memory-bytes", type=int, help="what this process may take")
    parser.add_argument("--cpu-s", type=int, help="likewise, of CPU time")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        _end_with(options.parent)
    for kind, most in ((resource.RLIMIT_DATA, options.memory_bytes), (resource.RLIMIT_CPU, options.cpu_s)):
        if most is not None:
            resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))
    try:
        examine(options.path, options.format, options.threads, _samples(options.samples), options.folder)
    except MlaasError as error:
        (options.folder / ERROR).write_text(f"{error.message}\n{error.remedy}")
        return 1
    return 0


def _end_with(parent: int) -> None:
    """Ask the kernel to kill this process when the one that started it ends."""
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started this one has ended")


if __name__ == "__main__":
    sys.exit(main())
