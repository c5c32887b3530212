"""Servers as processes, the load that ``hey`` puts on them, and the CPU time both take."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

HERE = Path(__file__).parent
INSTALL = "no hey on this machine (Debian: apt install hey)"
# Ray's: no report home, and no search for a token.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "TF_CPP_MIN_LOG_LEVEL": "3"}


class LoadError(Exception):
    """A server that does not start, or answers wrongly."""


def build_model(folder: Path, *options: str) -> Path:
    """Run ``model.py``, and return the package it wrote."""
    command = [sys.executable, str(HERE / "model.py"), str(folder), *options]
    done = subprocess.run(
        command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode:
        raise LoadError(f"the model was not built:\n{done.stderr[-2000:]}")
    return folder / "package"


@contextmanager
def running(command: Sequence[str], folder: Path, *, seconds: float = 180) -> Iterator[psutil.Process]:
    """Run a server from the first line on its standard output until the block ends.

    What it prints goes to files: a pipe that nobody reads would fill up and stop it.

    Args:
        command: Starts it.
        folder: Where its output goes.
        seconds: Time to start.

    Raises:
        LoadError: When it ends before, or takes longer.
    """
    out, err = folder / "out", folder / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(
            command,
            stdout=stdout,
            stderr=stderr,
            env=os.environ | ENVIRONMENT,
            # A session of its own would have its own share of the CPU, whatever its number of threads.
            process_group=0,
            preexec_fn=_end_with_parent,
        )
    try:
        deadline = time.monotonic() + seconds
        while "\n" not in out.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise LoadError(f"{' '.join(command)} did not start:\n{err.read_text()[-2000:]}")
            time.sleep(0.05)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _end_with_parent() -> None:
    """Ask the kernel to stop the server when the benchmark is killed."""
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def tree_seconds(process: psutil.Process) -> float:
    """Return the CPU seconds of a process and all below it so far.

    Those of a process that ended are in its parent's ``children_user`` and ``children_system`` once that has
    waited for it; ``mlaas serve`` and Triton wait for what they start.
    """
    total = 0.0
    for member in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


@dataclass(frozen=True)
class Report:
    """What ``hey`` says, and what CPU time was used meanwhile.

    Attributes:
        answered: Replies with status 200.
        errors: Other replies, and requests without one.
        seconds: From the first request to the last reply.
        p50_ms: Half of the replies took less; None without replies.
        p99_ms: 99 % of the replies took less.
        cpu_s: CPU seconds of the server's process tree.
        load_cpu_s: CPU seconds of ``hey``.
    """

    answered: int
    errors: int
    seconds: float
    p50_ms: float | None
    p99_ms: float | None
    cpu_s: float = 0.0
    load_cpu_s: float = 0.0

    @classmethod
    def parse(cls, text: str, cpu_s: float = 0.0, load_cpu_s: float = 0.0) -> Report:
        """Read ``hey``'s summary."""
        body, _, failures = text.partition("Error distribution:")
        replies = {int(code): int(n) for code, n in re.findall(r"\[(\d+)\]\s+(\d+) responses", body)}
        failed = sum(int(count) for count in re.findall(r"^\s*\[(\d+)\]\t", failures, re.MULTILINE))
        total = re.search(r"Total:\s+([\d.]+) secs", body)
        if total is None:
            raise LoadError(f"hey printed no summary:\n{text[-1000:]}")
        below = {share: float(s) * 1e3 for share, s in re.findall(r"(\d+)%+ in ([\d.]+) secs", body)}
        answered = replies.pop(200, 0)
        return cls(
            answered,
            sum(replies.values()) + failed,
            float(total[1]),
            below.get("50"),
            below.get("99"),
            cpu_s,
            load_cpu_s,
        )

    def figures(self) -> dict[str, float]:
        """Return what the tables show."""
        answered = max(1, self.answered)
        return {
            "req_s": self.answered / self.seconds,
            "p50_ms": self.p50_ms or 0.0,
            "p99_ms": self.p99_ms or 0.0,
            "cpu_us": self.cpu_s / answered * 1e6,
            "errors": self.errors,
            "load_cpu_us": self.load_cpu_s / answered * 1e6,
        }


def hey_command(url: str, body: Path, callers: int, seconds: float, content_type: str) -> list[str]:
    """Return the command that asks for so many seconds; requests under way at the end are waited for."""
    command = ["hey", "-z", f"{seconds}s", "-c", str(callers), "-m", "POST", "-T", content_type, "-t", "60"]
    return [*command, "-D", str(body), url]


def ask(
    url: str,
    body: Path,
    process: psutil.Process,
    *,
    callers: int,
    seconds: float,
    content_type: str = "application/json",
) -> Report:
    """Let ``hey`` ask, and report."""
    own, server = _children_seconds(), tree_seconds(process)
    command = hey_command(url, body, callers, seconds, content_type)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 120)
    return Report.parse(done.stdout, tree_seconds(process) - server, _children_seconds() - own)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
