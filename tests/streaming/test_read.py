from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import uproot
from ray.data import ExecutionOptions

from mlaas_ray.core.errors import FileUnreadableError, JobError
from mlaas_ray.core.flatten import flatten
from mlaas_ray.core.inputs import Inputs
from mlaas_ray.streaming import Sample, block_schema, first_pass, read_events, read_root
from tests.streaming.conftest import damage
from tests.webserver import running_webserver

pytestmark = pytest.mark.usefixtures("ray_local")


def rows_of(dataset) -> dict[str, np.ndarray]:
    batches = list(dataset.iter_batches(batch_size=None, batch_format="numpy"))
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    order = np.lexsort((columns["entry"], columns["file"]))
    return {name: column[order] for name, column in columns.items()}


def test_every_entry_comes_once_and_right(write_tree) -> None:
    paths = [write_tree(f"{seed}.root", events=700, clusters=3, seed=seed) for seed in range(3)]
    found = first_pass([Sample(paths, label=1.0)], Inputs(exclude=["event"]))
    rows = rows_of(read_events(found))
    arrays = uproot.concatenate([f"{path}:Events" for path in paths])
    expected = flatten({name: arrays[name] for name in arrays.fields}, found.features)
    np.testing.assert_array_equal(rows["x"], expected)
    np.testing.assert_array_equal(rows["entry"], np.tile(np.arange(700), 3))
    np.testing.assert_array_equal(rows["file"], np.repeat([0, 1, 2], 700))
    assert set(rows["y"]) == {1.0}
    assert set(rows["weight"]) == {1.0}


def test_blocks_have_the_agreed_schema(write_tree) -> None:
    dataset = read_root(write_tree(), branches=["MET_pt", "Jet_pt"])
    schema = dataset.schema().base_schema
    width = schema.field("x").type.shape[0]
    assert schema == block_schema(width)
    assert isinstance(schema.field("x").type, pa.FixedShapeTensorType)


@pytest.mark.parametrize("options", [None, ExecutionOptions()], ids=["own", "as Ray Train sets them"])
def test_without_shuffling_rows_are_in_the_order_of_the_files(
    write_tree, tmp_path: Path, options: ExecutionOptions | None
) -> None:
    write_tree("a.root", events=100, clusters=1)
    write_tree("b.root", events=1_500, clusters=15, seed=1)
    with running_webserver(tmp_path) as web:
        found = first_pass([Sample([f"{web.url}/{name}.root" for name in "ab"])], Inputs(include=["MET_pt"]))
        web.slow["/a.root"] = 1.0  # the first file comes last
        dataset = read_events(found)
        if options is not None:
            dataset.context.execution_options = options
        batches = list(dataset.iter_batches(batch_size=64, batch_format="numpy"))
    file, entry = (np.concatenate([batch[name] for batch in batches]) for name in ("file", "entry"))
    np.testing.assert_array_equal(file, np.repeat([0, 1], [100, 1_500]))
    np.testing.assert_array_equal(entry, np.concatenate([np.arange(100), np.arange(1_500)]))


def test_two_parts_share_no_event_and_lose_none(write_tree) -> None:
    found = first_pass([Sample(write_tree(events=5000, clusters=5))], Inputs(include=["MET_pt"]))
    parts = [rows_of(read_events(found, part=part, seed=7)) for part in ((0.0, 0.8), (0.8, 1.0))]
    entries = np.concatenate([part["entry"] for part in parts])
    assert np.array_equal(np.sort(entries), np.arange(5000))
    assert len(parts[1]["entry"]) == pytest.approx(1000, abs=100)


def test_a_copy_of_a_file_is_split_alike(write_tree, tmp_path: Path) -> None:
    path = write_tree(events=500)
    copy = tmp_path / "elsewhere.root"
    copy.write_bytes(path.read_bytes())
    sides = [rows_of(read_root(file, branches=["MET_pt"], part=(0.0, 0.5)))["entry"] for file in (path, copy)]
    np.testing.assert_array_equal(*sides)


def test_a_read_that_fails_names_file_tree_and_branch(write_tree) -> None:
    path = write_tree(events=2000, clusters=1)
    features = first_pass([Sample(path)], Inputs(include=["MET_pt"])).features
    damage(path, "MET_pt")
    with pytest.raises(FileUnreadableError, match=r"a.root, tree 'Events', branch 'MET_pt'"):
        read_root(path, features=features).materialize()


def test_features_and_branches_contradict_each_other(write_tree) -> None:
    features = first_pass([Sample(write_tree())]).features
    with pytest.raises(JobError, match="features say which branches"):
        read_root(write_tree(), features=features, branches=["MET_pt"])


@pytest.mark.parametrize(
    ("name", "tree"),
    [
        ("sigbkg/single_top.root", "events"),
        ("nanoaod/NanoAODv5_sample.root", "Events"),
        ("nanoaod/agc_open-data-example_CMS2012_dimuon_100k.root", "Events"),
        ("nanoaod/nano_tt_v12.root", "Events"),
    ],
)
def test_real_files_are_read_entry_by_entry_as_uproot_reads_them(
    real_data: Path, name: str, tree: str
) -> None:
    path = real_data / name
    found = first_pass([Sample(path, tree)])
    rows = rows_of(read_events(found))
    with uproot.open(path) as file:
        names = [feature.name for feature in found.features.features]
        arrays = file[tree].arrays(filter_name=lambda branch: branch in set(names), how=dict)
    assert len(rows["x"]) == found.entries
    np.testing.assert_array_equal(rows["x"], flatten(arrays, found.features))
