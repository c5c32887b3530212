import json

import numpy as np
import pytest

from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.package import Tensor
from mlaas_ray.inference.candidates import open_model
from mlaas_ray.inference.inspection import examine_apart
from mlaas_ray.inference.predictions import predict, served_first

LABEL = Tensor(name="label", dtype="int64", shape=(None,))
FIRST = Tensor(name="first", dtype="float32", shape=(None, 2))
SECOND = Tensor(name="second", dtype="float64", shape=(None, 1))


@pytest.mark.parametrize(
    ("outputs", "named", "served"),
    [
        ([LABEL], [], "label"),
        ([LABEL, FIRST, SECOND], [], "first"),
        ([LABEL, SECOND, FIRST], [], "second"),
        ([LABEL, SECOND, FIRST], ["first"], "first"),
        ([LABEL, SECOND, FIRST], ["dense/Softmax", "label"], "label"),
        # a model with one output needs no name, and TFaaS's clients send those of other files
        ([FIRST], ["dense/Softmax"], "first"),
    ],
)
def test_the_named_output_is_served_else_the_first_of_floating_point_numbers(outputs, named, served):
    found = served_first(outputs, named)
    assert found[0].name == served
    assert set(found) == set(outputs)


def test_a_name_that_none_of_several_outputs_has_is_refused_with_theirs():
    with pytest.raises(ModelError, match="names the output 'second', the model has first, label"):
        served_first([LABEL, FIRST], ["second"])


def write_two(path):
    """Write an ONNX file with the outputs z = x and a = -x."""
    import onnx
    from onnx import TensorProto, helper

    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xza"]
    nodes = [helper.make_node("Identity", ["x"], ["z"]), helper.make_node("Neg", ["x"], ["a"])]
    graph = helper.make_graph(nodes, "two", rows[:1], rows[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))
    return path


@pytest.mark.parametrize(
    ("params", "served", "sign"),
    [
        (None, "z", 1),
        ({"description": "mine"}, "z", 1),
        ({"outputName": "a"}, "a", -1),
        ({"output_node": "a", "output_name": ""}, "a", -1),
    ],
)
def test_of_an_onnx_files_outputs_the_files_first_is_served_or_what_params_json_names(
    tmp_path, params, served, sign
):
    path = write_two(tmp_path / "model.onnx")
    if params is not None:
        (tmp_path / "params.json").write_text(json.dumps(params))
    runtime = open_model(path, "onnx")
    assert runtime.signature.outputs[0].name == served
    rows = np.float32([[1, 2], [3, 4]])
    np.testing.assert_array_equal(predict(runtime, rows), sign * rows)


def test_a_model_whose_params_json_names_another_output_is_examined_anew(tmp_path):
    path = write_two(tmp_path / "model.onnx")
    served = []
    for name in ("z", "a"):
        (tmp_path / "params.json").write_text(json.dumps({"output_name": name}))
        found, _ = examine_apart(path, "onnx", threads=1, timeout_s=60, cache=tmp_path / "cache")
        served.append(found.signature.outputs[0].name)
    assert served == ["z", "a"]
