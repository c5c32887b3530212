"""Labels and weights: of arrays, and on their way from files into tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import uproot

from mlaas_ray.core.errors import BranchMissingError, FeatureError, JobError, LabelError
from mlaas_ray.core.inputs import Inputs
from mlaas_ray.streaming import ReadingSettings, Sample, first_pass, planned_events
from mlaas_ray.streaming.truth import Truth, check_values

NAN = np.nan
COLUMNS: dict[str, Any] = {
    "genWeight": np.array([1.0, -2.0, 0.5]),
    "nGood": np.array([0, 2, 1], np.int32),
    "pt": np.array([10.0, 20.0, 30.0], np.float32),
}


def test_a_label_of_the_dataset_is_that_of_all_its_events() -> None:
    y, weight = Truth(2.0).of(COLUMNS, Inputs(), 3)
    assert (y.tolist(), weight.tolist()) == ([2, 2, 2], [1, 1, 1])
    assert y.dtype == weight.dtype == np.float32


def test_labels_and_weights_are_computed_with_definitions_and_constants() -> None:
    truth = Truth(
        ("many",), "genWeight * xsec * lumi / sum_weights", {"xsec": 3.0, "lumi": 8.0, "sum_weights": 4.0}
    )
    assert truth.names == ("many", "genWeight")
    y, weight = truth.of(COLUMNS, Inputs(define={"many": "nGood > 1"}), 3)
    assert y.tolist() == [0, 1, 0]
    assert weight.tolist() == [6, -12, 3]


def test_several_targets_are_columns_in_the_order_of_the_job() -> None:
    truth = Truth(("pt / 10", "genWeight", "pt - pt"))
    assert truth.targets == 3
    assert list(truth.texts) == ["label 1", "label 2", "label 3"]
    y, _ = truth.of(COLUMNS, Inputs(), 3)
    assert y.tolist() == [[1, 1, 0], [2, -2, 0], [3, 0.5, 0]]


@pytest.mark.parametrize(
    ("y", "weight", "kept", "classes", "said"),
    [
        ([0, 1, 2], [1, 1, 1], None, 2, "the class 'nGood' of entry 12 in a.root, tree 'Events' is 2"),
        ([0, -1, 2], [1, 1, 1], None, 2, r"of entry 11 .* is -1 \(and 1 more like it\)"),
        ([0.5, 1, 0], [1, 1, 1], None, 2, "the class 'nGood' of entry 10 .* is 0.5"),
        ([0, NAN, 0], [1, 1, 1], None, 2, "the label 'nGood' of entry 11 .* is nan"),
        ([0, np.inf, 0], [1, 1, 1], None, 0, "the label 'nGood' of entry 11 .* is inf.* isfinite"),
        ([[0, 1], [0, -np.inf], [np.inf, 0]], [1, 1, 1], None, 0, "the label 'nGood' of entry 12 .* is inf"),
        ([[0, 1], [0, -np.inf], [2, 0]], [1, 1, 1], None, 0, "the label 'pt' of entry 11 .* is -inf"),
        ([0, 1, 0], [1, 1, NAN], None, 2, "the weight 'genWeight' of entry 12 .* is nan"),
        ([0, 3, 4], [1, 1, 1], [True, False, True], 2, "of entry 12 .* is 4. Classes are numbered 0 to 1"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_with_its_entry_and_expression(
    y: Any, weight: Any, kept: Any, classes: int, said: str
) -> None:
    texts = {"label": "nGood", "label 2": "pt", "weights": "genWeight"}
    arrays = np.array(y, np.float32), np.array(weight, np.float32)
    mask = None if kept is None else np.array(kept)
    with pytest.raises(LabelError, match=said):
        check_values(*arrays, mask, classes, "a.root, tree 'Events'", 10, texts)


@pytest.mark.parametrize(
    ("y", "weight", "kept", "classes"),
    [
        ([0, 1, 2], [1, -1, 0], None, 3),
        ([-5, 0.5, 1e30], [1, 1, 1], None, 0),
        ([0, 9, 1], [1, NAN, 1], [True, False, True], 2),
        ([[0, 1], [NAN, 1], [2, 3]], [1, 1, 1], [True, False, True], 0),
    ],
)
def test_negative_weights_and_what_is_cut_are_let_through(
    y: Any, weight: Any, kept: Any, classes: int
) -> None:
    mask = None if kept is None else np.array(kept)
    check_values(np.array(y, np.float32), np.array(weight, np.float32), mask, classes, "a.root")


def table_of(samples: list[Sample], inputs: Inputs | None = None, **options: Any) -> pa.Table:
    """Read all events of samples, in the order of their files."""
    inputs = inputs or Inputs(include=["MET_pt"])
    events = planned_events(first_pass(samples, inputs), reading=ReadingSettings(threads=1), **options)
    return pa.concat_tables(list(events.tables(0, range(events.blocks(0)))))


def arrays_of(path: Path, *names: str) -> Any:
    with uproot.open(path) as file:
        return file["Events"].arrays(list(names), library="np")


@pytest.fixture
def simulated(write_tree) -> Path:
    """A file of 60 events with classes 0, 1 and 2 and weights of both signs."""
    random = np.random.default_rng(4)
    extra = {
        "nGood": random.integers(0, 3, 60).astype(np.int32),
        "genWeight": random.normal(1.0, 1.0, 60).astype(np.float32),
    }
    return write_tree("simulated.root", events=60, clusters=3, extra=extra)


pytestmark = pytest.mark.usefixtures("ray_local")


def test_each_dataset_has_its_own_label_and_weight(write_tree, simulated: Path) -> None:
    other = write_tree("data.root", events=40, seed=1)
    constants = {"xsec": 4.0, "sum_weights": 2.0}
    table = table_of(
        [
            Sample(other, label=0.0, name="data"),
            Sample(
                simulated, label=1.0, name="mc", weight="genWeight * xsec / sum_weights", constants=constants
            ),
        ]
    )
    dataset, entry = table["dataset"].to_numpy(), table["entry"].to_numpy()
    assert np.bincount(dataset).tolist() == [40, 60]
    assert (table["y"].to_numpy() == dataset).all()
    weight = table["weight"].to_numpy()
    assert (weight[dataset == 0] == 1).all()
    expected = arrays_of(simulated, "genWeight")["genWeight"][entry[dataset == 1]] * 2
    np.testing.assert_allclose(weight[dataset == 1], expected, rtol=1e-6)


def test_labels_of_expressions_stay_with_their_events_when_these_are_selected_and_shuffled(
    simulated: Path,
) -> None:
    inputs = Inputs(include=["MET_pt"], define={"three": "nGood * 1"}, select="MET_pt > 20")
    table = table_of([Sample(simulated, label=("three",))], inputs, shuffle=True, seed=5, classes=3)
    there = arrays_of(simulated, "MET_pt", "nGood")
    entry = table["entry"].to_numpy()
    assert sorted(entry) == np.flatnonzero(there["MET_pt"] > 20).tolist()
    assert (np.diff(entry) < 0).any()
    assert (table["y"].to_numpy() == there["nGood"][entry]).all()
    assert (table["x"].combine_chunks().to_numpy_ndarray()[:, 0] == there["MET_pt"][entry]).all()


def test_several_targets_come_as_a_tensor(simulated: Path) -> None:
    table = table_of([Sample(simulated, label=("MET_pt", "genWeight * 2"))])
    there = arrays_of(simulated, "MET_pt", "genWeight")
    y = table["y"].combine_chunks().to_numpy_ndarray()
    expected = np.stack([there["MET_pt"], there["genWeight"] * 2], axis=1)[table["entry"].to_numpy()]
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_a_label_outside_the_classes_is_refused_naming_file_tree_and_expression(simulated: Path) -> None:
    there = arrays_of(simulated, "nGood")["nGood"]
    first = int(np.flatnonzero(there == 2)[0])
    with pytest.raises(LabelError) as caught:
        table_of([Sample(simulated, label=("nGood",))], classes=2)
    assert f"the class 'nGood' of entry {first} in {simulated}, tree 'Events' is 2" in str(caught.value)
    assert "Classes are numbered 0 to 1" in str(caught.value)


def test_a_weight_that_is_no_number_is_refused_naming_file_and_entry(write_tree) -> None:
    weight = np.ones(100, np.float32)
    weight[[57, 58]] = NAN
    path = write_tree(extra={"w": weight})
    with pytest.raises(LabelError) as caught:
        table_of([Sample(path, weight="w * xsec", constants={"xsec": 2.0})])
    assert f"the weight 'w * xsec' of entry 57 in {path}, tree 'Events' is nan" in str(caught.value)


def test_a_weight_that_is_no_number_may_be_cut(write_tree) -> None:
    weight = np.ones(100, np.float32)
    weight[57] = NAN
    path = write_tree(extra={"w": weight})
    table = table_of([Sample(path, weight="w")], Inputs(include=["MET_pt"], select="isfinite(w)"))
    assert table["entry"].to_pylist() == [entry for entry in range(100) if entry != 57]


def test_a_bad_label_is_no_damage_of_a_file_that_could_be_skipped(simulated: Path) -> None:
    reading = ReadingSettings.of({"bad_files": {"policy": "skip", "max_fraction": 1.0}}, "test")
    found = first_pass([Sample(simulated, label=("nGood",))], Inputs(include=["MET_pt"]), reading=reading)
    events = planned_events(found, reading=reading, classes=2)
    with pytest.raises(LabelError, match="the class 'nGood'"):
        list(events.tables(0, range(events.blocks(0))))


@pytest.mark.parametrize(
    ("truth", "error", "said"),
    [
        ({"weight": "genWeigt"}, BranchMissingError, "no branch 'genWeigt' in .*Did you mean 'genWeight'"),
        ({"label": ("nGod",)}, BranchMissingError, "no branch 'nGod' in .*Did you mean 'nGood'"),
        (
            {"weight": "genWeight * xsek", "constants": {"xsec": 1.0}},
            BranchMissingError,
            "no branch 'xsek' in .*Did you mean 'xsec'",
        ),
        ({"weight": "exec('1')"}, JobError, "weights: there is no function 'exec'"),
        ({"weight": "genWeight.tofile('x')"}, JobError, "weights: there is no function 'genWeight.tofile'"),
        ({"label": ("__import__('os')",)}, JobError, "label: "),
        ({"label": ("nGood", "(")}, JobError, "label 2: "),
    ],
    ids=str,
)
def test_a_wrong_expression_is_told_before_an_event_is_read(
    simulated: Path, truth: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=f"(?s){said}"):
        first_pass([Sample(simulated, **truth)], Inputs(include=["MET_pt"]))


def test_an_expression_of_objects_is_refused_naming_the_file(simulated: Path) -> None:
    with pytest.raises(FeatureError) as caught:
        table_of([Sample(simulated, weight="Jet_pt")])
    assert "weights: 'Jet_pt' gives one value for each object" in str(caught.value)
    assert str(simulated) in str(caught.value)
