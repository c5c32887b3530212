"""Our kernels do without numba's extensions; a user's functions have them all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys

import awkward as ak
import numpy as np

from mlaas_ray.streaming.sweep import digest, summarise

values = np.arange(5, dtype=np.float64)
assert summarise(values).max == 4, digest(values, 1)
assert "sympy" not in sys.modules and "vector" not in sys.modules

import numba

@numba.njit
def total(events):
    found = 0.0
    for event in events:
        for value in event:
            found += value
    return found

assert total(ak.Array([[1.0, 2.0], [], [3.0]])) == 6.0
assert summarise(values.astype(np.float32)).max == 4
"""


@pytest.mark.parametrize("kept", [True, False])
def test_a_users_function_has_numbas_extensions_and_a_kernel_has_not(kept: bool, tmp_path: Path) -> None:
    # compiled anew, or loaded from what the process before left
    options = {} if kept else {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | options, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
