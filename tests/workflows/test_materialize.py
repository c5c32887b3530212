from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot
import yaml

from mlaas_ray.core import FeatureSpec
from mlaas_ray.core.errors import JobError
from mlaas_ray.streaming import first_pass, read_events
from mlaas_ray.streaming.record import FATES
from mlaas_ray.workflows import Job
from mlaas_ray.workflows.materialize import materialize_job

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture
def job(samples: dict[str, Path], tmp_path: Path) -> Job:
    content = {
        "datasets": {
            name: {"files": str(path), "label": int(name == "signal")} for name, path in samples.items()
        },
        "define": {"HT": "sum(Jet_pt)"},
        "select": "MET_pt > 20",
        "inputs": {
            "include": ["MET_pt", "HT", "Jet_pt"],
            "objects": {"Jet": {"length": 3, "sort_by": "Jet_pt"}},
        },
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(content))
    return Job.load(path)


def rows_of(job: Job, part: tuple[float, float]) -> np.ndarray:
    """Return the rows of a job's part, in an order of their own."""
    found = first_pass(job.samples({}), job.wanted, reading=job.reading, key=job.split.key)
    dataset = read_events(found, part=part, seed=job.seed)
    batches = dataset.iter_batches(batch_size=None, batch_format="numpy")
    rows = np.concatenate([np.column_stack([batch["y"], batch["weight"], batch["x"]]) for batch in batches])
    return rows[np.lexsort(rows.T)]


def test_the_shards_give_the_events_of_the_originals_on_the_same_side(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    record = materialize_job(job, output)
    again = Job.load(output / "job.yaml")
    assert again.define == job.define
    for part in ((0.0, 0.8), (0.8, 1.0)):
        original = rows_of(job, part)
        assert len(original) > 100
        np.testing.assert_array_equal(rows_of(again, part), original)
    total = record["total"]
    assert total["read"] + total["cut"] == total["planned"] == 6_000
    assert json.loads((output / "record.json").read_text())["total"]["read"] == total["read"]
    features = FeatureSpec.from_json((output / "features.json").read_text())
    assert features.width == 5


def test_what_files_lack_is_filled_before_and_after_alike(tmp_path: Path) -> None:
    arrays = {"x": np.arange(50.0), "HLT_A": np.arange(50) % 2 == 0, "id": np.arange(50, dtype=np.int32)}
    for number, names in enumerate((("x", "HLT_A", "id"), ("x",), ("x", "HLT_A", "id"))):
        with uproot.recreate(tmp_path / f"{number}.root") as file:
            content = {name: arrays[name] for name in names}
            file.mktree("t", {name: array.dtype for name, array in content.items()}).extend(content)
    content = {
        "datasets": {
            "full": {"files": str(tmp_path / "0.root"), "label": 1},
            "bare": {"files": [str(tmp_path / "1.root"), str(tmp_path / "2.root")], "label": 0},
        },
        "reading": {"missing": "fill"},
        "define": {"bit": "id & 2", "none": "~HLT_A"},
    }
    job = Job.of(content, "test")
    materialize_job(job, tmp_path / "shards")
    again = Job.load(tmp_path / "shards" / "job.yaml")
    np.testing.assert_array_equal(rows_of(again, (0.0, 1.0)), rows_of(job, (0.0, 1.0)))
    asking = Job.of(content | {"define": {"none": "is_missing(HLT_A)"}}, "test")
    with pytest.raises(JobError, match=r"'is_missing\(HLT_A\)' asks which files lack a branch"):
        materialize_job(asking, tmp_path / "others")


def test_labels_and_weights_are_in_the_shards_too(job: Job, tmp_path: Path) -> None:
    content = job.model_dump(mode="json", exclude_unset=True)
    for dataset in content["datasets"].values():
        dataset["label"] = {"expression": "nMuon > 0"}
    content["datasets"]["signal"]["xsec"] = 3.0
    content["datasets"]["background"]["xsec"] = 5.0
    content["weights"] = "xsec * (MET_phi + 4)"
    job = Job.of(content, "the job").checked(tmp_path)
    materialize_job(job, tmp_path / "shards")
    again = Job.load(tmp_path / "shards" / "job.yaml")
    original = rows_of(job, (0.0, 1.0))
    assert set(original[:, 0]) == {0.0, 1.0}
    assert len(np.unique(original[:, 1])) > 100
    np.testing.assert_array_equal(rows_of(again, (0.0, 1.0)), original)


def test_an_interrupted_run_goes_on_with_what_is_missing(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    whole = materialize_job(job, output)
    shards = sorted(output.glob("*/*.parquet"))
    kept, lost = shards[0], shards[-1]
    content, written = pq.read_table(lost), kept.stat().st_mtime_ns
    lost.unlink()
    resumed = materialize_job(job, output)
    assert pq.read_table(lost).equals(content)
    assert kept.stat().st_mtime_ns == written
    fates = ("planned", *FATES, "not_reached")
    assert [resumed["total"][fate] for fate in fates] == [whole["total"][fate] for fate in fates]


def test_a_folder_of_something_else_is_left_alone(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    output.mkdir()
    (output / "thesis.tex").write_text("chapter 1")
    with pytest.raises(JobError, match="not empty, and nothing of ours"):
        materialize_job(job, output)
    (output / "thesis.tex").unlink()
    materialize_job(job, output)
    other = job.model_copy(update={"select": "MET_pt > 21"})
    with pytest.raises(JobError, match="events of another job"):
        materialize_job(other, output)
