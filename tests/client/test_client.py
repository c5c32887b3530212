import subprocess
import sys

import numpy as np
import pytest

from mlaas_ray.client import Client
from mlaas_ray.core.errors import EventError, PackageError, ServiceError
from tests.serving import SPEC, expected, free_port

EVENT = {"MET_pt": 31.25, "Jet_pt": [52.5, 33.0]}
ROW = np.array([31.25, np.nan, 52.5, 33.0, np.nan], dtype=np.float32)
ANSWER = expected(ROW[None])[0].tolist()


@pytest.fixture
def client(served):
    with Client(served.url) as made:
        yield made


def test_the_client_drags_in_neither_ray_nor_a_framework():
    heavy = {"ray", "torch", "tensorflow", "uproot"}
    code = f"import sys, mlaas_ray.client; print(sorted({heavy} & set(sys.modules)))"
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, timeout=240, text=True
    )
    assert said.stdout.strip() == "[]"


def test_numbers_arrays_and_missing_values_are_sent_as_they_are(client):
    keys = ["MET_pt", "Jet_pt_0", "Jet_pt_1"]
    assert client.predict("toy", values=ROW) == pytest.approx(ANSWER, rel=1e-6)
    assert client.predict("toy", values=ROW.tolist()) == pytest.approx(ANSWER, rel=1e-6)
    assert client.predict("toy", keys=keys, values=(31.25, 52.5, 33.0)) == pytest.approx(ANSWER, rel=1e-6)
    assert client.predict("toy:1", event=EVENT) == pytest.approx(ANSWER, rel=1e-6)
    jagged = {"MET_pt": np.float32(31.25), "Jet_pt": np.array([52.5, 33.0])}
    assert client.predict("toy", events=[jagged, EVENT]) == [pytest.approx(ANSWER, rel=1e-6)] * 2
    assert np.shape(client.predict("toy", values=np.ones((7, SPEC.width)))) == (7, 1)


@pytest.mark.parametrize("model", ["toy", "toytf:1"])
@pytest.mark.parametrize("dtype", ["float32", ">f8", "int64"])
def test_an_array_of_many_rows_is_answered_with_an_array(client, model, dtype):
    rows = np.random.default_rng(3).integers(0, 9, size=(1000, SPEC.width)).astype(dtype)
    found = client.predict(model, values=np.asfortranarray(rows))
    assert (found.dtype, found.shape) == (np.float32, (1000, 1))
    np.testing.assert_allclose(found, expected(rows.astype(np.float32)), rtol=1e-5)
    keyed = client.predict(model, keys=SPEC.columns[::-1], values=rows[:20, ::-1])
    np.testing.assert_allclose(keyed, found[:20], rtol=1e-6)


def test_an_array_that_does_not_fit_is_refused(client):
    with pytest.raises(ServiceError, match="Did you mean 'toy'"):
        client.predict("tory", values=np.ones((2, SPEC.width)))
    with pytest.raises(ServiceError, match="a row of 5 float32 has 20"):
        client.predict("toy", values=np.ones((2, 3), np.float32))
    with pytest.raises(ServiceError, match="3 values were sent, but the model takes 5 values"):
        client.predict("toy", values=np.ones((2, 3)))
    with pytest.raises(ServiceError, match="no rows"):
        client.predict("toy", values=np.ones((0, SPEC.width)))
    with pytest.raises(ServiceError, match="row 0: the value of MET_pt is too large for float32: 1e\\+300"):
        client.predict("toy", values=np.full((2, SPEC.width), 1e300))


def test_the_services_reason_is_raised(client):
    with pytest.raises(ServiceError, match="Did you mean 'toy'"):
        client.predict("tory", event=EVENT)
    with pytest.raises(ServiceError, match="no model is named"):
        client.predict(event=EVENT)


def test_what_json_cannot_carry_is_refused_here(client):
    with pytest.raises(EventError, match="cannot be sent"):
        client.predict("toy", event={"MET_pt": object()})
    with pytest.raises(EventError, match="cannot be sent"):
        client.predict("toy", values=[float("inf")] * 5)


def test_a_service_that_is_not_there_is_named():
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url) as client, pytest.raises(ServiceError, match=f"cannot reach {url}"):
        client.models()


@pytest.mark.parametrize("kind", ["package", "onnx", "savedmodel", "tar"])
def test_models_of_every_kind_are_uploaded_described_and_deleted(
    client, kind, onnx_package, onnx_file, saved_model, tmp_path
):
    path = {"package": onnx_package.path, "onnx": onnx_file, "savedmodel": saved_model}.get(kind)
    if path is None:
        path = tmp_path / "up-tar.tar.gz"
        run = ["tar", "czf", str(path), "-C", str(onnx_file.parent.parent), onnx_file.parent.name]
        subprocess.run(run, check=True, timeout=240)
        with pytest.raises(PackageError, match="has its model's name inside"):
            client.upload(path, "other")
    name, version = client.upload(path, None if kind == "tar" else f"up-{kind}")
    try:
        assert name == (onnx_file.parent.name if kind == "tar" else f"up-{kind}")
        assert version == 1
        assert name in [model["name"] for model in client.models()]
        assert client.params(name)["width"] == SPEC.width
        assert client.predict(name, values=[100, 0, 0, 0, 0]) == pytest.approx([1.0])
    finally:
        assert client.delete(name) == [f"{name}:1"]


def test_what_is_no_model_is_not_uploaded(client, tmp_path):
    with pytest.raises(PackageError, match="no model at"):
        client.upload(tmp_path / "none")
    with pytest.raises(PackageError, match="is no model"):
        client.upload(tmp_path)


def test_status_is_a_report_of_the_machine(client):
    assert client.status()["Memory"]["Virtual"]["total"] > 0
