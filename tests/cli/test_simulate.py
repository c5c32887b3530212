"""``mlaas simulate``: files for whoever has none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import uproot
from typer.testing import CliRunner

from mlaas_ray.cli.main import app


def test_each_process_is_a_file_and_equal_seeds_give_equal_events(tmp_path: Path) -> None:
    momenta = []
    for number, seed in enumerate((3, 3, 4)):
        folder = tmp_path / str(number)
        done = CliRunner().invoke(
            app, ["simulate", str(folder), "--events", "50", "--seed", str(seed), "--json"]
        )
        assert done.exit_code == 0, done.output
        files = json.loads(done.stdout)["files"]
        assert files == [str(folder / f"{name}.root") for name in ("background", "signal", "top")]
        momenta.append(np.array([uproot.open(file)["Events"]["MET_pt"].array() for file in files]))
    first, again, other = momenta
    assert first.shape == (3, 50)
    np.testing.assert_array_equal(first, again)
    assert not (first == other).any()


def test_people_are_told_what_was_written(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["simulate", str(tmp_path), "--events", "1000"])
    assert f"{tmp_path / 'top.root'}: 1,000 events" in done.stdout.splitlines()
