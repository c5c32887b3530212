from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot

from mlaas_ray.core.errors import DataError, LabelError
from mlaas_ray.core.inputs import Inputs
from mlaas_ray.streaming import Census, ReadingSettings, Sample, census, first_pass, take_census
from mlaas_ray.streaming.census import Count, DatasetCensus
from tests.streaming.conftest import damage

pytestmark = pytest.mark.usefixtures("ray_local")

NAN = np.nan
CUTS = "(MET_pt > 20) & (nGood < 2 or MET_pt > 60) & any(Jet_pt > 30)"


@pytest.fixture
def two(write_tree) -> dict[str, Path]:
    """Files of two datasets with classes and weights in branches."""
    paths = {}
    for seed, (name, events) in enumerate({"mc": 300, "data": 200}.items()):
        random = np.random.default_rng(seed)
        extra = {
            "nGood": random.integers(0, 3, events).astype(np.int32),
            "w": random.normal(0.5, 1.0, events).astype(np.float32),
        }
        paths[name] = write_tree(f"{name}.root", events=events, clusters=5, seed=seed, extra=extra)
    return paths


def arrays_of(path: Path) -> Any:
    with uproot.open(path) as file:
        return file["Events"].arrays()


def taken(samples: list[Sample], *, inputs: Inputs | None = None, **options: Any) -> Census:
    reading = options.get("reading")
    return take_census(first_pass(samples, inputs or Inputs(include=["MET_pt"]), reading=reading), **options)


def assert_counts(count: Count, weights: Any) -> None:
    """Compare a count with the weights of the events it is of."""
    w = np.asarray(weights, np.float64)
    assert (count.events, count.negative) == (len(w), (w < 0).sum())
    assert count.weight == pytest.approx(w.sum())
    assert count.squares == pytest.approx((w**2).sum())
    assert count.negative_weight == pytest.approx(w[w < 0].sum())


def test_events_are_counted_by_class_and_dataset_with_their_weights(two: dict[str, Path]) -> None:
    samples = [
        Sample(two["mc"], label=("nGood",), name="mc", weight="w * 3"),
        Sample(two["data"], label=2.0, name="data"),
    ]
    found = taken(samples, classes=3)
    mc = arrays_of(two["mc"])
    weight, number = np.asarray(mc.w) * 3, np.asarray(mc.nGood)
    assert [dataset.name for dataset in found.datasets] == ["mc", "data"]
    for label in range(3):
        assert_counts(found.datasets[0].labels[label], weight[number == label])
    assert found.datasets[1].labels == {2.0: Count(200, 200.0, 200.0)}
    classes = found.classes(3)
    assert [one.events for one in classes] == [*np.bincount(number)[:2], (number == 2).sum() + 200]
    assert_counts(classes[2], [*weight[number == 2], *[1.0] * 200])
    assert_counts(found.total, [*weight, *[1.0] * 200])
    assert found.cuts == ()
    assert found.flow() == "mc: 300 events\n    data: 200 events"


def test_the_cut_flow_tells_what_each_cut_leaves(two: dict[str, Path]) -> None:
    inputs = Inputs(include=["MET_pt"], select=CUTS)
    found = taken([Sample(path, name=name) for name, path in two.items()], inputs=inputs, classes=2)
    assert found.cuts == ("MET_pt > 20", "nGood < 2 or MET_pt > 60", "any(Jet_pt > 30)")
    lines = []
    for dataset, path in zip(found.datasets, two.values(), strict=True):
        events, left = arrays_of(path), []
        for cut in (
            lambda e: e.MET_pt > 20,
            lambda e: (e.nGood < 2) | (e.MET_pt > 60),
            # an event's jets, of which one is enough
            lambda e: [any(pt > 30 for pt in jets) for jets in e.Jet_pt],
        ):
            events = events[cut(events)]
            left.append(len(events))
        assert dataset.passed == left
        assert dataset.total.events == left[-1]
        assert 0 < left[2] < left[1] < left[0] < dataset.entries
        lines.append(
            f"{dataset.name}: {dataset.entries} events, {left[0]} after MET_pt > 20, "
            f"{left[1]} after nGood < 2 or MET_pt > 60, {left[2]} after any(Jet_pt > 30)"
        )
    assert found.flow() == "\n    ".join(lines)


