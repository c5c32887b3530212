import subprocess
import sys

import numpy as np
import pytest

from mlaas_ray.core.errors import ModelError
from mlaas_ray.inference.examination import Candidate, Examination, choose, difference, enough_rows
from mlaas_ray.inference.inspection import examine_apart
from mlaas_ray.inference.onnx_runtime import OnnxRuntime
from mlaas_ray.inference.tuning import examine, probe, timed
from tests.serving import WIDTH, signature, write_onnx

REFERENCE = Candidate(name="signature", seconds={1: 300e-6, 8: 300e-6, 64: 370e-6})


def candidate(name, *microseconds, reason=None):
    times = dict(zip((1, 8, 64, 512), (time * 1e-6 for time in microseconds), strict=False))
    return Candidate(name=name, seconds=times, reason=reason)


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([], "signature"),
        ([candidate("frozen", 10, 15, 50), candidate("litert", 3, 9, 41)], "litert"),
        # as good as equally fast: the one without TensorFlow
        ([candidate("frozen", 10, 15, 50), candidate("litert", 10, 16, 52)], "litert"),
        ([candidate("frozen", 10, 15, 50), candidate("litert", 12, 20, 60)], "frozen"),
        # what is slow for one row may be fast for many
        ([candidate("frozen", 12, 15, 50), candidate("litert", 3, 31, 198)], "frozen"),
        ([candidate("frozen", 10, 15, 50), candidate("litert", 3, 9, 41, reason="differs")], "frozen"),
        ([candidate("litert", reason="cannot be converted")], "signature"),
        # timed with one row only, because it is heavy
        ([candidate("frozen", 200)], "frozen"),
        ([candidate("litert", 400, 500, 700)], "signature"),
    ],
)
def test_the_smallest_mean_time_at_1_8_and_64_rows_decides(others, chosen):
    assert choose([REFERENCE, *others]).name == chosen


@pytest.mark.parametrize(
    ("microseconds", "rows"),
    [
        ({1: 5, 8: 11, 64: 42, 128: 76, 512: 290}, 128),
        ({1: 300, 8: 300, 64: 370, 512: 736, 1024: 1144}, 1024),
        ({1: 10, 8: 80, 64: 640}, 1),
        ({1: 10, 8: 84, 64: 700}, 1),
        ({1: 10}, 1),
    ],
)
def test_a_batch_is_large_enough_when_a_larger_one_gains_less_than_a_tenth(microseconds, rows):
    assert enough_rows({size: time * 1e-6 for size, time in microseconds.items()}) == rows


@pytest.mark.parametrize(
    ("answers", "reference", "least", "most"),
    [
        ([[0.5], [0.25]], [[0.5], [0.25]], 0, 0),
        ([[0.5]], [[0.501]], 0.0009, 0.0011),
        # beyond 1, relative to the largest
        ([[1000.0], [2.0]], [[1000.1], [2.0]], 0.00009, 0.00011),
        ([[np.nan]], [[0.5]], np.inf, np.inf),
        ([[0.5]], [[np.nan]], np.inf, np.inf),
        ([[np.nan], [0.5]], [[np.nan], [0.5]], 0, 0),
        ([0.5], [[0.5]], np.inf, np.inf),
        ([[3]], [[4]], 0.25, 0.25),
    ],
)
def test_a_difference_is_relative_where_answers_exceed_1(answers, reference, least, most):
    assert least <= difference(np.array(answers), np.array(reference)) <= most


def test_a_choice_that_cannot_be_opened_makes_room_for_the_reference():
    found = Examination.of(signature(), 1, [REFERENCE, candidate("litert", 3, 9, 41)], {1: 3e-6, 2: 4e-6})
    assert (found.chosen, found.batch_rows, found.reference) == ("litert", 2, "signature")
    without = found.without_choice("gone")
    assert (without.chosen, without.seconds, without.batch_rows) == ("signature", REFERENCE.seconds, 64)
    assert [item.reason for item in without.candidates] == [None, "gone"]
    assert Examination.model_validate_json(without.model_dump_json()) == without


def test_rows_with_holes_and_real_rows_are_among_those_compared(onnx_file):
    runtime = OnnxRuntime(onnx_file)
    real = np.full((5, WIDTH), 7.0, np.float32)
    rows, answers = probe(runtime, real)
    assert np.isfinite(answers).all()
    assert len(rows) == len(answers)
    assert 0.1 < np.isnan(rows).any(axis=1).mean() < 0.9
    assert (rows[-5:] == 7).all()
    other_width = np.zeros((5, WIDTH + 1), np.float32)
    assert len(probe(runtime, other_width)[0]) == len(rows) - 5


def test_rows_with_holes_do_not_count_for_a_model_that_does_not_know_them(tmp_path):
    # relu(NaN) is 0 in some kernels and NaN in others: neither is an answer
    for kind in ("swallows", "passes on"):
        rows, _ = probe(OnnxRuntime(_unmasked(tmp_path / f"{kind}.onnx", kind)), None)
        assert len(rows) > 50
        assert not np.isnan(rows).any()


