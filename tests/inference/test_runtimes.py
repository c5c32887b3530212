import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.inference.runtimes import OnnxRuntime, load_runtime, predict
from tests.serving import WIDTH, expected, write_onnx

# Rows of the batches asked for, one after the other.
BATCHES = [3, 1, 70, 2, 70, 0, 5]

# In a process of its own: TensorFlow would stay in the tests' for ever, and there is XRootD in it.
ASK = """
import json, sys, threading
from pathlib import Path
import numpy as np
from mlaas_ray.inference.candidates import make, open_made, open_model
from mlaas_ray.inference.runtimes import predict

path, model_format, name, folder, asked = sys.argv[1:]

def opened():
    model = open_model(Path(path), model_format)
    if name == model.name:
        return model
    make(name, model, Path(folder))
    return open_made(name, Path(folder), model.signature)

first, second = opened(), opened()
rows = np.array(json.loads(asked), dtype=np.float32)
answers = [predict(first, rows[:count]).tolist() for count in BATCHES]

def ask(runtime, sign, said):
    said.extend(predict(runtime, rows[:count] * sign) for count in (7, 3) * 100)

together = [[], []]
threads = [threading.Thread(target=ask, args=work) for work in zip((first, second), (1, -1), together)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
same = all(np.allclose(one, -other, atol=1e-6) for one, other in zip(*together, strict=True))
print(json.dumps({
    "name": first.name, "signature": first.signature.model_dump(), "answers": answers,
    "asked": len(together[0]), "same": same,
}))
""".replace("BATCHES", str(BATCHES))

LOAD = """
import json, sys
import numpy as np
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.inference.runtimes import load_runtime, predict

runtime = load_runtime(ModelPackage(sys.argv[1]), threads=1)
found = runtime.examination
print(json.dumps({
    "name": runtime.name,
    "chosen": found.chosen,
    "signature": runtime.signature.model_dump() == found.signature.model_dump(),
    "reasons": {item.name: item.reason for item in found.candidates},
    "answer": predict(runtime, np.ones((2, found.signature.width), np.float32)).tolist(),
    "tensorflow": "tensorflow" in sys.modules,
}))
"""


# The mappings that TensorFlow makes of a signature have another order in each process.
SAVE_SEVERAL = """
import sys
import tensorflow as tf

class Several(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def __call__(self, x):
        return {"p": x[:, :1], "q": x[:, :2] * 2, "a": tf.cast(x[:, :1], tf.int32)}

model = Several()
tf.saved_model.save(model, sys.argv[1], signatures={"serving_default": model.__call__})
"""

SERVE_SEVERAL = """
import json, sys
from pathlib import Path
import numpy as np
from mlaas_ray.inference.candidates import MADE, make, open_made, open_model
from mlaas_ray.inference.runtimes import predict

def served(path):
    model = open_model(path, "savedmodel")
    runtimes = [model]
    for name in MADE:
        make(name, model, Path(sys.argv[-1]))
        runtimes.append(open_made(name, Path(sys.argv[-1]), model.signature))
    outputs = [tensor.name for tensor in model.signature.outputs]
    return outputs, [predict(runtime, np.float32([[1, 2, 3]])).tolist() for runtime in runtimes]

print(json.dumps([served(Path(path)) for path in sys.argv[1:-1]]))
"""