def test_the_last_cut_leaves_what_the_selection_does_also_where_bits_are_taken(write_tree) -> None:
    path = write_tree(events=8, extra={"flags": np.arange(8, dtype=np.int32)})
    found = taken(
        [Sample(path)], inputs=Inputs(include=["MET_pt"], select="(flags & 4) & (flags < 7)"), classes=2
    )
    assert found.cuts == ("flags & 4", "flags < 7")
    assert found.datasets[0].passed == [4, 3]
    whole = taken([Sample(path)], inputs=Inputs(include=["MET_pt"], select="flags & 4"), classes=2)
    assert whole.datasets[0].passed == [4] == [whole.total.events]


def test_cuts_see_what_is_defined(write_tree) -> None:
    path = write_tree(events=10, extra={"n": np.arange(10, dtype=np.float32)})
    inputs = Inputs(include=["MET_pt"], define={"twice": "2 * n"}, select="(twice > 6) & (n != 9)")
    dataset = taken([Sample(path, label=("twice > 10",))], inputs=inputs, classes=2).datasets[0]
    assert dataset.passed == [6, 5]
    assert {label: count.events for label, count in dataset.labels.items()} == {0.0: 2, 1.0: 3}


def test_the_spread_of_targets_is_that_of_all_datasets_together(two: dict[str, Path]) -> None:
    samples = [Sample(path, name=name, label=("MET_pt", "nGood - nGood")) for name, path in two.items()]
    found = taken(samples)
    values = np.concatenate([np.asarray(arrays_of(path).MET_pt) for path in two.values()]).astype(float)
    means, deviations = found.spread()
    assert means == pytest.approx([values.mean(), 0.0])
    # a target that never changes cannot be divided by its deviation
    assert deviations == pytest.approx([values.std(), 1.0])
    assert [dataset.labels.keys() for dataset in found.datasets] == [{0.0}, {0.0}]
    assert found.total.events == 500


def test_targets_that_are_numbers_of_the_datasets_are_spread_too(two: dict[str, Path]) -> None:
    found = taken([Sample(two["mc"], name="mc", label=125.0), Sample(two["data"], name="data", label=91.0)])
    values = np.repeat([125.0, 91.0], [300, 200])
    assert found.spread() == (pytest.approx([values.mean()]), pytest.approx([values.std()]))
    assert found.total.events == 500


def test_clusters_of_which_no_event_is_kept_count_nothing(write_tree) -> None:
    # the first of four clusters passes, and nothing else
    path = write_tree(events=40, clusters=4, extra={"n": np.arange(40, dtype=np.float32)})
    inputs = Inputs(include=["MET_pt"], select="n < 10")
    for label in ("n", "2 * n"), ("n",):
        found = taken([Sample(path, label=label)], inputs=inputs)
        values = np.arange(10.0)
        assert found.spread()[0] == pytest.approx([values.mean(), 2 * values.mean()][: len(label)])
        assert found.spread()[1] == pytest.approx([values.std(), 2 * values.std()][: len(label)])
    assert taken([Sample(path, label=("n",))], inputs=inputs, classes=10).total.events == 10


def test_a_dataset_that_could_not_be_read_leaves_the_others_their_spread() -> None:
    whole = DatasetCensus("a", 2, [], {0.0: Count(2, 2.0, 2.0)}, [[2.0, 6.0, 20.0]])
    for datasets in ((whole, DatasetCensus("b")), (DatasetCensus("b"), whole)):
        assert Census((), datasets).spread() == ([3.0], [1.0])


@pytest.mark.parametrize(("most", "counted"), [(None, [300, 200]), (250, [250, 200]), (30, [30, 30])])
@pytest.mark.parametrize("select", [None, "nGood < 9"])
def test_no_more_events_are_counted_than_are_to_be_read(
    two: dict[str, Path], most: int | None, counted: list[int], select: str | None
) -> None:
    found = taken(
        [Sample(path, name=name) for name, path in two.items()],
        inputs=Inputs(include=["MET_pt"], select=select),
        reading=ReadingSettings(max_events=most),
        classes=2,
    )
    assert [dataset.entries for dataset in found.datasets] == counted
    assert [dataset.total.events for dataset in found.datasets] == counted


