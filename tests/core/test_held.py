"""Folders that go with whoever makes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlaas_ray.core import held
from mlaas_ray.core.held import ABANDONED_S, held_folder, sweep

HOLDER = """
import sys, time
from pathlib import Path
from mlaas_ray.core.held import held_folder
with held_folder(Path(sys.argv[1]), "up-") as folder:
    (folder / "half").write_text("written")
    print(folder, flush=True)
    time.sleep(60)
"""


def holder(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_folder_is_there_while_it_is_held(tmp_path):
    with held_folder(tmp_path, "up-") as folder:
        (folder / "file").write_text("x")
        assert sweep(tmp_path, "up-") == []
        assert (folder / "file").exists()
    assert list(tmp_path.iterdir()) == []


def test_what_is_renamed_out_of_it_stays(tmp_path):
    with held_folder(tmp_path, "up-") as folder:
        (folder / "made").mkdir()
        (folder / "made").rename(tmp_path / "made")
    assert os.listdir(tmp_path) == ["made"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="full"), held_folder(tmp_path, "up-"):
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []


def test_only_what_no_living_process_holds_is_swept(tmp_path):
    (killed, left), (living, kept) = holder(tmp_path), holder(tmp_path)
    try:
        assert sweep(tmp_path, "up-") == []
        killed.kill()
        killed.wait(60)
        age(kept.parent, 10 * ABANDONED_S)  # however long it takes
        assert sweep(tmp_path, "up-") == [left.parent]
        assert not left.exists()
        assert (kept / "half").read_text() == "written"
        assert sweep(tmp_path, "other-") == []
    finally:
        for process in (killed, living):
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)


def test_what_has_no_lock_is_swept_when_it_is_old(tmp_path, monkeypatch):
    for name in ("up-of-an-older-release", "up-new-not-named-yet"):
        (tmp_path / name).mkdir()
    (tmp_path / "up-new-not-named-yet" / "lock").touch()
    assert sweep(tmp_path, "up-") == []
    for folder in tmp_path.iterdir():
        age(folder, ABANDONED_S + 60)
    assert len(sweep(tmp_path, "up-")) == 2

    def no_locks(*_):
        raise OSError("no locks on this file system")

    monkeypatch.setattr(held.fcntl, "flock", no_locks)
    with held_folder(tmp_path, "up-") as folder:
        assert sweep(tmp_path, "up-") == []
        age(folder.parent, ABANDONED_S + 60)
        assert sweep(tmp_path, "up-") == [folder.parent]


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lock").touch()
    (tmp_path / "up-link").symlink_to(tmp_path / "elsewhere")
    assert sweep(tmp_path, "up-") == []
    assert (tmp_path / "elsewhere" / "lock").exists()
