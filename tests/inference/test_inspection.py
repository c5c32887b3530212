import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from mlaas_ray.core.errors import ModelError
from mlaas_ray.inference.inspection import examine_apart, inspect_apart, inspect_model, thread_environment
from tests.serving import signature, write_onnx

# Too short for a process to start in: only what is remembered is found.
AT_ONCE = 1e-6


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def entries(cache):
    return sorted(path.name for path in cache.iterdir() if path.name != "locks")


def test_the_signature_of_an_upload_is_found_in_a_process_of_its_own(onnx_file):
    assert inspect_apart(onnx_file, "onnx", 60) == inspect_model(onnx_file, "onnx") == signature()


@pytest.mark.parametrize(
    ("content", "said"), [(b"junk", "not an ONNX file"), (None, "cannot be read"), (b"", "Export")]
)
def test_what_the_process_has_against_a_model_is_told(content, said, tmp_path):
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        inspect_apart(tmp_path / "model.onnx", "onnx", 60)


def test_a_model_that_takes_too_long_is_refused_and_tried_again(onnx_file, cache):
    with pytest.raises(ModelError, match=r"within 1e-06 s"):
        examine_apart(onnx_file, "onnx", threads=1, timeout_s=AT_ONCE, cache=cache)
    assert entries(cache) == []
    assert examine_apart(onnx_file, "onnx", threads=1, timeout_s=60, cache=cache)[0].chosen == "onnxruntime"


def test_a_model_is_examined_once_wherever_it_lies(onnx_file, onnx_package, cache):
    found = examine_apart(onnx_file, "onnx", threads=1, timeout_s=60, cache=cache)
    again = examine_apart(onnx_package.model_path, "onnx", threads=1, timeout_s=AT_ONCE, cache=cache)
    assert found == again
    assert entries(cache) == [found[1].name]


def test_another_model_threads_weights_or_sample_are_examined_anew(onnx_file, tmp_path, cache):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(onnx_file, folder / "model.onnx")
    examine_apart(folder / "model.onnx", "onnx", threads=1, timeout_s=60, cache=cache)

    def is_known(threads=1):
        try:
            examine_apart(folder / "model.onnx", "onnx", threads=threads, timeout_s=AT_ONCE, cache=cache)
        except ModelError:
            return False
        return True

    assert is_known()
    assert not is_known(threads=2)
    # a file beside the model counts if the model names it, as it names one of its inputs
    (folder / "unrelated.bin").write_bytes(b"1")
    assert is_known()
    (folder / "weights").write_bytes(b"1")
    assert not is_known()
    (folder / "weights").unlink()
    np.savez(folder / "sample.npz", x=np.zeros((2, 5), np.float32))
    assert not is_known()
    (folder / "sample.npz").unlink()
    assert is_known()
    write_onnx(folder / "model.onnx", scale=2.0)
    assert not is_known()


def test_two_that_ask_at_the_same_time_get_one_examination(onnx_file, cache):
    with ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(examine_apart, onnx_file, "onnx", threads=1, timeout_s=60, cache=cache)
            for _ in range(3)
        ]
        first, *others = [future.result() for future in asked]
    # equal to the last digit of the times: measured once
    assert others == [first, first]
    assert entries(cache) == [first[1].name]


def test_a_damaged_entry_is_made_anew(onnx_file, cache):
    _, entry = examine_apart(onnx_file, "onnx", threads=1, timeout_s=60, cache=cache)
    (entry / "examination.json").write_text("{")
    found, again = examine_apart(onnx_file, "onnx", threads=1, timeout_s=60, cache=cache)
    assert (found.chosen, again) == ("onnxruntime", entry)


def test_entries_used_longest_ago_make_room_and_abandoned_work_goes(onnx_file, cache, monkeypatch):
    monkeypatch.setattr("mlaas_ray.inference.inspection.MOST_ENTRIES", 2)
    for age, name in enumerate(["new", "old", ".new-today", ".new-abandoned"]):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (1e9 - age, 1e9 - age))
    (cache / ".new-today").touch()
    _, entry = examine_apart(onnx_file, "onnx", threads=1, timeout_s=60, cache=cache)
    assert entries(cache) == sorted([".new-today", "new", entry.name])


def test_without_a_cache_a_process_remembers_for_itself(onnx_file, monkeypatch):
    monkeypatch.setenv("MLAAS_CACHE", "off")
    found = examine_apart(onnx_file, "onnx", threads=1, timeout_s=60)
    assert examine_apart(onnx_file, "onnx", threads=1, timeout_s=AT_ONCE) == found


def test_a_cache_that_cannot_be_written_to_is_done_without(onnx_file, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLAAS_CACHE", str(tmp_path / "file"))
    assert examine_apart(onnx_file, "onnx", threads=1, timeout_s=60)[0].chosen == "onnxruntime"


def test_numerical_libraries_take_the_threads_they_are_given():
    variables = thread_environment(3)
    assert variables["OMP_NUM_THREADS"] == variables["TF_NUM_INTRAOP_THREADS"] == "3"
    assert variables["TF_NUM_INTEROP_THREADS"] == "1"


def write_graph(path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}'), path)


def test_a_model_gets_only_so_much_memory_to_be_tried(tmp_path):
    text = """g (float[b,3] x) => (float[b,3] y) <int64[1] s = {4000000000}> {
        c = ConstantOfShape(s)
        r = ReduceSum<keepdims: int = 0>(c)
        y = Add(x, r)
    }"""
    write_graph(tmp_path / "huge" / "model.onnx", text)
    with pytest.raises(ModelError) as caught:
        inspect_apart(tmp_path / "huge" / "model.onnx", "onnx", 60)
    assert "memory" in str(caught.value) or "allocate" in str(caught.value)


def test_a_model_that_computes_without_end_is_refused_by_its_cpu_time(tmp_path):
    text = """g (float[b,3] x) => (float[b,3] y) <bool t = {1}> {
        y = Loop("", t, x) <body = b (int64 i, bool c, float[] v) => (bool co, float[] vo) {
            co = Identity(c)
            vo = Identity(v)
        }>
    }"""
    write_graph(tmp_path / "loop" / "model.onnx", text)
    with pytest.raises(ModelError, match="did not answer within 4 s of CPU time"):
        inspect_apart(tmp_path / "loop" / "model.onnx", "onnx", 8)
