"""The training loop of one's own in the documentation runs as it is written."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "docs" / "streaming" / "own_loop.py"


@pytest.mark.slow
def test_a_loop_of_one_s_own_learns_from_root_files(samples: dict[str, Path]) -> None:
    command = [sys.executable, str(EXAMPLE), str(samples["signal"]), str(samples["background"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = ast.literal_eval(done.stdout.splitlines()[-1])
    assert len(losses) == 3
    # 0.69 is to know nothing
    assert losses[2] < losses[0] < 0.69
    assert losses[2] < 0.6
