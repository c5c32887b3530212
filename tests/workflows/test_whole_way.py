"""From ROOT files to predictions, five ways, each of which must give the same answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from mlaas_ray.client import Client
from mlaas_ray.core.flatten import flatten_events
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.inference import Service, ServiceSettings, running_service
from mlaas_ray.repository import Repository
from mlaas_ray.workflows import Job, publish
from tests.serving import free_port
from tests.workflows.conftest import EXAMPLES

FRAMEWORKS = ("torch", "keras", "xgboost")
EVENTS = 200
TOLERANCE = 1e-5

# The exported file alone, in a process that knows nothing of us.
ALONE = {
    "onnx": """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
np.save(sys.argv[3], session.run(["outputs"], {"inputs": np.load(sys.argv[2])})[0])
""",
    "savedmodel": """
import sys, numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
np.save(sys.argv[3], model(inputs=tf.constant(np.load(sys.argv[2])))["outputs"].numpy())
""",
}


def raw_events(package: ModelPackage, rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the sample's events from their files, as a program would have them: jagged."""
    names = [feature.name for feature in package.features.features]
    events = []
    for number, entry in zip(rows["file"], rows["entry"], strict=True):
        source = package.lineage["files"][number]
        with uproot.open(source["path"]) as file:
            arrays = file[source["tree"]].arrays(
                filter_name=lambda branch: branch in names, entry_start=entry, entry_stop=entry + 1, how=dict
            )
        events.append({name: ak.to_list(array)[0] for name, array in arrays.items()})
    return events


def answers(package: ModelPackage, url: str, model: str, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Give each way's answers to the same events."""
    with np.load(package.path / "sample.npz") as sample:
        rows = {name: values[:EVENTS] for name, values in sample.items()}
    yield "in memory", rows["prediction"][:, 0]
    events = raw_events(package, rows)
    x = flatten_events(events, package.features)
    np.testing.assert_array_equal(x, rows["x"])
    np.save(folder / "x.npy", x)
    program = ALONE[package.manifest.model_format]
    arguments = [package.model_path, folder / "x.npy", folder / "y.npy"]
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True, capture_output=True)
    yield "the file alone", np.load(folder / "y.npy")[:, 0]
    columns = np.array(package.features.columns)
    with Client(url) as client:
        known = [~np.isnan(row) for row in x]
        by_keys = [
            client.predict(model, keys=columns[has][::-1].tolist(), values=row[has][::-1])
            for row, has in zip(x, known, strict=True)
        ]
        yield "keys and values", np.array(by_keys)[:, 0]
        yield "event", np.array([client.predict(model, event=event) for event in events])[:, 0]
    (folder / "events.json").write_text(json.dumps(events))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mlaas_ray.cli.main",
            "predict",
            model,
            "--url",
            url,
            "--events",
            "events.json",
            "--json",
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    yield "command line", np.array(json.loads(done.stdout)["predictions"])[:, 0]


@pytest.fixture(scope="module")
def packages(example: Callable[[str], ModelPackage]) -> dict[str, ModelPackage]:
    return {framework: example(f"toy-{framework}") for framework in FRAMEWORKS}


@pytest.fixture(scope="module")
def service(packages: dict[str, ModelPackage], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of the models, each of which the job's own wish published."""
    folder = tmp_path_factory.mktemp("serving")
    repository = Repository(folder / "models")
    for framework, package in packages.items():
        wish = f"publish={{name: {framework}, repository: {folder / 'shelf'}}}"
        assert str(publish(Job.load(EXAMPLES / f"toy-{framework}.yaml", [wish]), package)) == f"{framework}:1"
        repository.publish(Repository(folder / "shelf").get(framework), framework)
    with running_service(ServiceSettings(repository=repository.root, port=free_port())) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_five_ways_give_the_same_answer(
    framework: str, packages: dict[str, ModelPackage], service: Service, tmp_path: Path
) -> None:
    package = packages[framework]
    assert package.lineage["job"]["framework"] == framework
    assert [Path(file["path"]).name for file in package.lineage["files"]] == [
        "signal.root",
        "background.root",
    ]
    assert package.labels == ["background", "signal"]
    ways = dict(answers(package, service.url, framework, tmp_path))
    assert len(ways) == 5
    reference = ways["in memory"]
    assert len(reference) == EVENTS
    # a constant would agree with itself
    assert reference.std() > 0.01
    for way, values in ways.items():
        np.testing.assert_allclose(values, reference, rtol=0, atol=TOLERANCE, err_msg=way)
