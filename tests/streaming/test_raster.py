from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import pytest

from mlaas_ray.core.columns import Column, Jagged
from mlaas_ray.core.features import Feature
from mlaas_ray.core.grid import Axis, Channel, GridSpec, View
from mlaas_ray.core.inputs import Inputs
from mlaas_ray.core.prepare import needed_branches, prepare
from mlaas_ray.core.rasterise import rasterise as reference
from mlaas_ray.streaming.events import open_events
from mlaas_ray.streaming.first_pass import Sample, first_pass
from mlaas_ray.streaming.raster import out_of_bounds, rasterise
from mlaas_ray.streaming.source import Source

ETA = Axis(name="eta", bins=11, low=-2.5, high=2.5)
PHI = Axis(name="phi", bins=7, low=-np.pi, high=np.pi, periodic=True)
X = Axis(name="x", bins=1, low=-0.1, high=0.3)
COLLECTIONS = ("Jet", "Muon")


def spec(length: int | None) -> GridSpec:
    """Return scalars, and two views of several channels, one of which looks at some objects only."""
    fields = ("eta", "phi", "x", "pt")
    return GridSpec.of(
        [Feature(name=f"{c}_{field}", kind="jagged") for c in COLLECTIONS for field in fields]
        + [Feature(name="MET", kind="flat"), Feature(name="cov", kind="fixed", length=3)],
        scalars=("MET", "cov"),
        views=tuple(
            View(
                name=f"view{number}",
                x=x,
                y=y,
                channels=(
                    *(
                        Channel(name=c, x=f"{c}_{x.name}", y=f"{c}_{y.name}", weight=f"{c}_pt")
                        for c in COLLECTIONS
                    ),
                    Channel(name="few", x=f"Jet_{x.name}", y=f"Jet_{y.name}", length=length),
                ),
            )
            for number, (x, y) in enumerate([(ETA, PHI), (PHI, X)])
        ),
    )


def events(number: int, order: str, seed: int) -> dict[str, Column]:
    """Return events with positions inside, outside, on edges and nowhere, and weights that are no numbers."""
    random = np.random.default_rng(seed)
    edges = np.concatenate([ETA.edges, PHI.edges, X.edges, [np.nan, np.inf, -np.inf, 1e30, -1e30]])
    columns: dict[str, Column] = {
        "MET": random.normal(size=number).astype(f"{order}f8"),
        "cov": random.normal(size=(number, 3)).astype(f"{order}f4"),
    }
    for collection in COLLECTIONS:
        offsets = np.concatenate([[0], np.cumsum(random.integers(0, 12, number))])
        for field, kind in (("eta", "f4"), ("phi", "f8"), ("x", "f4"), ("pt", "i2")):
            values = random.normal(0, 2, offsets[-1])
            values[random.random(offsets[-1]) < 0.3] *= 0.1
            if kind != "i2":
                special = random.random(offsets[-1]) < 0.3
                values[special] = random.choice(edges, special.sum())
            columns[f"{collection}_{field}"] = Jagged(offsets, values.astype(order + kind))
    pt = columns["Muon_pt"]
    assert isinstance(pt, Jagged)
    columns["Muon_pt"] = Jagged(
        pt.offsets, np.where(pt.content == 0, np.nan, pt.content).astype(f"{order}f8")
    )
    return columns


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("length", [None, 2])
def test_the_kernel_draws_what_the_reference_draws_to_the_last_bit(order: str, length: int | None) -> None:
    columns, of = events(500, order, seed=3), spec(length)
    rows = np.random.default_rng(4).permutation(600)[:500]
    rows[::7] = -1
    drawn, due = np.full((2, 600, of.width), 5.0, np.float32)  # no row may keep it
    counts, expected = rasterise(columns, of, drawn, rows), reference(columns, of, due, rows)
    np.testing.assert_array_equal(drawn, due)
    assert counts.as_dict() == expected.as_dict()
    for plane in expected.as_dict().values():  # all three happen
        assert min(plane.values()) > 0


def test_no_events_and_no_objects_are_drawn_too() -> None:
    of = spec(None)
    out = np.ones((3, of.width), np.float32)
    assert not rasterise(events(0, "<", 0), of, out).numbers.any()
    assert (out == 1).all()
    none: dict[str, Any] = {
        name: Jagged(np.zeros(4, np.int64), np.empty(0)) if isinstance(column, Jagged) else column[:3]
        for name, column in events(3, "<", 0).items()
    }
    assert not rasterise(none, of, out).numbers.any()
    assert not out[:, of.planes[0].start :].any()


def test_values_out_of_bounds_are_counted_by_branch() -> None:
    of = spec(None)
    columns = events(4, ">", 0) | {
        "MET": np.array([1.0, 2.0, np.nan, np.inf], ">f8"),
        "Jet_pt": Jagged(np.array([0, 3, 3, 3, 3]), np.array([-2, 5, 9], ">i2")),
    }
    low, high = np.full((2, len(of.features)), [[-np.inf], [np.inf]], np.float32)
    names = [feature.name for feature in of.features]
    high[names.index("MET")] = 1.5
    low[names.index("Jet_pt")], high[names.index("Jet_pt")] = -1.0, 8.0
    found = dict(zip(names, out_of_bounds(columns, of, (low, high)), strict=True))
    assert {name: n for name, n in found.items() if n} == {"MET": 1, "Jet_pt": 2}


@pytest.mark.usefixtures("ray_local")
def test_a_file_becomes_the_images_that_numpy_draws(write_tree) -> None:
    random = np.random.default_rng(5)
    counts = random.integers(0, 9, 60)
    hits = {
        f"Hit_{field}": ak.unflatten(values.astype(np.float32), counts)
        for field, values in (
            ("eta", random.normal(0, 3, counts.sum())),
            ("phi", random.uniform(-3, 3, counts.sum())),
            ("pt", random.exponential(30, counts.sum())),
        )
    }
    path = write_tree(events=60, extra=hits)
    asked = {
        "representation": "grid",
        "views": {"x": "eta", "y": "phi", "x_bins": 5, "y_bins": 4, "weight": "Hit_w", "channels": ["Hit"]},
        "scalars": "MET_pt",
        "define": {"Hit_w": "sqrt(Hit_pt)"},
        "objects": {"Hit": {"where": "Hit_pt > 10"}},
        "select": "MET_pt > 15",
    }
    of = first_pass([Sample(path)], Inputs.of(asked, "inputs")).features
    assert isinstance(of, GridSpec)
    eta = of.views[0].x
    assert (eta.low, eta.high) == (max(-5, ak.min(hits["Hit_eta"])), min(5, ak.max(hits["Hit_eta"])))

    file = open_events(Source(str(path)))
    names = sorted(needed_branches(of))
    columns, keep = prepare(file.decode(file.fetch(names, 0, 60)), of)
    assert keep is not None
    assert 0 < keep.sum() < 60
    rows = np.where(keep, np.cumsum(keep) - 1, -1)
    out = np.empty((keep.sum(), of.width), np.float32)
    rasterise(columns, of, out, rows)
    np.testing.assert_array_equal(out[:, 0], columns["MET_pt"][keep])
    for image, event in zip(of.fold(out)["eta_phi"][:, 0], np.flatnonzero(keep), strict=True):
        x, y, pt = (values[event].to_numpy() for values in hits.values())
        weight = np.where(pt > 10, np.sqrt(pt), 0)
        edges = [of.views[0].y.edges, eta.edges]
        np.testing.assert_allclose(image, np.histogram2d(y, x, edges, weights=weight)[0], rtol=1e-6)
