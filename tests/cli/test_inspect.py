from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot
from typer.testing import CliRunner, Result

from mlaas_ray.cli.main import app


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAAS_CACHE", str(tmp_path / "cache"))


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def write(path: Path, **extra: Any) -> Path:
    random = np.random.default_rng(len(path.name))
    arrays = {"MET_pt": random.exponential(30, 200).astype("f4"), "n": random.integers(0, 9, 200), **extra}
    path.parent.mkdir(parents=True, exist_ok=True)
    with uproot.recreate(path) as file:
        file.mktree("Events", {name: values.dtype for name, values in arrays.items()}).extend(arrays)
    return path


@pytest.mark.usefixtures("ray_local")
def test_all_that_was_learnt_is_in_the_json(samples: dict[str, Path]) -> None:
    done = inspect(samples["signal"], "--define", "HT=sum(Jet_pt)", "--select", "nJet >= 1", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (file,) = found["files"]
    assert (found["entries"], file["entries"], file["format"]) == (3000, 3000, "TTree")
    assert file["boundaries"][0] == 0
    assert len(file["boundaries"]) == file["clusters"] + 1
    ht = next(feature for feature in found["features"] if feature["name"] == "HT")
    seen = ht["statistics"]
    assert 0 < seen["count"] < 3000
    assert seen["min"] < seen["quantiles"]["0.5"] < seen["quantiles"]["0.99"] <= seen["max"]


@pytest.mark.usefixtures("ray_local")
def test_the_tables_say_what_is_missing_skipped_and_sampled(tmp_path: Path) -> None:
    write(tmp_path / "data" / "one.root", x=np.ones(200))
    write(tmp_path / "data" / "other.root")
    (tmp_path / "data" / "zero.root").write_bytes(b"")
    done = inspect(tmp_path / "data", "--missing", "fill", "--bad-files", "skip", "--sample", 0.5)
    assert done.exit_code == 2  # one of three is too many
    assert "1 of 3 files cannot be read" in done.stderr
    for number in range(9):
        write(tmp_path / "data" / f"{number}.root", x=np.ones(200))
    done = inspect(tmp_path / "data", "--missing", "fill", "--bad-files", "skip", "--sample", 0.5)
    assert done.exit_code == 0, done.stderr
    assert "a sample: 0.5 of the clusters" in done.stdout
    assert "x is missing in 1 of the files" in done.stderr
    assert "zero.root: cannot read" in done.stderr
    assert "median" in done.stdout


@pytest.mark.usefixtures("ray_local")
def test_distributions_are_drawn(tmp_path: Path) -> None:
    extra = {f"v{i}": np.random.default_rng(i).normal(0, 10.0**i, 200) for i in range(12)}
    done = inspect(write(tmp_path / "a.root", **extra), "--plots", tmp_path / "plots")
    assert done.exit_code == 0, done.stderr
    pages = sorted((tmp_path / "plots").iterdir())
    assert [page.name for page in pages] == ["distributions-01.png", "distributions-02.png"]
    assert all(page.read_bytes().startswith(b"\x89PNG") for page in pages)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--define", "HT"], "--define 'HT' defines nothing"),
        (["--missing", "ignore"], "missing"),
        (["--sample", "0"], "sample"),
        (["--select", "MET_pt >"], "select"),
    ],
)
def test_options_that_are_wrong_are_told_before_a_cluster_is_started(
    tmp_path: Path, options: list[str], reason: str
) -> None:
    done = inspect(write(tmp_path / "a.root"), *options, "--address", "127.0.0.1:1")
    assert done.exit_code == 2
    assert reason in done.stderr


