from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import pytest

from mlaas_ray.core.columns import Jagged
from mlaas_ray.core.errors import EventError, FeatureError
from mlaas_ray.core.features import Feature
from mlaas_ray.core.flatten import flatten, flatten_events
from mlaas_ray.core.grid import Axis, Channel, GridSpec, View
from mlaas_ray.core.rasterise import Counts, mean_image, rasterise

NAN, INF = np.nan, np.inf
X = Axis(name="x", bins=3, low=0.0, high=3.0)
Y = Axis(name="y", bins=2, low=0.0, high=2.0)

# Two in one cell; on the last edges; none; NaN, outside, and a weight that is no number.
EVENTS: dict[str, Any] = {
    "MET": [1.0, NAN, 3.0, 4.0],
    "Hit_x": [[0.5, 0.1, 2.5], [3.0], [], [NAN, 3.01, 1.0, 1.5]],
    "Hit_y": [[0.5, 0.9, 1.5], [2.0], [], [0.0, 0.0, 0.0, 1.0]],
    "Hit_e": [[1.0, 2.0, -4.0], [8.0], [], [1.0, 1.0, INF, 16.0]],
}


def spec(weight: str | None = "Hit_e", length: int | None = None) -> GridSpec:
    channel = Channel(name="Hit", x="Hit_x", y="Hit_y", weight=weight, length=length)
    return GridSpec.of(
        [Feature(name=name, kind="flat" if name == "MET" else "jagged") for name in EVENTS],
        scalars=("MET",),
        views=(View(name="x_y", x=X, y=Y, channels=(channel,)),),
    )


def columns() -> dict[str, Any]:
    return {name: ak.Array(values) for name, values in EVENTS.items()}


def drawn(of: GridSpec, rows: list[int] | None = None) -> tuple[np.ndarray, Counts]:
    out = np.full((4, of.width), 7.0, np.float32)
    return out, rasterise(columns(), of, out, rows)


def test_four_events_become_the_images_one_draws_by_hand() -> None:
    out, counts = drawn(spec())
    np.testing.assert_array_equal(
        out,
        [
            # MET, row 0,  row 1
            [1.0, 3, 0, 0, 0, 0, -4],
            [NAN, 0, 0, 0, 0, 0, 8],
            [3.0, 0, 0, 0, 0, 0, 0],
            [4.0, 0, 0, 0, 0, 16, 0],
        ],
    )
    assert counts.as_dict() == {"x_y/Hit": {"inside": 5, "outside": 3, "collisions": 1}}


def test_without_a_weight_objects_are_counted() -> None:
    out, counts = drawn(spec(weight=None))
    np.testing.assert_array_equal(out[[0, 3], 1:], [[2, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0]])
    assert counts.as_dict()["x_y/Hit"] == {"inside": 6, "outside": 2, "collisions": 1}


def test_objects_beyond_the_length_are_not_looked_at() -> None:
    out, counts = drawn(spec(weight=None, length=1))
    assert list(out[:, 1:].sum(axis=1)) == [1, 1, 0, 0]
    assert counts.as_dict()["x_y/Hit"] == {"inside": 2, "outside": 1, "collisions": 0}


def test_events_go_to_their_rows_and_those_left_out_count_nothing() -> None:
    plain, _ = drawn(spec())
    out, counts = drawn(spec(), rows=[3, -1, 0, -1])
    np.testing.assert_array_equal(out[[3, 0]], plain[[0, 2]])
    assert (out[[1, 2]] == 7.0).all()
    assert counts.as_dict()["x_y/Hit"] == {"inside": 3, "outside": 0, "collisions": 1}


def test_the_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    _, first = drawn(spec(), rows=[0, 1, -1, -1])
    _, second = drawn(spec(), rows=[-1, -1, 0, 1])
    assert (first + second).as_dict() == drawn(spec())[1].as_dict()
    assert (first + second).flat() == {
        "x_y/Hit inside": 5,
        "x_y/Hit outside": 3,
        "x_y/Hit collisions": 1,
    }


def test_images_are_those_of_numpy_event_by_event() -> None:
    random = np.random.default_rng(1)
    counts = random.integers(0, 30, 40)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    hits = {
        name: random.uniform(-0.5, 3.5, offsets[-1]).astype(np.float32)
        for name in ("Hit_x", "Hit_y", "Hit_e")
    }
    out = np.empty((40, spec().width), np.float32)
    rasterise(
        {name: Jagged(offsets, values) for name, values in hits.items()} | {"MET": np.zeros(40)}, spec(), out
    )
    for event, image in enumerate(spec().fold(out)["x_y"][:, 0]):
        x, y, e = (values[offsets[event] : offsets[event + 1]] for values in hits.values())
        np.testing.assert_allclose(
            image, np.histogram2d(y, x, [Y.edges, X.edges], weights=e)[0], rtol=1e-6, atol=1e-6
        )


