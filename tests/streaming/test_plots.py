from __future__ import annotations

import pytest

from mlaas_ray.streaming.plots import unit


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Jet_pt", "GeV"), ("MET.MET", "GeV"), ("MET_phi", "rad"), ("nJet", None), ("Jet_btag", None)],
)
def test_units_are_those_that_names_suggest(name: str, expected: str | None) -> None:
    assert unit(name) == expected
