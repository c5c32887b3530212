"""The public face: what each layer offers, says of itself, and does not drag in."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlaas_ray

ROOT = Path(mlaas_ray.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
# cli offers a command, not names
LAYERS = sorted({path.parent.name for path in ROOT.glob("*/__init__.py")} - {"cli"})
# Rooms within a layer that offer names of their own.
ROOMS = ["workflows.report"]
# They take seconds and hundreds of megabytes, and TensorFlow must come after XRootD: imported where used.
FRAMEWORKS = {"tensorflow", "keras", "torch", "onnxruntime", "xgboost"}
# So are these, which are wanted once a run, or are extras.
RARE = {"onnx", "onnxmltools", "onnxscript", "sklearn", "matplotlib", "mplhep", "tensorboardX", "s3fs"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT.parent))


def imported_at_once(nodes: list[ast.stmt]) -> Iterator[tuple[int, str]]:
    """Yield line and top-level package of each import that runs when the module does.

    What lies in a function does not, nor under ``if TYPE_CHECKING``.
    """
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, (node.module or "").partition(".")[0]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imported_at_once(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [child for child in ast.walk(node) if child is not node]
            direct = [getattr(node, part, []) for part in ("body", "orelse", "finalbody")]
            direct += [handler.body for handler in inner if isinstance(handler, ast.ExceptHandler)]
            direct += [case.body for case in inner if isinstance(case, ast.match_case)]
            for block in direct:
                if isinstance(block, list):
                    yield from imported_at_once(block)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_frameworks_and_what_is_rare_are_imported_inside_functions_only(path: Path) -> None:
    found = imported_at_once(ast.parse(path.read_text()).body)
    assert [f"line {line}: {name}" for line, name in found if name in FRAMEWORKS | RARE] == []


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import torch.nn as nn", ["torch"]),
        ("from keras.layers import Dense", ["keras"]),
        ("try:\n    import torch\nexcept ImportError:\n    import keras", ["torch", "keras"]),
        ("class A:\n    import torch", ["torch"]),
        ("with a:\n    if b:\n        import torch\n    else:\n        import keras", ["torch", "keras"]),
        ("def f():\n    import torch", []),
        ("class A:\n    async def f(self):\n        import torch", []),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import keras", ["keras"]),
        ("from . import torch", []),
    ],
)
def test_the_search_for_imports_sees_what_it_should(code: str, names: list[str]) -> None:
    assert [name for _, name in imported_at_once(ast.parse(code).body)] == names


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_module_says_what_it_is_in_one_line(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text, "no docstring"
    first, *rest = text.splitlines()
    assert first.endswith((".", ":")), f"the first line is no sentence: {first}"
    assert not rest or rest[0] == "", "a blank line follows the first"


@pytest.mark.parametrize("layer", [*LAYERS, *ROOMS])
def test_every_layer_names_what_it_offers_sorted_and_truly(layer: str) -> None:
    module = importlib.import_module(f"mlaas_ray.{layer}")
    names = module.__all__
    # constants, classes, functions, as ruff's RUF022 sorts them
    assert names == sorted(set(names), key=lambda name: (not name.isupper(), name.islower(), name))
    for name in names:
        assert getattr(module, name).__doc__, f"{name} has no docstring"


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in MODULES}
    assert [relative(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_importing_the_layers_loads_no_framework() -> None:
    layers = "; ".join(f"import mlaas_ray.{layer}" for layer in [*LAYERS, "cli"])
    # a fresh interpreter: this one may have loaded them for other tests
    code = f"import sys; {layers}; print(sorted({FRAMEWORKS} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
