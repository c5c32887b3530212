"""Toy simulation: samples of jagged events, told apart by physics one can explain (docs/toy.md).

Signal is the associated production of a W and a Higgs boson, W -> mu nu and H -> b bbar; background is a W
with jets from quantum chromodynamics; top is a pair of top quarks. Masses, momenta and angles are in GeV and
radians.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import awkward as ak
import numpy as np
import numpy.typing as npt
import uproot

Process = Literal["background", "signal", "top"]
# In the order of their classes' numbers.
PROCESSES: tuple[Process, ...] = get_args(Process)
Floats = npt.NDArray[np.float64]
Particles = dict[str, npt.NDArray[Any]]

HIGGS_MASS = 125.0
W_MASS = 80.4
# Relative resolution of a jet's momentum, and the smallest momentum at which one is found (GeV).
JET_RESOLUTION = 0.12
JET_THRESHOLD = 25.0
TREE = "Events"
# Events a cluster of the file holds.
CLUSTER = 10_000


def simulate(process: Process, events: int, seed: int) -> dict[str, Any]:
    """Simulate events.

    Args:
        process: ``signal`` (W H, H -> b bbar), ``background`` (W with light jets) or ``top`` (t tbar).
        events: How many.
        seed: Equal seeds give equal events.

    Returns:
        Arrays by branch: flat ``run``, ``event``, ``MET_pt``, ``MET_phi``; the collections ``Jet`` (``pt``,
        ``eta``, ``phi``, ``btag``) and ``Muon`` (``pt``, ``eta``, ``phi``, ``charge``) as jagged records,
        sorted by falling momentum.
    """
    random = np.random.default_rng([seed, PROCESSES.index(process)])
    scale, recoiling, radiation = _PROCESSES[process]
    boson_pt = scale * random.gamma(1.6, 1.0, events)
    boson_phi = random.uniform(-np.pi, np.pi, events)
    muon, neutrino = _two_body(random, W_MASS, boson_pt, boson_phi)
    recoil = recoiling(random, boson_pt, boson_phi)
    extra = _extra_jets(random, events, radiation)
    jets = _detect(random, ak.concatenate([recoil, extra], axis=1))
    # What the detector does not see: the neutrino, and the error of all it does see.
    noise = random.normal(0.0, 8.0, (2, events))
    met_x = neutrino["pt"] * np.cos(neutrino["phi"]) + noise[0]
    met_y = neutrino["pt"] * np.sin(neutrino["phi"]) + noise[1]
    muons = _collect([muon | {"charge": random.choice(np.array([-1, 1], dtype=np.int32), events)}])
    found = (muons.pt > 15.0) & (abs(muons.eta) < 2.4)
    return {
        "run": np.full(events, 1, dtype=np.uint32),
        "event": np.arange(events, dtype=np.uint64),
        "MET_pt": np.hypot(met_x, met_y).astype(np.float32),
        "MET_phi": np.arctan2(met_y, met_x).astype(np.float32),
        "Jet": jets,
        "Muon": _single(muons[found]),
    }


def write_sample(path: Path, process: Process, events: int, seed: int) -> Path:
    """Write simulated events as a TTree ``Events`` with the counters ``nJet`` and ``nMuon``.

    Args:
        path: The file; overwritten.
        process: One of ``PROCESSES``.
        events: How many, at least 1.
        seed: Equal seeds give equal files.

    Returns:
        The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with uproot.recreate(path, compression=uproot.ZSTD(3)) as file:
        arrays = simulate(process, events, seed)
        types = {name: getattr(array, "type", None) or array.dtype for name, array in arrays.items()}
        tree = file.mktree(TREE, types)
        for cluster in _clusters(arrays, events):
            tree.extend(cluster)
    return path


def _clusters(arrays: dict[str, Any], events: int) -> Iterator[dict[str, Any]]:
    for start in range(0, events, CLUSTER):
        yield {name: array[start : start + CLUSTER] for name, array in arrays.items()}


def _two_body(
    random: np.random.Generator, mass: float, pt: Floats, phi: Floats
) -> tuple[Particles, Particles]:
    """Let a boson decay into two massless particles, isotropic in its rest frame."""
    events = len(pt)
    cosine, angle = random.uniform(-1, 1, events), random.uniform(-np.pi, np.pi, events)
    sine = np.sqrt(1 - cosine**2)
    momentum = mass / 2 * np.stack([sine * np.cos(angle), sine * np.sin(angle), cosine])
    rapidity = random.normal(0.0, 1.0, events)
    boson = np.stack([pt * np.cos(phi), pt * np.sin(phi), np.sqrt(mass**2 + pt**2) * np.sinh(rapidity)])
    energy = np.sqrt(mass**2 + (boson**2).sum(axis=0))
    pair = []
    for sign in (1, -1):
        along = (boson * sign * momentum).sum(axis=0)
        # Lorentz boost of a massless particle of energy mass/2 into the laboratory
        boosted = sign * momentum + boson / mass * (along / (energy + mass) + mass / 2)
        pair.append(_polar(boosted))
    return pair[0], pair[1]


