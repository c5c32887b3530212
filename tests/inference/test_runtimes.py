import json
import subprocess
import sys

import numpy as np
import pytest

from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.inference.runtimes import OnnxRuntime, load_runtime, predict
from tests.serving import WIDTH, expected, write_onnx

# In a process of its own: TensorFlow would stay in the tests' for ever, and there is XRootD in it.
ASK = """
import json, sys
import numpy as np
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.inference.runtimes import load_runtime, predict

runtime = load_runtime(ModelPackage(sys.argv[1]), threads=1)
rows = np.array(json.loads(sys.argv[2]), dtype=np.float32)
print(json.dumps({
    "signature": runtime.signature.model_dump(),
    "many": predict(runtime, rows).tolist(),
    "one": predict(runtime, rows[:1]).tolist(),
}))
"""


@pytest.fixture(params=["onnx_package", "saved_package"])
def package(request):
    return request.getfixturevalue(request.param)


def test_both_runtimes_give_named_tensors_and_one_answer_a_row(package):
    rows = np.arange(3 * WIDTH, dtype=np.float32).reshape(3, WIDTH)
    rows[1, 2] = np.nan
    run = [sys.executable, "-c", ASK, str(package.path), json.dumps(rows.tolist())]
    said = json.loads(subprocess.run(run, check=True, capture_output=True, timeout=120).stdout)
    assert [tensor["name"] for tensor in said["signature"]["inputs"]] == ["x"]
    assert [tensor["name"] for tensor in said["signature"]["outputs"]] == ["prediction"]
    assert said["signature"]["inputs"][0]["shape"] == [None, WIDTH]
    np.testing.assert_allclose(said["many"], expected(rows), rtol=1e-5)
    np.testing.assert_allclose(said["one"], expected(rows[:1]), rtol=1e-5)


def test_a_model_exported_for_a_fixed_batch_takes_any_number_of_rows(tmp_path):
    runtime = OnnxRuntime(write_onnx(tmp_path / "model.onnx", batch=4))
    rows = np.random.default_rng(1).normal(size=(11, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(predict(runtime, rows), expected(rows), rtol=1e-4, atol=1e-6)


def test_a_package_that_was_changed_is_not_loaded(onnx_package, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(onnx_package.path, copy)
    write_onnx(copy / "model.onnx", scale=2.0)
    with pytest.raises(ValueError, match="was changed after it was written"):
        load_runtime(ModelPackage(copy))


def test_a_file_that_is_not_onnx_is_refused_in_one_line(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07 nonsense")
    with pytest.raises(ModelError, match=r"cannot load model\.onnx") as caught:
        OnnxRuntime(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