@pytest.mark.parametrize("classes", [2, 0])
def test_a_census_survives_json(two: dict[str, Path], classes: int) -> None:
    inputs = Inputs(include=["MET_pt"], select=CUTS)
    samples = [Sample(path, name=name, label=("nGood > 1",), weight="w") for name, path in two.items()]
    found = taken(samples, inputs=inputs, classes=classes)
    again = Census.of(json.loads(json.dumps(found.document())))
    assert again == found
    assert again.spread() == found.spread()


def test_a_label_that_is_no_class_ends_the_census_naming_the_file(two: dict[str, Path]) -> None:
    with pytest.raises(
        LabelError, match=rf"the class 'nGood' of entry \d+ in {two['mc']}, tree 'Events' is 2"
    ):
        taken([Sample(two["mc"], label=("nGood",))], classes=2)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A memo to oneself; and how many tasks each census sent out."""
    monkeypatch.setenv("MLAAS_CACHE", str(tmp_path / "cache"))
    sent: list[int] = []
    spread = census.spread

    def noted(function: Any, calls: Any, **options: Any) -> Any:
        if options["description"] == "census":  # and not the first pass's look at the selection
            sent.append(len(calls))
        return spread(function, calls, **options)

    monkeypatch.setattr(census, "spread", noted)
    return sent


def test_the_second_time_nothing_is_read(two: dict[str, Path], tasks: list[int]) -> None:
    sample = Sample(two["mc"], label=("nGood",), weight="w")
    found = first_pass([sample], Inputs(include=["MET_pt"], select="MET_pt > 20"))
    first = take_census(found, classes=3)
    assert len(tasks) == 1
    again = take_census(found, classes=3)
    assert len(tasks) == 1
    assert again == first


@pytest.mark.parametrize(
    ("sample", "select"),
    [
        ({"weight": "w * 2"}, "MET_pt > 20"),
        ({"label": ("nGood > 1",)}, "MET_pt > 20"),
        ({"constants": {"xsec": 2.0}}, "MET_pt > 20"),
        ({"name": "other"}, "MET_pt > 20"),
        ({}, "MET_pt > 30"),
    ],
    ids=str,
)
def test_another_question_is_counted_anew(
    two: dict[str, Path], tasks: list[int], sample: dict[str, Any], select: str
) -> None:
    usual = {"label": ("nGood",), "weight": "w * xsec", "constants": {"xsec": 1.0}, "name": "mc"}
    taken([Sample(two["mc"], **usual)], inputs=Inputs(include=["MET_pt"], select="MET_pt > 20"), classes=3)
    other = {**usual, **sample}
    found = taken([Sample(two["mc"], **other)], inputs=Inputs(include=["MET_pt"], select=select), classes=3)
    assert len(tasks) == 2
    assert found.datasets[0].name == other["name"]


def test_another_tree_of_the_same_file_is_counted_anew(tmp_path: Path, tasks: list[int]) -> None:
    path = tmp_path / "trees.root"
    with uproot.recreate(path) as file:
        for tree, values in {"nominal": np.ones(20), "shifted": np.full(20, 3.0)}.items():
            file.mktree(tree, {"x": values.dtype, "w": values.dtype}).extend(
                {"x": np.arange(20.0), "w": values}
            )
    totals = [
        taken([Sample(path, tree, weight="w")], inputs=Inputs(include=["x"]), classes=2).total.weight
        for tree in ("nominal", "shifted")
    ]
    assert totals == [20.0, 60.0]


def test_what_was_lost_of_a_damaged_file_is_not_remembered(
    write_tree, tmp_path: Path, tasks: list[int]
) -> None:
    # numbers that compress, so that damage shows
    extra = {"w": np.random.default_rng(0).integers(0, 500, 1000).astype(np.float32)}
    paths = [write_tree(f"{n}.root", events=1000, clusters=1, seed=n, extra=extra) for n in (1, 2)]
    good = paths[1].read_bytes()
    damage(paths[1], "w")
    skip = ReadingSettings.of({"bad_files": {"policy": "skip", "max_fraction": 1.0}}, "test")
    samples = [Sample(paths, weight="w")]
    found = first_pass(samples, Inputs(include=["event"]), reading=skip)
    with pytest.raises(DataError, match=r"2\.root"):
        take_census(found, classes=2)
    assert take_census(found, reading=skip, classes=2).total.events == 1000
    paths[1].write_bytes(good)
    assert take_census(found, reading=skip, classes=2).total.events == 2000
