from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from mlaas_ray.core.errors import ModelError
from mlaas_ray.training.source import FRAMEWORK, MODEL, Source


def test_a_file_travels_as_text(tmp_path: Path) -> None:
    file = tmp_path / "my_model.py"
    file.write_text("SIZE = 3\n\ndef model(input_dim):\n    return input_dim * SIZE\n")
    source = pickle.loads(pickle.dumps(Source.locate(str(file), MODEL)))
    file.unlink()
    build = source.function()
    assert build(7) == 21


@pytest.mark.parametrize("name", ["keras", "torch", "numpy"])
def test_a_file_is_not_shadowed_by_a_package_of_its_name_nor_shadows_it(tmp_path: Path, name: str) -> None:
    import numpy

    file = tmp_path / f"{name}.py"
    file.write_text("def model(input_dim):\n    return 'mine'\n")
    build = Source.locate(str(file), MODEL).function()
    assert build(1) == "mine"
    import numpy as again

    assert again is numpy


def test_a_function_of_an_installed_package_is_a_model() -> None:
    build = Source.locate("math:sqrt", MODEL).function()
    assert build(9) == 3


def test_a_built_in_model_needs_no_function() -> None:
    assert Source.locate("mlp", MODEL, ("mlp", "cnn")).builtin
    assert not Source.locate("math:sqrt", MODEL, ("mlp",)).builtin


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mpl", "Did you mean 'mlp'"),
        ("nowhere/my_model.py", "no model file /"),
        ("absent.py", "no model file /"),
    ],
)
def test_a_model_that_is_not_there_is_named(model: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Source.locate(model, MODEL, ("mlp", "cnn"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def network(n):\n    pass\n", "has no function 'model'"),
        ("import numpy\n\nimport no_such_package\n", "m.py, line 3: ModuleNotFoundError: No module named"),
        ("def model(n)\n    pass\n", "m.py, line 1: SyntaxError"),
        ("x = 1\ny = x / 0\n", "m.py, line 2: ZeroDivisionError"),
        ("raise SystemExit(3)\n", "m.py, line 1: SystemExit: 3"),
        ("model = 3\n", "has no function 'model'"),
    ],
)
def test_code_that_does_not_run_is_told_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "m.py"
    file.write_text(text)
    with pytest.raises(ModelError, match=message):
        Source.locate(str(file), MODEL).function()


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match=r"no_such_package.*ModuleNotFoundError"):
        Source.locate("no_such_package.module:build", MODEL).function()
    with pytest.raises(ModelError, match="has no function 'no_such'"):
        Source.locate("math:no_such", MODEL).function()


def test_other_code_has_another_contract(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def framework():\n    return 'mine'\n")
    assert Source.locate(str(file), FRAMEWORK).function()() == "mine"
    with pytest.raises(ModelError, match=r"no framework 'mien' .*my_framework.py|no framework 'mien'"):
        Source.locate("mien", FRAMEWORK, ("mine",))