@pytest.mark.usefixtures("ray_local")
def test_a_job_file_shows_what_its_training_would_see(tmp_path: Path) -> None:
    """Neither what tells the label, nor what an event weighs."""
    one, other = (
        write(tmp_path / f"{name}.root", truth=np.arange(200) % 3, w=np.ones(200), x=np.ones(200))
        for name in ("one", "other")
    )
    (tmp_path / "job.yaml").write_text(
        f"""
datasets:
  one: {{files: {one}, label: {{branch: truth}}, xsec: 2.0}}
  other: {{files: {other}, label: 0, xsec: 3.0}}
task: {{classes: [u, c, b]}}
define: {{twice: 2 * MET_pt}}
weights: w * xsec
split: {{key: n}}
"""
    )
    done = inspect(tmp_path / "job.yaml", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert [feature["name"] for feature in found["features"]] == ["MET_pt", "n", "twice", "x"]
    assert (found["key"], found["entries"]) == (["n"], 400)
    assert [file["dataset"] for file in found["files"]] == ["one", "other"]
    # what an option leaves out is left out, too
    less = json.loads(inspect(tmp_path / "job.yaml", "--exclude", "x", "--json").stdout)
    assert [feature["name"] for feature in less["features"]] == ["MET_pt", "n", "twice"]


@pytest.mark.usefixtures("ray_local")
def test_a_jobs_cut_flow_is_shown(tmp_path: Path) -> None:
    n = np.arange(200)
    files = [write(tmp_path / f"{name}.root", n=n + shift) for name, shift in (("a", 0), ("b", 100))]
    (tmp_path / "job.yaml").write_text(
        f"""
datasets:
  one: {{files: {files[0]}, label: 1}}
  other: {{files: {files[1]}, label: 0}}
select: (n >= 50) & (n < 150)
"""
    )
    for _ in range(2):  # the second time from what was remembered
        done = inspect(tmp_path / "job.yaml")
        assert done.exit_code == 0, done.stderr
        lines = [line.split() for line in done.stdout[done.stdout.index("cut flow") :].splitlines()]
        assert lines[2:8] == [
            ["one", "all", "events", "200"],
            ["n", ">=", "50", "150", "75.0%", "75.0%"],
            ["n", "<", "150", "100", "66.7%", "50.0%"],
            ["other", "all", "events", "200"],
            ["n", ">=", "50", "200", "100.0%", "100.0%"],
            ["n", "<", "150", "50", "25.0%", "25.0%"],
        ]
    census = json.loads(inspect(tmp_path / "job.yaml", "--json").stdout)["census"]
    assert [one["passed"] for one in census["datasets"]] == [[150, 100], [200, 50]]
    # a sample does not know, and is not to read all
    assert "cut flow" not in inspect(tmp_path / "job.yaml", "--sample", "0.5").stdout


@pytest.mark.usefixtures("ray_local")
def test_on_80_columns_no_name_and_no_number_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "HLT_Ele32_WPTight_Gsf_L1DoubleEG_of_which_the_name_is_long"
    monkeypatch.setenv("COLUMNS", "80")
    file = write(tmp_path / "a.root", **{long: np.full(200, -1.234e-21)})
    done = inspect(file)
    assert done.exit_code == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout
    assert done.stdout.count("-1.234e-21") >= 3  # at least least, median and largest
    name = "".join(line.split(" ")[0] for line in done.stdout[done.stdout.index("HLT") :].splitlines())
    assert name.startswith(long)


@pytest.mark.usefixtures("ray_local")
def test_asked_again_neither_ray_nor_a_reader_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.root")
    first = inspect(path, "--json")
    assert first.exit_code == 0, first.stderr
    code = (
        "import sys\nfrom mlaas_ray.cli.main import app\n"
        f"app(['inspect', {str(path)!r}, '--json'], standalone_mode=False)\n"
        "print(sorted({'ray', 'numba', 'torch', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    again, loaded = done.stdout.strip().splitlines()
    assert (json.loads(again), loaded) == (json.loads(first.stdout), "[]")


@pytest.mark.soak
@pytest.mark.xrootd
@pytest.mark.usefixtures("ray_local")
def test_a_thousand_files_on_a_server_are_known_in_under_two_seconds(
    tmp_path: Path, xrootd_server: Callable[[Path], str]
) -> None:
    for number in range(1000):
        write(tmp_path / "data" / f"{number:04d}.root")
    url = xrootd_server(tmp_path / "data")
    names = tmp_path / "files.txt"
    names.write_text("\n".join(f"{url}/{number:04d}.root" for number in range(1000)))
    first = inspect(names, "--json")
    assert first.exit_code == 0, first.stderr
    assert json.loads(first.stdout)["entries"] == 200_000
    seconds = []
    for _ in range(3):
        begun = time.monotonic()
        again = subprocess.run(
            [sys.executable, "-m", "mlaas_ray.cli.main", "inspect", str(names), "--json"],
            capture_output=True,
            text=True,
            timeout=240,
        )
        seconds.append(time.monotonic() - begun)
        assert json.loads(again.stdout) == json.loads(first.stdout), again.stderr
    assert min(seconds) < 2.0
