from __future__ import annotations

import numpy as np
import pytest

from mlaas_ray.core.columns import Jagged
from mlaas_ray.core.inputs import Inputs, ObjectSettings
from mlaas_ray.core.statistics import Sketches, Statistics, Summary
from mlaas_ray.streaming.events import Branch
from mlaas_ray.streaming.measure import measured, pieces, wishes
from mlaas_ray.streaming.scan import Request, ScannedFile
from mlaas_ray.streaming.settings import ReadingSettings
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.sweep import summarise

RANDOM = np.random.default_rng(7)
MIXED = np.concatenate(
    [RANDOM.normal(0, 50, 20_000), RANDOM.exponential(1e-9, 100), [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e300]]
)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"])
@np.errstate(over="ignore", invalid="ignore")
def test_the_compiled_loop_finds_what_numpy_finds(dtype: str, order: str) -> None:
    values = (MIXED if dtype in ("f4", "f8") else np.clip(np.nan_to_num(MIXED), -1e9, 1e9)).astype(dtype)
    found, due = summarise(values.astype(np.dtype(dtype).newbyteorder(order))), Summary.of(values)
    for name in ("count", "nan", "infinite", "min", "max", "whole"):
        assert getattr(found, name) == getattr(due, name), name
    np.testing.assert_array_equal(found.buckets, due.buckets)
    np.testing.assert_array_equal(found.weights, due.weights)
    one, other = (Sketches.of({"": summary}).statistics("") for summary in (found, due))
    assert (one.mean, one.std) == (pytest.approx(other.mean, rel=1e-9), pytest.approx(other.std, rel=1e-9))


def test_a_small_spread_far_from_zero_is_measured() -> None:
    values = 1e9 + np.arange(100_000.0)
    assert Sketches.of({"": summarise(values)}).statistics("").std == pytest.approx(values.std(), rel=1e-9)


def test_without_values_there_is_nothing() -> None:
    assert Sketches.of({"": summarise(np.empty(0, ">f4"))}).statistics("") == Statistics()


def jagged(*events: list[float]) -> Jagged:
    offsets = np.concatenate([[0], np.cumsum([len(event) for event in events])]).astype(np.int64)
    return Jagged(offsets, np.array([value for event in events for value in event], np.float32))


def test_what_the_model_sees_is_measured() -> None:
    columns = {
        "MET": np.array([10.0, 20.0, 30.0], ">f4"),
        "Jet_pt": jagged([50, 5, 40], [9], [100, 60, 3]),
        "xyz": np.arange(6.0).reshape(3, 2),
    }
    inputs = Inputs(
        define={"HT": "sum(Jet_pt)"},
        select="MET > 15",
        objects={"Jet": ObjectSettings(where="Jet_pt > 8", length=1)},
    )
    seen, _ = measured(columns, ["MET", "Jet_pt", "HT", "xyz"], inputs)
    assert (seen.statistics("MET").min, seen.statistics("MET").count) == (20.0, 2)
    # not cut to the length, but where and select are applied
    assert (seen.largest("Jet_pt"), seen.statistics("Jet_pt").count, seen.statistics("Jet_pt").min) == (
        2,
        3,
        9.0,
    )
    assert seen.statistics("HT").max == 163.0  # definitions see all objects
    assert (seen.statistics("xyz").count, seen.statistics("xyz").min) == (4, 2.0)


def file(entries: int = 1000, clusters: int = 10, size: int = 8000, uuid: str = "a") -> ScannedFile:
    branches = {
        "MET": Branch("MET", "flat", "float"),
        "nJet": Branch("nJet", "flat", "int32_t"),
        "Jet_pt": Branch("Jet_pt", "jagged", "float[]", counter="nJet"),
        "v": Branch("v", "jagged", "std::vector<float>"),
    }
    chosen = {name: (branch.kind, 1) for name, branch in branches.items()}
    edges = tuple(range(0, entries + 1, entries // clusters))
    return ScannedFile(Source("a"), "t", "TTree", uuid, size, entries, edges, size, branches, chosen, {})


def wanted(**inputs: object) -> tuple[list[str], dict[str, str]]:
    return wishes(file(), Request(Inputs(**inputs), ReadingSettings()))  # type: ignore[arg-type]


def test_no_more_is_read_than_must_be_known() -> None:
    lengths = {"Jet": ObjectSettings(length=2), "v": ObjectSettings(length=1)}
    assert wanted() == (["MET", "nJet", "Jet_pt", "v"], {})
    assert wanted(normalise="none") == (["v"], {"Jet_pt": "nJet"})
    assert wanted(normalise="none", objects=lengths) == ([], {})
    # after a selection the counters tell too much
    assert wanted(normalise="none", select="MET > 3") == (["Jet_pt", "v"], {})
    everything = Request(Inputs(normalise="none", objects=lengths), ReadingSettings(), everything=True)
    assert wishes(file(), everything)[0] == ["MET", "nJet", "Jet_pt", "v"]


def test_pieces_cover_what_is_measured_once() -> None:
    assert pieces(file(size=100), 1.0) == [(0, 1000)]
    large = pieces(file(size=320_000_000), 1.0)
    assert large == [(start, start + 100) for start in range(0, 1000, 100)]
    assert pieces(file(size=100), 1.0, stop=250) == [(0, 250)]


def test_a_sample_is_the_same_clusters_each_time_and_never_none() -> None:
    half = pieces(file(clusters=100), 0.5)
    assert half == pieces(file(clusters=100), 0.5)
    assert half != pieces(file(clusters=100, uuid="b"), 0.5)
    assert 30 <= len(half) <= 70
    assert set(pieces(file(clusters=100), 0.1)) < set(half)
    assert len(pieces(file(), 1e-9)) == 1
