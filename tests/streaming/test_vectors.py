from __future__ import annotations

import numpy as np
import pytest

from mlaas_ray.core.columns import Jagged
from mlaas_ray.streaming.vectors import components, is_vector


@pytest.mark.parametrize(
    "name",
    [
        "TLorentzVector",
        "TVector3",
        "vector<TLorentzVector>",
        "std::vector<TVector2>",
        "ROOT::Math::LorentzVector<ROOT::Math::PtEtaPhiM4D<float> >",
        "vector<ROOT::Math::LorentzVector<ROOT::Math::PxPyPzE4D<double> > >",
        "ROOT::Math::DisplacementVector3D<ROOT::Math::Cartesian3D<double>,ROOT::Math::DefaultCoordinateSystemTag>",
        "ROOT::Math::PositionVector2D<ROOT::Math::Cartesian2D<float> >",
    ],
)
def test_the_vectors_of_root_are_known(name: str) -> None:
    assert is_vector(name)


@pytest.mark.parametrize(
    "name", ["TVector3Tool", "TVectorD", "ElementLink<TVector3>", "vector<float>", "MyTVector3"]
)
def test_other_classes_are_not(name: str) -> None:
    assert not is_vector(name)


@pytest.mark.parametrize(
    ("stored", "want"),
    [
        ({"p.fX": 3.0, "p.fY": 4.0}, {"pt": 5.0, "phi": np.arctan2(4, 3)}),
        ({"p.fX": 3.0, "p.fY": 4.0, "p.fZ": 0.0}, {"pt": 5.0, "eta": 0.0, "phi": np.arctan2(4, 3)}),
        (
            {"p.fP.fX": 3.0, "p.fP.fY": 4.0, "p.fP.fZ": 12.0, "p.fE": 13.0},
            {"pt": 5.0, "eta": np.arcsinh(12 / 5), "phi": np.arctan2(4, 3), "mass": 0.0, "energy": 13.0},
        ),
        (
            {"fC/fPt": 5.0, "fC/fEta": 0.0, "fC/fPhi": 1.0, "fC/fM": 12.0},
            {"pt": 5.0, "eta": 0.0, "phi": 1.0, "mass": 12.0, "energy": 13.0},
        ),
        ({"p.fR": 2.0, "p.fPhi": 1.0}, {}),
    ],
)
def test_components_are_computed_of_whatever_is_stored(
    stored: dict[str, float], want: dict[str, float]
) -> None:
    columns = {name: np.array([value], np.float32) for name, value in stored.items()}
    found = components("p", stored)
    assert set(found) == {f"p.{name}" for name in want}
    for name, value in want.items():
        [got] = np.asarray(found[f"p.{name}"].column(columns))
        assert got == pytest.approx(value, abs=1e-6)


def test_coordinates_of_other_numbers_of_objects_are_refused() -> None:
    x, y = (Jagged(np.array([0, n, 3]), np.ones(3)) for n in (1, 2))
    with pytest.raises(ValueError, match="has not as many objects"):
        components("p", ["p.fX", "p.fY"])["p.pt"].column({"p.fX": x, "p.fY": y})
