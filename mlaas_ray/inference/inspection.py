"""Inspection: what a model is and how it is run best, found in a process of its own and remembered.

A model is a program: a damaged one may take the process that loads it along. So the first load of a model
happens in a process that does nothing else (:mod:`mlaas_ray.inference.tuning`), never in a gateway or a
model replica. What was found is kept in this user's cache: an upload is examined once, when it arrives.

::

    <cache>/runtimes/<key>/
      examination.json   Examination
      probe.npz          rows, and the reference's answers to them
      frozen.pb | model.tflite   what the chosen runtime opens, where that is not the model itself
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import math
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pydantic import ValidationError

import mlaas_ray
from mlaas_ray.core.cache import cache_folder
from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.package import ModelFormat, Signature
from mlaas_ray.inference.examination import Examination
from mlaas_ray.inference.params import named_outputs

FOUND, PROBE, ERROR = "examination.json", "probe.npz", "error.txt"
UNFINISHED = "the process that tried it ended, or took too long"
# Part of every key: raise it when examining changes.
VERSION = 2
MOST_ENTRIES = 200
# What the process that tries a model may take: bytes, and for each byte of the model so many more. TensorFlow
# alone takes 0.8 GB; the reference and its conversions hold some copies of the weights.
OWN_BYTES, COPIES = 2 << 30, 8
# Its CPU time, as a share of the longest wait: one that computes without end does not wait.
CPU_SHARE = 0.5
# As many models are tried at a time, by all processes of a user.
AT_ONCE = 2
_ABANDONED_S = 3600
_DRAFT = ".new-"
_SAMPLE = "sample.npz"

_log = logging.getLogger(__name__)


def inspect_model(path: Path, model_format: ModelFormat) -> Signature:
    """Load a model in this process, ask it a sample of zeros, and return its signature.

    Raises:
        ModelError: When it does not load, does not take rows of numbers, or does not answer.
    """
    # what loads models is not imported by those who only read what was found
    from mlaas_ray.inference.tuning import open_reference

    return open_reference(path, model_format).signature


def inspect_apart(path: Path, model_format: ModelFormat, timeout_s: float, *, threads: int = 1) -> Signature:
    """Return a model's signature, by :func:`examine_apart`.

    Args:
        path: The model's file or directory.
        model_format: What it is.
        timeout_s: Longest wait, seconds.
        threads: Threads one prediction will be allowed to use.

    Raises:
        ModelError: When the model is not fit to be served, kills its process, or takes too long.
    """
    return examine_apart(path, model_format, threads=threads, timeout_s=timeout_s)[0].signature


def examine_apart(
    path: Path,
    model_format: ModelFormat,
    *,
    threads: int,
    timeout_s: float,
    cache: Path | None = None,
) -> tuple[Examination, Path]:
    """Examine a model in a process of its own, or recall what was found earlier on such a machine.

    Args:
        path: The model's file or directory; a ``sample.npz`` beside it gives real rows to compare with.
        model_format: What it is.
        threads: Threads one prediction may use.
        timeout_s: Longest wait, seconds.
        cache: Where results are kept; None for this user's usual place.

    Returns:
        What was found, and the folder with what the chosen runtime opens.

    Raises:
        ModelError: When the model is not fit to be served, kills its process, or takes too long.
    """
    cache = cache or _usual_cache()
    key = _key(path, model_format, threads)
    entry = cache / key
    with _one_at_a_time(cache / "locks" / key[:2]):
        known = _read(entry)
        if known is not None:
            with contextlib.suppress(OSError):
                os.utime(entry)
            return known, entry
        slot = cache / "locks" / f"slot-{int(key, 16) % AT_ONCE}"
        with tempfile.TemporaryDirectory(prefix=_DRAFT, dir=cache) as folder, _one_at_a_time(slot):
            draft = Path(folder) / "entry"
            draft.mkdir()
            examination = _examine(path, model_format, threads, timeout_s, draft)
            # what is there could not be read
            shutil.rmtree(entry, ignore_errors=True)
            try:
                draft.rename(entry)
            except OSError:
                # where locks are not known, another may have been quicker
                if _read(entry) is None:
                    raise
    _trim(cache)
    return examination, entry


def thread_environment(threads: int) -> dict[str, str]:
    """Return the variables by which numerical libraries take that many threads, set before their import."""
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return dict.fromkeys(pools, str(threads)) | {"TF_NUM_INTEROP_THREADS": "1"}


def _examine(
    path: Path, model_format: ModelFormat, threads: int, timeout_s: float, folder: Path
) -> Examination:
    """Run the program that examines, and read what it left."""
    command = [sys.executable, "-m", "mlaas_ray.inference.tuning", str(path), model_format, str(folder)]
    command += ["--threads", str(threads), "--parent", str(os.getpid())]
    room = OWN_BYTES + COPIES * sum(file.stat().st_size for file in _files(path, model_format).values())
    cpu_s = max(1, math.ceil(CPU_SHARE * timeout_s))
    command += ["--memory-bytes", str(room), "--cpu-s", str(cpu_s)]
    sample = path.parent / _SAMPLE
    if sample.is_file():
        command += ["--samples", str(sample)]
    # a worker of Ray may have found this package in a folder that Python does not know by itself
    home = str(Path(mlaas_ray.__file__).parents[1])
    found_at = os.pathsep.join(part for part in (home, os.environ.get("PYTHONPATH")) if part)
    environment = {**os.environ, **thread_environment(threads), "PYTHONPATH": found_at}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    said = folder.parent / "output"
    late = False
    with said.open("wb") as output:
        try:
            status = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=timeout_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            late, status = True, 1
    with contextlib.suppress(FileNotFoundError):
        message, _, remedy = (folder / ERROR).read_text().partition("\n")
        raise ModelError(message, remedy)
    found = _read(folder)
    if status:
        last = (said.read_text(errors="replace").strip().splitlines() or [""])[-1]
        _log.warning("%s: examining it ended with %s: %s", path, "a time-out" if late else status, last)
    if found is not None:
        return found
    if status == -signal.SIGXCPU:
        raise ModelError(f"the model did not answer within {cpu_s} s of CPU time", "Use a smaller model")
    if late:
        raise ModelError(f"the model did not load and answer within {timeout_s:g} s", "Use a smaller model")
    raise ModelError(
        f"the model ends the process that loads it, which may take {room >> 20} MiB of memory",
        "Export the model again, or use a smaller one",
    )


def _read(entry: Path) -> Examination | None:
    """Return what an entry says, or None; what is damaged counts as not there."""
    try:
        return Examination.model_validate_json((entry / FOUND).read_bytes())
    except (OSError, ValidationError):
        return None


def _key(path: Path, model_format: ModelFormat, threads: int) -> str:
    """Return what decides the result: the model, what runs it, and on which kind of machine."""
    content = {
        "version": VERSION,
        "files": {name: _digest(file) for name, file in sorted(_files(path, model_format).items())},
        "runtimes": {name: _release(name) for name in ("tensorflow", "onnxruntime", "ai-edge-litert")},
        "outputs": named_outputs(path.parent),
        "threads": threads,
        "machine": _machine(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files(path: Path, model_format: ModelFormat) -> dict[str, Path]:
    """Return what a model consists of, and the real rows beside it that it is tried with."""
    sample = path.parent / _SAMPLE
    rows = {_SAMPLE: sample} if sample.is_file() else {}
    if model_format == "savedmodel":
        return rows | {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    return rows | {"model.onnx": path} | _named_in(path)


def _named_in(path: Path) -> dict[str, Path]:
    """Return the files beside an ONNX file whose names occur in it: some hold its weights."""
    if not path.is_file() or not path.stat().st_size:
        return {}
    others = [file for file in path.parent.iterdir() if file.is_file() and file != path]
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return {file.name: file for file in others if content.find(file.name.encode()) >= 0}


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "Export the model again") from None


def _release(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _machine() -> str:
    """Return the processor's model and abilities, as the kernel tells them."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        return "\n".join(line for line in lines if line.startswith(wanted))
    return os.uname().machine


def _usual_cache() -> Path:
    """Return this user's folder, or, where there is to be none, one that ends with this process."""
    folder = cache_folder("runtimes")
    if folder is not None:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    return _own_cache(os.getpid())


@functools.cache
def _own_cache(_process: int) -> Path:
    folder = tempfile.mkdtemp(prefix="mlaas-runtimes-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Wait for whoever examines the same model now, which would do the work twice, or has its slot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as lock:
        # some network file systems know no locks: the work is then done twice
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _trim(cache: Path) -> None:
    """Delete the entries that were used longest ago, and what processes that were killed left."""
    entries: list[tuple[float, Path]] = []
    for path in cache.iterdir():
        with contextlib.suppress(OSError):
            changed = path.stat().st_mtime
            if path.name.startswith(_DRAFT):
                if changed < time.time() - _ABANDONED_S:
                    shutil.rmtree(path, ignore_errors=True)
            elif path.name != "locks":
                entries.append((changed, path))
    for _, path in sorted(entries)[:-MOST_ENTRIES]:
        shutil.rmtree(path, ignore_errors=True)
