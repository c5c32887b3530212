"""What a model's description tells to send is what the service takes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlaas_ray.cli.serve import _curl
from mlaas_ray.core.example import branches_to_send, example_event
from mlaas_ray.core.features import Feature, FeatureSpec, ObjectRule, Statistics
from mlaas_ray.core.flatten import flatten_events
from mlaas_ray.core.grid import Axis, Channel, GridSpec, View
from mlaas_ray.core.inputs import Inputs, ObjectSettings
from mlaas_ray.core.prepare import check, needed_branches
from mlaas_ray.inference.arrow import read_stream
from mlaas_ray.repository import Repository
from tests.inference.face import Face
from tests.packaged import package_of
from tests.serving import onnx_package as onnx_package

FILE: dict[str, Any] = {
    "MET_pt": "flat",
    "MET_phi": "flat",
    "nJet": "flat",
    "HLT_mu": "flat",
    "Jet_pt": "jagged",
    "Jet_eta": "jagged",
    "Jet_phi": "jagged",
    "Jet_tight": "jagged",
    "Muon_pt": "jagged",
    "cov": "fixed",
}


def made(
    define: dict[str, str],
    wanted: list[str],
    objects: dict[str, dict[str, str]] | None = None,
    select: str | None = None,
    file: dict[str, Any] = FILE,
) -> FeatureSpec:
    """Make a spec as the first pass does, of what the files have and what a job says."""
    rules = {name: ObjectSettings(**rule) for name, rule in (objects or {}).items()}
    inputs = Inputs(define=define, objects=rules, select=select)
    kinds = check(inputs, file)
    lengths = {"flat": 1, "fixed": 4, "jagged": 3}
    raw = needed_branches(inputs, wanted, select=False) - set(wanted)
    return FeatureSpec.of(
        [Feature(name=name, kind=kinds[name], length=lengths[kinds[name]]) for name in wanted],
        define=define,
        objects={name: ObjectRule(**rule) for name, rule in (objects or {}).items()},
        branches={name: file[name] for name in raw},
        select=select,
    )


# by name: definitions, inputs, rules of objects; and what a sender must have
CASES: dict[str, tuple[FeatureSpec, set[str]]] = {
    "definitions of definitions": (
        made({"good": "Jet_pt[Jet_pt > 30]", "HT": "sum(good)", "log": "log(HT + MET_pt)"}, ["log"]),
        {"Jet_pt", "MET_pt"},
    ),
    "counts": (made({"n": "count(Jet_pt)", "rest": "nJet - n"}, ["rest"]), {"Jet_pt", "nJet"}),
    "objects": (
        made({}, ["Jet_pt"], {"Jet": {"where": "abs(Jet_eta) < 2.4", "sort_by": "Jet_pt * cos(Jet_phi)"}}),
        {"Jet_pt", "Jet_eta", "Jet_phi"},
    ),
    "objects by a definition": (
        made(
            {"far": "abs(Jet_phi - MET_phi)", "near": "far < 1"}, ["Jet_pt"], {"Jet": {"where": "not near"}}
        ),
        {"Jet_pt", "Jet_phi", "MET_phi"},
    ),
    "conditions": (
        made({"tight": "Jet_pt[Jet_tight & (Jet_eta < 2)]", "mu": "~HLT_mu"}, ["tight", "mu"]),
        {"Jet_pt", "Jet_tight", "Jet_eta", "HLT_mu"},
    ),
    "a pole where all values are equal": (
        made({"x": "1 / (MET_pt - MET_phi)"}, ["x"]),
        {"MET_pt", "MET_phi"},
    ),
    "two collections": (
        made({"both": "Jet_pt * Muon_pt"}, ["both"]),
        {"Jet_pt", "Muon_pt"},
    ),
    "values of a fixed number": (made({"s": "sum(cov * cov)"}, ["cov", "s"]), {"cov"}),
    "more branches than a line has": (
        made(
            {"r": "a0 / a9"}, ["r", *(f"a{i}" for i in range(9))], file={f"a{i}": "flat" for i in range(10)}
        ),
        {f"a{i}" for i in range(10)},
    ),
    "columns that are branches too": (made({"twice": "2 * MET_pt"}, ["MET_pt", "twice"]), {"MET_pt"}),
    "a selection": (made({"x": "MET_pt + 1"}, ["x"], select="nJet > 2"), {"MET_pt"}),
    "images": (
        GridSpec.of(
            [
                Feature(name="Jet_x", kind="jagged", length=3),
                Feature(name="Jet_y", kind="jagged", length=3),
                Feature(name="MET", kind="flat"),
            ],
            define={
                "Jet_x": "Jet_pt * cos(Jet_phi)",
                "Jet_y": "Jet_pt * sin(Jet_phi)",
                "MET": "MET_pt / 1000",
            },
            branches={"Jet_pt": "jagged", "Jet_phi": "jagged", "MET_pt": "flat"},
            scalars=("MET",),
            views=(
                View(
                    name="xy",
                    x=Axis(name="x", bins=3, low=-5, high=5),
                    y=Axis(name="y", bins=2, low=-5, high=5),
                    channels=(Channel(name="Jet", x="Jet_x", y="Jet_y"),),
                ),
            ),
        ),
        {"Jet_pt", "Jet_phi", "MET_pt"},
    ),
}


def arrow_of(event: dict[str, Any]) -> bytes:
    table = pa.table({name: pa.array([value]) for name, value in event.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def face(tmp_path: Path, onnx_package: Any) -> Face:
    return Face(tmp_path, onnx_package)


def publish(face: Face, folder: Path, specs: list[FeatureSpec]) -> list[str]:
    repository: Repository = face.backend.catalog.repository
    for number, spec in enumerate(specs):
        repository.publish(package_of(folder / f"p{number}", spec, {}, name=f"m{number}"))
    return [f"m{number}" for number in range(len(specs))]


def taken(face: Face, model: str, spec: FeatureSpec) -> dict[str, Any]:
    """Send exactly what is suggested, in two formats; return the description."""
    params = face.get(f"/params/{model}").json()
    event = params["example"]["event"]
    reply = face.post("/json", json={"model": model} | params["example"])
    assert reply.status_code == 200, (spec.define, spec.objects, event, reply.text)
    rows = flatten_events([event], spec)
    np.testing.assert_array_equal(read_stream(arrow_of(event), spec, spec.width, 1 << 20), rows)
    assert set(event) == set(params["branches"]) == set(spec.raw)
    # what makes rows travels along, without what was seen
    told = FeatureSpec.from_json(json.dumps(params["features"]))
    np.testing.assert_array_equal(flatten_events([event], told), rows)
    return dict(params)


def test_what_is_suggested_names_the_files_branches_and_is_taken(face: Face, tmp_path: Path) -> None:
    names = publish(face, tmp_path, [spec for spec, _ in CASES.values()])
    for (what, (spec, wanted)), name in zip(CASES.items(), names, strict=True):
        params = taken(face, name, spec)
        assert set(params["branches"]) == wanted, what
        assert all(branch["kind"] for branch in params["branches"].values()), what


def test_any_model_takes_what_it_suggests(face: Face, tmp_path: Path) -> None:
    specs = [random_spec(np.random.default_rng(seed)) for seed in range(40)]
    for name, spec in zip(publish(face, tmp_path, specs), specs, strict=True):
        taken(face, name, spec)


def random_spec(random: np.random.Generator) -> FeatureSpec:
    """Draw definitions of branches and of definitions, and rules of objects."""
    kinds = dict(FILE)
    templates = {
        "flat": [
            "sum({j})",
            "count({j}[{j} > 1])",
            "{f} / {g}",
            "max({j}) - {f}",
            "{j}[:, 1]",
            "cov[:, 3] + {f}",
        ],
        "jagged": ["{j}[{j} > {f}]", "{j} * {f} + 1", "sort({j})", "1 / {j}"],
    }
    templates["flat"] += ["where({f} > 2, {g}, 0)", "HLT_mu & ({f} > 1)", "sqrt({f}**2 - {g})"]
    define: dict[str, str] = {}
    for number in range(int(random.integers(1, 6))):
        pick = {
            letter: str(random.choice([name for name, kind in kinds.items() if kind == wanted]))
            for letter, wanted in (("f", "flat"), ("g", "flat"), ("j", "jagged"))
        }
        kind = str(random.choice(["flat", "jagged"]))
        define[f"d{number}"] = str(random.choice(templates[kind])).format(**pick)
        kinds[f"d{number}"] = kind
    jets = {"where": f"Jet_pt > {random.choice(['1', 'MET_pt', 'sum(Jet_eta)'])}", "sort_by": "Jet_eta"}
    wanted = {str(name) for name in random.choice(sorted(kinds), 3)} | {str(random.choice(sorted(define)))}
    return made(define, sorted(wanted), {"Jet": jets} if random.random() < 0.5 else None)


def test_what_was_seen_is_what_is_suggested() -> None:
    seen = Statistics(count=9, quantiles={0.25: 21.04, 0.5: 31.2345})
    spec = FeatureSpec.of(
        [
            Feature(name="MET_pt", kind="flat", statistics=seen),
            Feature(name="cov", kind="fixed", length=3, statistics=seen),
            Feature(name="Jet_pt", kind="jagged", length=1, statistics=seen),
        ]
    )
    assert example_event(spec) == {"Jet_pt": [31.2, 21], "MET_pt": 31.2, "cov": [31.2, 21, 21]}
    assert branches_to_send(spec)["Jet_pt"] == {"kind": "jagged", "length": 1}


def test_a_model_without_branches_is_sent_values(face: Face) -> None:
    params = face.get("/params/bare").json()
    assert (params["branches"], params["features"]) == (None, None)
    assert face.post("/json", json={"model": "bare"} | params["example"]).status_code == 200


@pytest.mark.parametrize("what", ["JSON", "Arrow"])
def test_a_name_that_the_model_computes_is_traced_to_the_files_branches(
    face: Face, tmp_path: Path, what: str
) -> None:
    spec = made({"good": "Jet_pt[Jet_pt > 30]", "HT": "sum(good) + MET_pt"}, ["HT", "good"])
    (name,) = publish(face, tmp_path, [spec])
    for sent, made_of in (
        ({"HT": 3.0, "MET_pt": 1.0, "Jet_pt": [1.0]}, "Jet_pt, MET_pt"),
        ({"good": [3.0]}, "Jet_pt"),
    ):
        if what == "JSON":
            reply = face.post("/json", json={"model": name, "event": sent})
        else:
            headers = {"Content-Type": "application/vnd.apache.arrow.stream"}
            reply = face.post(f"/models/{name}/predict", content=arrow_of(sent), headers=headers)
        assert reply.status_code == 400
        assert reply.json()["error"].endswith(f"Send what it is made of: {made_of}.")


def test_a_branch_among_keys_is_told_from_a_column(face: Face, tmp_path: Path) -> None:
    (name,) = publish(face, tmp_path, [made({"HT": "sum(Jet_pt)"}, ["HT"])])
    reply = face.post("/json", json={"model": name, "keys": ["Jet_pt"], "values": [1.0]})
    assert "'Jet_pt' is a branch of the files" in reply.json()["error"]


def test_the_line_that_serve_prints_is_answered(face: Face, tmp_path: Path) -> None:
    spec, _ = CASES["definitions of definitions"]
    (name,) = publish(face, tmp_path, [spec])
    client = SimpleNamespace(params=lambda model: face.get(f"/params/{model}").json())
    curl, *_, url, option, body = shlex.split(_curl("http://service", client, {"name": name}))
    assert (curl, url, option) == ("curl", "http://service/json", "-d")
    assert set(json.loads(body)["event"]) == {"Jet_pt", "MET_pt"}
    assert face.post("/json", content=body).status_code == 200
