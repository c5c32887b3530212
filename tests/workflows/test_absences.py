"""A training goes on when the only data server of its files was away for a while."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from mlaas_ray.core.errors import FileUnreadableError
from mlaas_ray.training import EpochReport
from mlaas_ray.workflows import Hooks, Job, train
from mlaas_ray.workflows.run_folder import RunFolder
from tests.xrootd_server import running_xrootd

pytestmark = [pytest.mark.xrootd, pytest.mark.soak, pytest.mark.usefixtures("ray_local")]


class Server:
    """An XRootD server that can be away for some seconds, at its own port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = self._start(None)
        self.port = int(self.url.rstrip("/").rpartition(":")[2])

    def _start(self, port: int | None) -> str:
        self.stack = ExitStack()
        url, self.process = self.stack.enter_context(running_xrootd(self.folder, port))
        return url

    def away(self, seconds: float) -> None:
        self.stack.close()
        time.sleep(seconds)
        self._start(self.port)

    def killed(self, seconds: float) -> None:
        self.process.kill()
        self.away(seconds)

    def stopped(self, seconds: float) -> None:
        """Stand still: connections stay, and nobody answers."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            self.process.send_signal(signal.SIGCONT)


@pytest.fixture
def server(samples: dict[str, Path], tmp_path: Path) -> Server:
    if shutil.which("xrootd") is None:
        pytest.skip("no xrootd on this machine (Debian: apt install xrootd-server)")
    folder = tmp_path / "served"
    folder.mkdir()
    for path in samples.values():
        shutil.copy(path, folder / path.name)
    return Server(folder)


@pytest.fixture
def remote_job(server: Server, write_job: Callable[..., Path]) -> Callable[..., Job]:
    def make(patience: float, epochs: int) -> Job:
        datasets = {
            name: {"files": f"{server.url}/{name}.root", "label": label}
            for name, label in (("signal", 1), ("background", 0))
        }
        train = {"epochs": epochs, "early_stopping": False, "max_failures": 0}
        return Job.load(write_job(datasets=datasets, train=train, reading={"patience_s": patience}))

    return make


def test_a_server_that_comes_back_costs_a_pause_that_is_told(
    server: Server, remote_job: Callable[..., Job]
) -> None:
    notes: list[str] = []
    runs: list[RunFolder] = []
    trips: list[threading.Thread] = []

    def on_epoch(report: EpochReport) -> None:
        if report.epoch == 2:
            # XrdCl itself gets over half of that
            trips.append(threading.Thread(target=server.away, args=(40.0,)))
            trips[0].start()

    package = train(
        remote_job(120, 40),
        progress=False,
        hooks=Hooks(on_epoch=on_epoch, on_note=notes.append, on_run=runs.append),
    )
    trips[0].join()
    server.stack.close()
    assert len(package.metrics["history"]) == 40
    assert package.metrics["events"] == 40 * package.metrics["training"]["events"]
    host = f"127.0.0.1:{server.port}"
    assert any(re.fullmatch(rf"{host}: .*; waiting for it, 120 s at most", note) for note in notes), notes
    assert any(re.fullmatch(rf"{host} is back after \d+ s", note) for note in notes), notes
    record = json.loads((Path(runs[0].url) / "record.json").read_text())
    assert [(one["server"], one["over"], one["tries"] >= 1) for one in record["absences"]] == [
        (host, True, True)
    ]
    # every event once in every epoch
    read = {reading["total"]["read"] for reading in record["readings"] if reading["reading"] == "train"}
    assert read == {package.metrics["training"]["events"]}


def test_a_server_that_stays_away_ends_the_run_with_how_to_go_on(
    server: Server, remote_job: Callable[..., Job]
) -> None:
    runs: list[RunFolder] = []

    def on_epoch(report: EpochReport) -> None:
        if report.epoch == 2:
            server.stack.close()

    with pytest.raises(FileUnreadableError) as caught:
        train(remote_job(3, 60), progress=False, hooks=Hooks(on_epoch=on_epoch, on_run=runs.append))
    assert f"then go on: mlaas train --resume {runs[0]}" in str(caught.value)
    record = json.loads((Path(runs[0].url) / "record.json").read_text())
    (absence,) = record["absences"]
    assert (absence["over"], absence["tries"] >= 1) == (False, True)


@pytest.mark.parametrize(
    ("mode", "trouble", "seconds"),
    [
        ("workers", "stopped", 30.0),
        ("cluster", "stopped", 30.0),
        ("cluster", "stopped", 75.0),
        ("cluster", "killed", 20.0),
    ],
)
def test_an_epoch_waits_for_its_server(
    mode: str, trouble: str, seconds: float, server: Server, remote_job: Callable[..., Job]
) -> None:
    runs: list[RunFolder] = []
    trips: list[threading.Thread] = []

    def on_epoch(report: EpochReport) -> None:
        if report.epoch == 2:
            trips.append(threading.Thread(target=getattr(server, trouble), args=(seconds,)))
            trips[0].start()

    job = remote_job(120, 8)
    # less memory than the events need, so that every epoch is a pass over the files
    settings = job.train.model_copy(update={"shuffle_bytes": 100_000})
    reading = job.reading.model_copy(update={"mode": mode})
    job = job.model_copy(update={"train": settings, "reading": reading})
    package = train(job, progress=False, hooks=Hooks(on_epoch=on_epoch, on_run=runs.append))
    trips[0].join()
    server.stack.close()
    metrics = package.metrics
    events = metrics["training"]["events"]
    assert metrics["events"] == 8 * events
    assert events + metrics["validation"]["events"] == 6_000
    record = json.loads((Path(runs[0].url) / "record.json").read_text())
    for one in record["readings"]:
        total = one["total"]
        assert total["read"] == (events if one["reading"] == "train" else 6_000 - events)
        assert total["read"] + total["cut"] + total["elsewhere"] == total["planned"]
    assert metrics["time"]["waiting"] + metrics["time"]["judging"] > seconds / 2
    # XRootD itself gives a connection that stands still some 30 s
    if trouble == "killed" or seconds > 60:
        assert [one["over"] for one in record["absences"]] == [True]
