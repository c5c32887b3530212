"""Which models may live in gateways."""

from __future__ import annotations

import shutil

import pytest

from mlaas_ray.core.errors import PackageError
from mlaas_ray.core.package import ModelPackage, Signature, Tensor
from mlaas_ray.inference.examination import Candidate, Examination
from mlaas_ray.inference.placement import LIGHT_BYTES, LIGHT_RUNTIMES, LIGHT_S, is_light, light
from mlaas_ray.inference.settings import ServiceSettings

QUICK = {1: LIGHT_S / 10, 64: 1.0}


def examination(runtime, seconds):
    tensor = Tensor(name="x", dtype="float32", shape=(None, 5))
    signature = Signature(inputs=[tensor], outputs=[tensor])
    return Examination.of(signature, 1, [Candidate(name=runtime, seconds=seconds)], {})


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert", "frozen", "signature"])
@pytest.mark.parametrize(
    ("seconds", "size", "small_and_quick"),
    [
        (QUICK, 1000, True),
        (QUICK, LIGHT_BYTES, True),
        (QUICK, LIGHT_BYTES + 1, False),
        ({1: LIGHT_S}, 0, True),
        ({1: LIGHT_S * 1.01}, 0, False),
        ({64: 1.0, 1: 1e-5}, 0, True),  # what one row takes
        ({}, 0, True),  # not timed
    ],
)
def test_a_light_model_is_small_and_quick_and_run_by_a_light_library(runtime, seconds, size, small_and_quick):
    expected = small_and_quick and runtime in LIGHT_RUNTIMES
    assert is_light(examination(runtime, seconds), size) is expected


@pytest.mark.parametrize(("bytes_", "expected"), [(1000, True), (LIGHT_BYTES, False)])
def test_a_packages_files_all_count(monkeypatch, onnx_package, bytes_, expected):
    monkeypatch.setattr(
        "mlaas_ray.inference.placement.examine_apart",
        lambda *_args, **_options: (examination("onnxruntime", QUICK), None),
    )
    files = {
        name: record.model_copy(update={"bytes": bytes_})
        for name, record in onnx_package.manifest.files.items()
    }
    files["more"] = next(iter(files.values()))
    manifest = onnx_package.manifest.model_copy(update={"files": files})

    class Package:
        model_path = onnx_package.model_path
        check = onnx_package.check

    Package.manifest = manifest
    assert light(Package, ServiceSettings()) is expected


def test_a_damaged_package_is_told_before_anything_loads_it(onnx_package, tmp_path, monkeypatch):
    def loaded(*_args, **_options):
        raise AssertionError

    monkeypatch.setattr("mlaas_ray.inference.placement.examine_apart", loaded)
    copy = tmp_path / "copy"
    shutil.copytree(onnx_package.path, copy)
    (copy / "model.onnx").write_bytes(b"")
    with pytest.raises(PackageError, match="was changed after it was written"):
        light(ModelPackage(copy), ServiceSettings())