def _unmasked(path, kind):
    """A model in which a NaN makes the answer the same whatever else there is, or NaN."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    same = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        helper.make_node("IsNaN", ["sum"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "sum"], ["prediction"]),
    ]
    nan = [helper.make_node("ReduceSum", ["x", "axes"], ["prediction"], keepdims=1)]
    graph = helper.make_graph(
        same if kind == "swallows" else nan,
        "unmasked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["batch", 1])],
        [
            numpy_helper.from_array(np.array([1], np.int64), "axes"),
            numpy_helper.from_array(np.zeros((), np.float32), "zero"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))
    return path


def test_a_size_that_would_take_too_long_is_not_timed(onnx_file, monkeypatch):
    runtime = OnnxRuntime(onnx_file)
    assert list(timed(runtime, (1, 8, 64), 0.01)) == [1, 8, 64]
    monkeypatch.setattr("mlaas_ray.inference.tuning.LONGEST_S", 0.0)
    assert list(timed(runtime, (1, 8, 64), 0.01)) == [1]
    monkeypatch.setattr("mlaas_ray.inference.tuning.LONGEST_S", 1.0)
    monkeypatch.setattr("mlaas_ray.inference.tuning.MOST_VALUES", 8 * WIDTH)
    assert list(timed(runtime, (1, 8, 64), 0.01)) == [1, 8]


def test_an_onnx_file_has_one_runtime_and_its_times(tmp_path):
    found = examine(write_onnx(tmp_path / "model.onnx"), "onnx", 1, None, tmp_path)
    assert [item.name for item in found.candidates] == ["onnxruntime"]
    assert (found.chosen, found.signature) == ("onnxruntime", signature())
    assert list(found.candidates[0].seconds) == [1, 8, 64, 512]
    assert list(found.seconds) == [1 << power for power in range(11)]
    assert found == Examination.model_validate_json((tmp_path / "examination.json").read_text())


def test_all_runtimes_of_a_saved_model_are_compared_and_timed(saved_model, tmp_path):
    found, entry = examine_apart(saved_model, "savedmodel", threads=1, timeout_s=240, cache=tmp_path)
    assert [item.name for item in found.candidates] == ["signature", "frozen", "litert"]
    assert all(item.reason is None and item.difference < 1e-5 for item in found.candidates)
    assert all(list(item.seconds) == [1, 8, 64, 512] for item in found.candidates)
    assert found.chosen == "litert"
    assert sorted(path.name for path in entry.iterdir()) == ["examination.json", "model.tflite", "probe.npz"]


SAVE_RANDOM = """
import sys
import tensorflow as tf

class Dice(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def __call__(self, x):
        return {"prediction": x[:, :1] + tf.random.uniform([1])}

model = Dice()
tf.saved_model.save(model, sys.argv[1], signatures={"serving_default": model.__call__})
"""


def test_a_runtime_that_answers_otherwise_than_the_reference_is_not_used(tmp_path):
    subprocess.run([sys.executable, "-c", SAVE_RANDOM, str(tmp_path / "model")], check=True, timeout=240)
    found, entry = examine_apart(
        tmp_path / "model", "savedmodel", threads=1, timeout_s=240, cache=tmp_path / "cache"
    )
    assert found.chosen == "signature"
    assert "differ by" in found.candidates[1].reason
    assert found.candidates[1].difference > 0.01
    assert all(item.reason and not item.seconds for item in found.candidates[1:])
    assert sorted(path.name for path in entry.iterdir()) == ["examination.json", "probe.npz"]


def shadow(tmp_path, monkeypatch, module, program):
    """Have programs that are started find a module of ours in place of an installed one."""
    folder = tmp_path / "shadow"
    path = folder / module
    path.parent.mkdir(parents=True)
    for parent in path.relative_to(folder).parents[:-1]:
        (folder / parent / "__init__.py").touch()
    path.write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(folder))


CRASH = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"


def test_a_runtime_that_kills_the_process_costs_no_more_than_itself(saved_model, tmp_path, monkeypatch):
    shadow(tmp_path, monkeypatch, "ai_edge_litert/interpreter.py", CRASH)
    found, _ = examine_apart(saved_model, "savedmodel", threads=1, timeout_s=240, cache=tmp_path)
    assert found.chosen == "frozen"
    assert [item.reason for item in found.candidates] == [
        None,
        None,
        "the process that tried it ended, or took too long",
    ]


def test_a_model_that_kills_the_process_is_refused(onnx_file, tmp_path, monkeypatch):
    shadow(tmp_path, monkeypatch, "onnxruntime.py", CRASH)
    with pytest.raises(ModelError, match="ends the process that loads it"):
        examine_apart(onnx_file, "onnx", threads=1, timeout_s=60, cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["locks"]


def test_the_program_that_examines_ends_with_the_one_that_started_it(onnx_file, tmp_path):
    command = [sys.executable, "-m", "mlaas_ray.inference.tuning", onnx_file, "onnx", tmp_path]
    ended = subprocess.run([*command, "--parent", "1"], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 1
    assert "has ended" in ended.stderr
    assert not list(tmp_path.iterdir())