def _polar(momentum: Floats) -> Particles:
    x, y, z = momentum
    pt = np.hypot(x, y)
    return {"pt": pt, "eta": np.arcsinh(z / np.maximum(pt, 1e-6)), "phi": np.arctan2(y, x)}


def _higgs(random: np.random.Generator, pt: Floats, phi: Floats) -> ak.Array:
    """Two b jets of a Higgs boson that recoils against the W."""
    pair = _two_body(random, HIGGS_MASS, pt, _opposite(phi))
    return _collect([jet | {"b": np.ones(len(pt), dtype=np.bool_)} for jet in pair])


def _hard_jet(random: np.random.Generator, pt: Floats, phi: Floats) -> ak.Array:
    """Two jets that share the recoil of the W; one in twelve is a b jet."""
    events = len(pt)
    share = random.uniform(0.3, 1.0, events)
    jets = [
        {
            "pt": 20.0 + part * pt,
            "eta": random.normal(0.0, 2.0, events),
            "phi": _wrap(_opposite(phi) + random.normal(0.0, 0.6, events)),
            "b": random.uniform(size=events) < 1 / 12,
        }
        for part in (share, 1.3 - share)
    ]
    return _collect(jets)


def _top_quarks(random: np.random.Generator, pt: Floats, phi: Floats) -> ak.Array:
    """Two light jets of the other W, and the two b jets of the top quarks."""
    events = len(pt)
    light = _two_body(random, W_MASS, pt, _opposite(phi))
    b = [
        {
            "pt": JET_THRESHOLD + random.exponential(45.0, events),
            "eta": random.normal(0.0, 1.2, events),
            "phi": random.uniform(-np.pi, np.pi, events),
        }
        for _ in range(2)
    ]
    return _collect(
        [jet | {"b": np.full(events, tag)} for jets, tag in ((light, False), (b, True)) for jet in jets]
    )


# Scale of the W's transverse momentum (GeV), what recoils against it, and soft jets on average.
_PROCESSES = {
    "background": (35.0, _hard_jet, 1.4),
    "signal": (60.0, _higgs, 0.9),
    "top": (50.0, _top_quarks, 1.2),
}


def _extra_jets(random: np.random.Generator, events: int, mean: float) -> ak.Array:
    """Radiation: a Poisson number of soft jets at all angles."""
    counts = random.poisson(mean, events)
    total = int(counts.sum())
    flat = ak.zip(
        {
            "pt": JET_THRESHOLD + random.exponential(22.0, total),
            "eta": random.normal(0.0, 2.2, total),
            "phi": random.uniform(-np.pi, np.pi, total),
            "b": random.uniform(size=total) < 1 / 25,
        }
    )
    return ak.unflatten(flat, counts)


def _detect(random: np.random.Generator, jets: ak.Array) -> ak.Array:
    """Smear momenta, tag b jets imperfectly, lose what is soft or forward, sort by momentum."""
    counts = ak.num(jets)
    total = int(ak.sum(counts))
    smear = ak.unflatten(random.normal(1.0, JET_RESOLUTION, total), counts)
    # a tagger's output: overlapping distributions for b and light jets, in (0, 1)
    raw = random.normal(0.0, 1.0, total) + np.where(ak.to_numpy(ak.flatten(jets.b)), 0.7, -0.7)
    found = ak.zip(
        {
            "pt": jets.pt * smear,
            "eta": jets.eta,
            "phi": jets.phi,
            "btag": ak.unflatten(1 / (1 + np.exp(-raw)), counts),
        }
    )
    found = found[(found.pt > JET_THRESHOLD) & (abs(found.eta) < 4.7)]
    return _single(found[ak.argsort(found.pt, axis=1, ascending=False)])


def _collect(particles: list[Particles]) -> ak.Array:
    """Make a jagged collection of particles that every event has."""
    arrays = [ak.unflatten(ak.zip(particle), 1) for particle in particles]
    # of fixed length, a selection by mask would flatten them
    return ak.from_regular(ak.concatenate(arrays, axis=1), axis=1)


def _single(records: ak.Array) -> ak.Array:
    """Store real numbers in single precision, as experiments do."""
    return ak.zip(
        {
            name: records[name] if name == "charge" else ak.values_astype(records[name], np.float32)
            for name in records.fields
        }
    )


def _opposite(phi: Floats) -> Floats:
    return _wrap(phi + np.pi)


def _wrap(phi: Floats) -> Floats:
    return np.asarray((phi + np.pi) % (2 * np.pi) - np.pi)
