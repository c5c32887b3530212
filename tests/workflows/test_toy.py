from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from mlaas_ray.workflows.toy import HIGGS_MASS, PROCESSES, W_MASS, _two_body, simulate, write_sample


def test_decay_products_have_the_mass_and_momentum_of_what_decayed() -> None:
    random = np.random.default_rng(1)
    pt, phi = np.full(1000, 70.0), np.full(1000, 0.5)
    one, other = _two_body(random, HIGGS_MASS, pt, phi)
    x, y, z, energy = (
        sum(f(p) for p in (one, other))
        for f in (
            lambda p: p["pt"] * np.cos(p["phi"]),
            lambda p: p["pt"] * np.sin(p["phi"]),
            lambda p: p["pt"] * np.sinh(p["eta"]),
            lambda p: p["pt"] * np.cosh(p["eta"]),
        )
    )
    np.testing.assert_allclose(np.sqrt(energy**2 - x**2 - y**2 - z**2), HIGGS_MASS, rtol=1e-6)
    np.testing.assert_allclose(np.hypot(x, y), 70.0, rtol=1e-6)


def test_equal_seeds_give_equal_events_and_others_do_not() -> None:
    first, again, other = (simulate("signal", 200, seed) for seed in (1, 1, 2))
    assert ak.almost_equal(first["Jet"].pt, again["Jet"].pt)
    assert not np.array_equal(first["MET_pt"], other["MET_pt"])


def test_signal_and_background_differ_where_physics_says() -> None:
    signal, background = simulate("signal", 20_000, 1), simulate("background", 20_000, 1)

    def median_mass(arrays: dict[str, ak.Array]) -> tuple[float, float]:
        tagged = arrays["Jet"][ak.argsort(arrays["Jet"].btag, axis=1, ascending=False)]
        a, b = (tagged[ak.num(tagged) >= 2][:, i] for i in (0, 1))
        mass = np.sqrt(2 * a.pt * b.pt * (np.cosh(a.eta - b.eta) - np.cos(a.phi - b.phi)))
        near = (mass > 100) & (mass < 150)
        return float(ak.mean(near)), float(ak.mean(arrays["Jet"].btag))

    # the two most b-like jets make a Higgs boson, and are b-like
    assert median_mass(signal)[0] > 2 * median_mass(background)[0]
    assert median_mass(signal)[1] > median_mass(background)[1] + 0.1
    assert 0.5 * W_MASS < ak.mean(signal["MET_pt"]) < W_MASS


def test_top_quarks_have_more_jets_and_b_jets_than_a_w_with_jets() -> None:
    top, background = simulate("top", 20_000, 1), simulate("background", 20_000, 1)
    for most in (lambda e: ak.num(e["Jet"]), lambda e: ak.sum(e["Jet"].btag > 0.6, axis=1)):
        assert ak.mean(most(top)) > ak.mean(most(background)) + 0.5


def test_events_are_written_as_a_tree_with_counters(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "deep" / "signal.root", "signal", 25_000, seed=1)
    with uproot.open(path) as file:
        tree = file["Events"]
        assert tree.num_entries == 25_000
        assert tree["Jet_pt"].entry_offsets == [0, 10_000, 20_000, 25_000]
        assert ak.all(tree["nJet"].array() == ak.num(tree["Jet_pt"].array()))
        pt = tree["Jet_pt"].array()
        assert ak.all(pt[:, :-1] >= pt[:, 1:])


@pytest.mark.parametrize("process", PROCESSES)
def test_every_value_is_finite(process: str) -> None:
    for name, array in simulate(process, 5000, 1).items():
        for field in array.fields if isinstance(array, ak.Array) else [None]:
            values = array if field is None else ak.to_numpy(ak.flatten(array[field]))
            assert np.isfinite(values).all(), (name, field)
