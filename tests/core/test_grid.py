from __future__ import annotations

import numpy as np
import pytest

from mlaas_ray.core.errors import FeatureError
from mlaas_ray.core.features import Feature, FeatureSpec, Statistics
from mlaas_ray.core.grid import Axis, Channel, GridSpec, View

ETA = Axis(name="eta", bins=4, low=-2.0, high=2.0)
PHI = Axis(name="phi", bins=3, low=-np.pi, high=np.pi, periodic=True)
PT = Statistics(
    count=4, min=5.0, max=200.0, mean=30.0, std=40.0, quantiles={0.25: 10.0, 0.5: 20.0, 0.75: 32.0}
)
MET = Statistics(
    count=9, min=10.0, max=30.0, mean=20.0, std=5.0, quantiles={0.25: 16.0, 0.5: 18.0, 0.75: 26.0}
)


def grid(**changes: object) -> GridSpec:
    """Return a spec of MET_pt and two channels of 3 x 4 cells: jets by momentum, and how many muons."""
    features = [
        Feature(name=f"{collection}_{field}", kind="jagged", length=5, statistics=PT)
        for collection in ("Jet", "Muon")
        for field in ("eta", "phi", "pt")
    ]
    met = Feature(name="MET_pt", kind="flat", statistics=MET)
    channels = (
        Channel(name="Jet", x="Jet_eta", y="Jet_phi", weight="Jet_pt"),
        Channel(name="Muon", x="Muon_eta", y="Muon_phi"),
    )
    views = (View(name="eta_phi", x=ETA, y=PHI, channels=channels),)
    return GridSpec.of([met, *features], **{"scalars": ("MET_pt",), "views": views, **changes})


def test_columns_are_the_scalars_then_each_image_row_by_row() -> None:
    spec = grid()
    assert spec.width == len(spec.columns) == 1 + 2 * 3 * 4
    assert spec.columns[:3] == ("MET_pt", "eta_phi/Jet/0/0", "eta_phi/Jet/0/1")
    assert spec.columns[-1] == "eta_phi/Muon/2/3"


def test_fold_gives_the_images_their_shape_and_each_cell_its_place() -> None:
    other = View(name="few", x=ETA, y=PHI, channels=(Channel(name="Jet", x="Jet_eta", y="Jet_phi"),))
    spec = grid(views=(*grid().views, other))
    x = np.arange(2 * spec.width, dtype=np.float32).reshape(2, -1)
    folded = spec.fold(x)
    assert {name: images.shape for name, images in folded.items()} == {
        "eta_phi": (2, 2, 3, 4),
        "few": (2, 1, 3, 4),
    }
    assert folded["eta_phi"][1, 1, 2, 0] == x[1, spec.index["eta_phi/Muon/2/0"]]
    assert folded["few"][0, 0, 1, 3] == x[0, spec.index["few/Jet/1/3"]]
    assert np.shares_memory(folded["few"], x)
    assert spec.fold(x[:0])["few"].shape == (0, 1, 3, 4)


def test_json_keeps_it_whole_and_tells_the_representation() -> None:
    spec = grid(define={"Jet_e": "Jet_pt * 2"})
    again = FeatureSpec.from_json(spec.to_json())
    assert isinstance(again, GridSpec)
    assert again == spec
    assert again.digest == spec.digest != grid().digest
    with pytest.raises(FeatureError, match="changed after it was written"):
        FeatureSpec.from_json(spec.to_json().replace('"bins": 4', '"bins": 5'))


@pytest.mark.parametrize(
    ("normalisation", "jets", "met"),
    [
        ("minmax", 1 / 200, (10.0, 1 / 20)),
        ("standard", 1 / 50, (20.0, 1 / 5)),
        ("robust", 1 / 32, (18.0, 1 / 10)),
        ("none", 1.0, (0.0, 1.0)),
    ],
)
def test_images_are_scaled_but_never_shifted(
    normalisation: str, jets: float, met: tuple[float, float]
) -> None:
    offset, scale = grid(normalisation=normalisation).affine()
    assert offset.dtype == scale.dtype == np.float32
    assert not offset[1:].any()
    assert set(scale[1:13]) == {np.float32(jets)}
    assert set(scale[13:]) == {np.float32(1.0)}  # a count
    assert (offset[0], scale[0]) == pytest.approx(met)


def test_what_contradicts_itself_is_refused() -> None:
    view = grid().views[0]
    with pytest.raises(FeatureError, match="two views or channels are called 'eta_phi'"):
        grid(views=(view, view))
    with pytest.raises(FeatureError, match="no feature for the branch 'Tau_eta'"):
        grid(views=(View(name="v", x=ETA, y=PHI, channels=(Channel(name="T", x="Tau_eta", y="Jet_phi"),)),))
    with pytest.raises(FeatureError, match="a scalar is a flat or fixed branch"):
        grid(scalars=("Jet_pt",))


def test_bins_are_those_of_numpy_and_their_last_edge_is_inside() -> None:
    axis = Axis(name="x", bins=7, low=-0.3, high=1.1)
    values = np.concatenate([axis.edges, np.nextafter(axis.edges, 9), np.nextafter(axis.edges, -9)])
    values = np.concatenate([values, np.random.default_rng(0).uniform(-0.5, 1.3, 1000)])
    counted, _ = np.histogram(values, axis.edges)
    index = axis.index(values)
    np.testing.assert_array_equal(np.bincount(index[index >= 0], minlength=7), counted)
    assert list(axis.index(np.array([1.1, np.nan, np.inf, -np.inf]))) == [6, -1, -1, -1]


def test_a_periodic_axis_closes_on_itself() -> None:
    values = np.array([-np.pi, np.pi, np.float32(np.pi), 1.5 * np.pi, -7 * np.pi / 2, 0.0, np.nan, np.inf])
    assert list(PHI.index(values)) == [0, 0, 0, 0, 2, 1, -1, -1]
    assert set(PHI.index(np.random.default_rng(0).normal(0, 50, 1000))) == {0, 1, 2}