def test_equally_many_objects_and_one_an_event_are_objects_too() -> None:
    channels = (Channel(name="Pair", x="Pair_x", y="Pair_y"), Channel(name="PV", x="PV_x", y="PV_y"))
    kinds = {"Pair_x": "fixed", "Pair_y": "fixed", "PV_x": "flat", "PV_y": "flat"}
    own = GridSpec.of(
        [Feature(name=name, kind=kind, length=2 if kind == "fixed" else 1) for name, kind in kinds.items()],
        views=(View(name="x_y", x=X, y=Y, channels=channels),),
    )
    out = np.empty((2, own.width), np.float32)
    pair = np.array([[0.5, 1.5], [1.5, 1.6]])
    rasterise({"Pair_x": pair, "Pair_y": pair, "PV_x": pair[:, 0], "PV_y": pair[:, 1]}, own, out)
    np.testing.assert_array_equal(out[0], [1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(out[1], [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 1, 0])


def test_the_mean_image_is_the_mean_of_the_images() -> None:
    out, _ = drawn(spec())
    np.testing.assert_allclose(mean_image(columns(), spec())["x_y"], spec().fold(out)["x_y"].mean(axis=0))


def test_what_does_not_fit_is_refused() -> None:
    out = np.empty((4, spec().width), np.float32)
    short = columns() | {"Hit_e": ak.Array([[1.0], [8.0], [], []])}
    with pytest.raises(FeatureError, match=r"'Hit_x' and 'Hit_e' differ.*'x_y/Hit'"):
        rasterise(short, spec(), out)
    with pytest.raises(FeatureError, match=r"no values for 'Hit_e'.*'Hit_x'"):
        rasterise({name: values for name, values in columns().items() if name != "Hit_e"}, spec(), out)
    with pytest.raises(FeatureError, match="rows go from 0 to 4, but out has 4"):
        rasterise(columns(), spec(), out, [0, 1, 2, 4])
    with pytest.raises(FeatureError, match=r"of shape \(rows, 7\)"):
        rasterise(columns(), spec(), out.astype(np.float64))
    with pytest.raises(FeatureError, match="'Hit_e' is flat in these events, but jagged"):
        rasterise(columns() | {"Hit_e": np.zeros(4)}, spec(), out)
    with pytest.raises(FeatureError, match="'MET' is no branch of 1 value"):
        rasterise(columns() | {"MET": ak.Array([[1.0], [], [], []])}, spec(), out)


def test_events_as_a_program_sends_them_give_the_same_images() -> None:
    sent = [{name: values[i] for name, values in EVENTS.items()} for i in range(4)]
    sent[1]["MET"] = None
    del sent[2]["Hit_x"], sent[2]["Hit_y"], sent[2]["Hit_e"]
    sent[3]["Hit_x"] = [None, *EVENTS["Hit_x"][3][1:]]
    np.testing.assert_array_equal(flatten_events(sent, spec()), flatten(columns(), spec()))
    np.testing.assert_array_equal(flatten(columns(), spec()), drawn(spec())[0])


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        ({"Hit_x": [1.0, 2.0], "Hit_y": [1.0]}, "differ in how many objects"),
        ({"Hit_x": 1.0}, r"'Hit_x' is jagged, but 1.0 is no list"),
        ({"Hit_w": [1.0]}, r"knows no branch 'Hit_w'.*'Hit_x'"),
        ({"Hit_x": ["a"], "Hit_y": [1.0], "Hit_e": [1.0]}, "'a' is not a number"),
        ({"MET": [1.0]}, "'MET' has one value an event"),
    ],
    ids=str,
)
def test_an_event_that_does_not_fit_is_refused(event: dict[str, Any], problem: str) -> None:
    with pytest.raises(EventError, match=problem):
        flatten_events([event], spec())


def test_damaged_offsets_are_refused() -> None:
    for offsets in ([0, 3, 2, 2, 3], [0, 1, 1, 1, 4], [1, 1, 1, 1, 3]):
        hit = Jagged(np.array(offsets), np.zeros(3))
        with pytest.raises(FeatureError, match="the offsets of 'Hit_x' do not rise from 0 to 3"):
            rasterise(columns() | {"Hit_x": hit}, spec(), np.empty((4, 7), np.float32))


def test_a_number_falls_where_it_did_in_training_whatever_the_precision() -> None:
    edge = 0.7  # of which float32 makes a little less
    x = Axis(name="x", bins=2, low=0.0, high=2 * edge)
    channel = Channel(name="Hit", x="Hit_x", y="Hit_x")
    own = GridSpec.of(
        [Feature(name="Hit_x", kind="jagged")], views=(View(name="v", x=x, y=X, channels=(channel,)),)
    )
    trained = flatten({"Hit_x": ak.Array([np.array([edge], np.float32)])}, own)
    np.testing.assert_array_equal(flatten_events([{"Hit_x": [edge]}], own), trained)
    assert trained[0, own.index["v/Hit/0/0"]] == 1