def run(program, *arguments, **environment):
    """What a program printed as JSON, and what it said besides."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    ended = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=240, env=os.environ | environment
    )
    return json.loads(ended.stdout.splitlines()[-1]), ended.stderr


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLAAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "runtimes"


@pytest.mark.parametrize("name", ["onnxruntime", "signature", "frozen", "litert"])
def test_every_runtime_gives_one_answer_a_row_for_batches_of_any_size(name, tmp_path, request):
    model_format = "onnx" if name == "onnxruntime" else "savedmodel"
    path = request.getfixturevalue("onnx_file" if model_format == "onnx" else "saved_model")
    rows = np.random.default_rng(5).normal(size=(70, WIDTH)).astype(np.float32)
    rows[::3, 2] = np.nan
    said, _ = run(ASK, path, model_format, name, tmp_path, json.dumps(rows.tolist()))
    assert said["name"] == name
    assert [tensor["name"] for tensor in said["signature"]["inputs"]] == ["x"]
    assert [tensor["name"] for tensor in said["signature"]["outputs"]] == ["prediction"]
    assert said["signature"]["inputs"][0]["shape"] == [None, WIDTH]
    for count, answers in zip(BATCHES, said["answers"], strict=True):
        wanted = expected(rows[:count])
        np.testing.assert_allclose(np.reshape(answers, wanted.shape), wanted, rtol=1e-5, atol=1e-6)
    # two models in two threads at the same time, each with its own rows
    assert (said["asked"], said["same"]) == (200, True)


@pytest.mark.slow
def test_of_several_outputs_every_process_and_runtime_serves_the_same(tmp_path):
    plain, named = tmp_path / "plain" / "model", tmp_path / "named" / "model"
    subprocess.run([sys.executable, "-c", SAVE_SEVERAL, str(plain)], check=True, timeout=240)
    shutil.copytree(plain, named)
    (named.parent / "params.json").write_text('{"output_name": "q"}')
    for seed in ("0", "1"):
        said, _ = run(SERVE_SEVERAL, plain, named, tmp_path, PYTHONHASHSEED=seed)
        assert said == [[["p", "q", "a"], [[[1]]] * 3], [["q", "p", "a"], [[[2, 4]]] * 3]], seed


def test_a_saved_model_is_loaded_into_its_fastest_runtime_without_tensorflow(saved_package, own_cache):
    said, _ = run(LOAD, saved_package.path)
    assert said["name"] == said["chosen"] == "litert"
    assert said["signature"]
    assert said["reasons"] == {"signature": None, "frozen": None, "litert": None}
    np.testing.assert_allclose(said["answer"], expected(np.ones((2, WIDTH), np.float32)), rtol=1e-5)
    assert not said["tensorflow"]

    # what is damaged since then is noticed, and the reference takes its place
    (entry,) = (path for path in own_cache.iterdir() if (path / "model.tflite").is_file())
    (entry / "model.tflite").write_bytes(b"nonsense")
    said, warned = run(LOAD, saved_package.path)
    assert said["name"] == said["chosen"] == "signature"
    assert said["reasons"]["litert"]
    assert "litert is not used" in warned
    np.testing.assert_allclose(said["answer"], expected(np.ones((2, WIDTH), np.float32)), rtol=1e-5)


def test_a_model_that_answers_otherwise_than_when_it_was_examined_is_not_used(
    saved_package, own_cache, caplog
):
    run(LOAD, saved_package.path)
    (entry,) = (path for path in own_cache.iterdir() if (path / "model.tflite").is_file())
    with np.load(entry / "probe.npz") as probe:
        rows, answers = probe["rows"], probe["answers"]
    np.savez(entry / "probe.npz", rows=rows, answers=answers + 1e-4)
    said, warned = run(LOAD, saved_package.path)
    assert said["name"] == "signature"
    assert "differ by" in said["reasons"]["litert"]
    assert "differ by" in warned


def test_an_onnx_package_is_loaded_with_what_was_found_about_it(onnx_package, own_cache):
    runtime = load_runtime(onnx_package)
    assert (runtime.name, runtime.examination.chosen) == ("onnxruntime", "onnxruntime")
    assert runtime.examination.signature == runtime.signature == onnx_package.signature
    assert runtime.examination.batch_rows in runtime.examination.seconds
    assert all(seconds > 0 for seconds in runtime.examination.seconds.values())
    rows = np.ones((3, WIDTH), np.float32)
    np.testing.assert_allclose(predict(runtime, rows), expected(rows), rtol=1e-5)


def test_a_model_exported_for_a_fixed_batch_takes_any_number_of_rows(tmp_path):
    runtime = OnnxRuntime(write_onnx(tmp_path / "model.onnx", batch=4))
    rows = np.random.default_rng(1).normal(size=(11, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(predict(runtime, rows), expected(rows), rtol=1e-4, atol=1e-6)


def test_a_package_that_was_changed_is_not_loaded(onnx_package, tmp_path):
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
