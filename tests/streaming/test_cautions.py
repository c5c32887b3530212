"""Inputs and classes that are warned about before training, and those that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from mlaas_ray.core.inputs import Inputs
from mlaas_ray.streaming import FirstPass, ReadingSettings, Sample, first_pass, take_census
from mlaas_ray.streaming.cautions import cautions
from mlaas_ray.streaming.census import Census, Count, DatasetCensus

EVENTS = 3000
TREE = "DiHiggsWWBBAna/evtree"


def columns(sign: int, events: int = EVENTS) -> dict[str, Any]:
    """Branches of a dataset; ``sign`` is 1 for signal and 0 for background."""
    random = np.random.default_rng(sign)
    x = random.normal(sign, 1.0, events)
    single = x.astype(np.float32)
    counts = random.integers(0, 4, events)
    jagged = ak.unflatten(random.normal(size=counts.sum()).astype(np.float32), counts)
    halves = np.repeat([0.0, 1.0], events // 2)
    return {
        "x": x,
        "single": single,
        "zero": np.zeros(events),
        # one number to float32, in which a model sees it
        "near": 1e9 + random.random(events),
        "nowhere": np.full(events, np.nan),
        "signal_only": x if sign else np.full(events, np.nan),
        "year": np.full(events, 2016 + sign),
        "trigger": random.random(events) < 0.5 * sign,
        # the same values in other events
        "early": halves,
        "late": 1 - halves,
        "backwards": x[::-1].copy(),
        "twice": 2 * x,
        "sparse": np.where(random.random(events) < 0.5, 5.0, np.nan),
        "Jet_pt": jagged,
        "Jet_copy": jagged,
        "Jet_back": jagged[:, ::-1],
        "Jet_zero": 0 * jagged,
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> FirstPass:
    folder = tmp_path_factory.mktemp("cautions")
    samples = []
    for sign, name in enumerate(("background", "signal")):
        # two files, in clusters of their own
        for number in range(2):
            with uproot.recreate(folder / f"{name}{number}.root") as file:
                rows = columns(sign)
                half = slice(number * EVENTS // 2, (number + 1) * EVENTS // 2)
                file["Events"] = {branch: values[half] for branch, values in rows.items()}
        samples.append(Sample(f"{folder}/{name}*.root", None, float(sign), name))
    return first_pass(samples, progress=False)


def told(found: FirstPass, kind: str) -> list[tuple[set[str], tuple[str, ...]]]:
    return [(set(one.names), one.datasets) for one in cautions(found) if one.kind == kind]


def test_inputs_without_a_value_are_named_with_their_datasets(found: FirstPass) -> None:
    assert told(found, "missing") == [
        ({"nowhere"}, ("background", "signal")),
        ({"signal_only"}, ("background",)),
    ]


def test_inputs_of_one_value_are_named_with_their_datasets(found: FirstPass) -> None:
    assert told(found, "constant") == [
        ({"near", "zero", "Jet_zero"}, ("background", "signal")),
        ({"trigger"}, ("background",)),
        ({"year"}, ("background", "signal")),
    ]


def test_inputs_that_are_equal_in_every_event_are_named_and_others_are_not(found: FirstPass) -> None:
    assert told(found, "duplicate") == [
        ({"single", "x"}, ("background", "signal")),
        ({"Jet_copy", "Jet_pt"}, ("background", "signal")),
    ]


def test_warnings_say_what_to_do(found: FirstPass) -> None:
    lines = [str(one) for one in cautions(found)]
    assert (
        "warning: trigger is constant in background, but not in signal. The model can tell these datasets "
        "apart by that alone: unless it should, name it in inputs.exclude."
    ) in lines
    assert (
        "warning: single, x are the same in all events of background, signal. Keep one: inputs.exclude: [x]."
    ) in lines
    assert any(
        "year is constant in each of background, signal, with different values" in line for line in lines
    )
    assert any("nowhere has no value in any event of background, signal" in line for line in lines)


def test_what_is_selected_counts(found: FirstPass) -> None:
    inputs = Inputs(include=("x", "early", "year"), select="early == 1")
    chosen = first_pass(found.samples, inputs, progress=False)
    assert told(chosen, "constant") == [
        ({"early"}, ("background", "signal")),
        ({"year"}, ("background", "signal")),
    ]


def test_equal_inputs_are_found_however_the_files_are_cut(found: FirstPass) -> None:
    few = first_pass(found.samples, reading=ReadingSettings(max_events=EVENTS // 2 + 100), progress=False)
    assert told(few, "duplicate")[:1] == [({"single", "x"}, ("background", "signal"))]
    known = first_pass(found.samples, features=found.features, progress=False)
    # what was not measured is not spoken of
    assert cautions(known) == []


def test_what_is_remembered_is_warned_about_as_what_was_measured(
    found: FirstPass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLAAS_CACHE", str(tmp_path))
    for _ in range(2):  # file by file, and then as a whole
        again = first_pass(found.samples, progress=False)
        assert cautions(again) == cautions(found)
    assert again.digests == found.digests


def census_of(**events: int) -> Census:
    parts = [
        DatasetCensus(name, count, [], {float(label): Count(count, float(count), float(count))})
        for label, (name, count) in enumerate(events.items())
    ]
    return Census((), tuple(parts))


@pytest.mark.parametrize(
    ("events", "validation", "few"),
    [
        ({"a": 5000, "b": 5000}, 0.2, []),
        ({"a": 5000, "b": 40}, 0.2, ["b"]),
        ({"a": 120, "b": 120}, 0.2, ["a", "b"]),
        # enough to learn from, and none to judge by
        ({"a": 5000, "b": 900, "c": 200}, 0.01, ["b", "c"]),
    ],
)
def test_classes_with_few_events_are_named(
    found: FirstPass, events: dict[str, int], validation: float, few: list[str]
) -> None:
    parts = ((0.0, 1 - validation), (1 - validation, 1.0))
    warned = [one for one in cautions(found, census_of(**events), list(events), parts) if one.kind == "few"]
    assert [one.names for one in warned] == [(name,) for name in few]
    for one in warned:
        (name,) = one.names
        assert one.datasets == (name,)
        assert f"class {name} has {events[name]:,} events after the cuts" in one.text
        assert f"{events[name] * validation:.0f} judged by" in one.text


def test_few_events_of_a_regression_are_told(found: FirstPass) -> None:
    warned = cautions(found, census_of(a=60), (), ((0.0, 0.8), (0.8, 1.0)))
    assert warned[-1].text.startswith("there are 60 events after the cuts (in a), of which about 48 are")


@pytest.mark.parametrize(("events", "told"), [(199, True), (201, False)])
def test_a_network_with_few_events_for_its_columns_is_told_of_trees(
    found: FirstPass, events: int, told: bool
) -> None:
    count = round(events * found.features.width / 0.8)
    asked = (found, census_of(a=count), ("a",), ((0.0, 0.8), (0.8, 1.0)))
    warned = [one for one in cautions(*asked, network=True) if one.kind == "trees"]
    assert len(warned) == told
    assert "trees" not in {one.kind for one in cautions(*asked)}
    for one in warned:
        assert f"for {found.features.width} columns, {events} each" in one.text
        assert "framework: xgboost" in one.remedy


def test_the_census_of_real_datasets_names_small_classes(found: FirstPass) -> None:
    small = [found.samples[0], Sample(found.samples[1].files, None, 1.0, "signal")]
    cut = first_pass(small, Inputs(include=("x",), select="(x > 2.9) | (year == 2017)"), progress=False)
    counted = take_census(cut, classes=2, progress=False)
    (warned,) = cautions(cut, counted, ["background", "signal"], ((0.0, 0.8), (0.8, 1.0)))
    assert (warned.names, warned.datasets) == (("background",), ("background",))


def test_real_inputs_are_warned_about_as_numpy_finds_them(real_data: Path, ray_local: None) -> None:
    path = real_data / "sigbkg" / "MVA_Radion_M-260.root"
    real = first_pass([Sample(str(path), TREE, 1.0, "radion")], progress=False)
    with uproot.open(path) as file:
        arrays = {n: v.astype(np.float32) for n, v in file[TREE].arrays(library="np").items() if v.ndim == 1}
    names = [feature.name for feature in real.features.features]
    constant = {name for name in names if len(np.unique(arrays[name])) == 1}
    assert told(real, "constant") == [(constant, ("radion",))]
    content: dict[bytes, set[str]] = {}
    for name in sorted(set(names) - constant):
        content.setdefault((arrays[name] + 0).tobytes(), set()).add(name)
    equal = sorted(sorted(group) for group in content.values() if len(group) > 1)
    assert sorted(sorted(group) for group, _ in told(real, "duplicate")) == equal
    assert equal
