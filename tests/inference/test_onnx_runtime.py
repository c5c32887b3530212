"""Classifiers as other libraries export them."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from mlaas_ray.core.errors import ModelError
from mlaas_ray.inference.candidates import open_model
from mlaas_ray.inference.inspection import inspect_apart, inspect_model
from mlaas_ray.inference.onnx_runtime import OnnxRuntime
from mlaas_ray.inference.predictions import predict
from mlaas_ray.inference.uploads import publish_form
from mlaas_ray.repository import Repository

ROWS = np.random.default_rng(3).normal(size=(40, 3)).astype(np.float32)
WEIGHTS = np.array([[1, 2, 3], [-2, 0.5, 1]], np.float32)


def probabilities(rows):
    scores = np.exp(rows @ WEIGHTS.T)
    return scores / scores.sum(axis=1, keepdims=True)


def write_classifier(path, names, *, zipmap=True, main=True):
    """Write a classifier of the operators of ai.onnx.ml, with or without one of the main ones."""
    import onnx
    from onnx import TensorProto, helper

    texts = isinstance(names[0], str)
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["x"],
            ["label", "scores"],
            domain="ai.onnx.ml",
            coefficients=WEIGHTS.ravel().tolist(),
            intercepts=[0.0, 0.0],
            post_transform="SOFTMAX",
            **{"classlabels_strings" if texts else "classlabels_ints": names},
        )
    ]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING if texts else TensorProto.INT64, [None])
    ]
    last = "scores"
    if main:
        nodes.append(helper.make_node("Identity", ["scores"], ["passed"]))
        last = "passed"
    if zipmap:
        labels = {"classlabels_strings" if texts else "classlabels_int64s": names}
        nodes.append(helper.make_node("ZipMap", [last], ["chance"], domain="ai.onnx.ml", **labels))
        key = TensorProto.STRING if texts else TensorProto.INT64
        kind = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        outputs.append(helper.make_value_info("chance", helper.make_sequence_type_proto(kind)))
    else:
        outputs.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, [None, len(names)]))
    rows = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])
    domains = [helper.make_opsetid("ai.onnx.ml", 1), *([helper.make_opsetid("", 17)] if main else [])]
    graph = helper.make_graph(nodes, "classifier", [rows], outputs)
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), str(path))
    return path


@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize("zipmap", [True, False])
@pytest.mark.parametrize("names", [["bkg", "sig"], [3, 11]])
def test_a_classifier_answers_probabilities_and_its_file_says_of_which_classes(tmp_path, names, zipmap, main):
    content = tmp_path / "content"
    content.mkdir()
    write_classifier(content / "model.onnx", names, zipmap=zipmap, main=main)
    repository = Repository(tmp_path / "models")
    publish_form(repository, "mine", content, inspect_model)
    package = repository.get("mine")
    assert package.labels == [str(name) for name in names]
    runtime = open_model(package.model_path, "onnx")
    assert runtime.signature == package.signature
    np.testing.assert_allclose(predict(runtime, ROWS), probabilities(ROWS), atol=1e-6)


def test_class_names_that_are_sent_come_before_those_of_the_file(tmp_path):
    content = tmp_path / "content"
    content.mkdir()
    write_classifier(content / "model.onnx", [0, 1])
    (content / "labels.txt").write_text("background\nsignal\n")
    repository = Repository(tmp_path / "models")
    publish_form(repository, "mine", content, inspect_model)
    assert repository.get("mine").labels == ["background", "signal"]


@pytest.mark.parametrize("zipmap", [True, False])
def test_what_scikit_learn_exports_answers_as_scikit_learn(tmp_path, zipmap):
    from skl2onnx import to_onnx
    from sklearn.ensemble import RandomForestClassifier

    classes = np.array(["bkg", "sig", "other"])[(ROWS[:, 0] > 0) * 1 + (ROWS[:, 1] > 1)]
    forest = RandomForestClassifier(5, max_depth=3, random_state=1).fit(ROWS, classes)
    model = to_onnx(forest, ROWS[:1], options={"zipmap": zipmap})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    signature = inspect_model(tmp_path / "model.onnx", "onnx")
    assert signature.outputs[0].labels == ("bkg", "other", "sig") == tuple(forest.classes_)
    answers = predict(OnnxRuntime(tmp_path / "model.onnx"), ROWS)
    np.testing.assert_allclose(answers, forest.predict_proba(ROWS), atol=1e-6)


def write_strings(path):
    import onnx
    from onnx import TensorProto, helper

    rows = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    text = helper.make_tensor_value_info("text", TensorProto.STRING, ["batch", 3])
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["text"], to=TensorProto.STRING)], "s", [rows], [text]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))


def test_a_model_that_answers_no_numbers_is_refused_with_the_reason(tmp_path):
    content = tmp_path / "content"
    content.mkdir()
    write_strings(content / "model.onnx")
    repository = Repository(tmp_path / "models")

    def inspect(path: Any, model_format: Any) -> Any:
        return inspect_apart(path, model_format, 60)

    said = r"the model's output 'text' is of tensor\(string\), not of numbers"
    with pytest.raises(ModelError, match=said):
        publish_form(repository, "mine", content, inspect)
    assert not repository.names()
    # nor is one that params.json names in place of the probabilities
    shutil.rmtree(content)
    content.mkdir()
    write_classifier(content / "model.onnx", ["bkg", "sig"])
    (content / "params.json").write_text('{"output_name": "label"}')
    with pytest.raises(ModelError, match=r"the model's output 'label' is of tensor\(string\)"):
        publish_form(repository, "mine", content, inspect)
