"""ModelSource: where a network comes from, in a form that travels to workers which lack the user's file."""

from __future__ import annotations

import hashlib
import importlib
import linecache
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlaas_ray.core.errors import ModelError, nearest

BUILTIN = ("mlp",)

_CONTRACT = "Define a function model(input_dim) in it that returns the network"


@dataclass(frozen=True)
class ModelSource:
    """A built-in name, the text of a user's file, or ``package.module:function``.

    Attributes:
        name: What the user wrote; messages call the model by it.
        path: The user's file, absolute; empty when the model is no file.
        text: The file's content, so that it need not exist where the workers run.
    """

    name: str
    path: str = ""
    text: str = ""

    @classmethod
    def locate(cls, model: str) -> ModelSource:
        """Find a model by the name a user gave; a file is read here, once.

        Args:
            model: ``mlp``, a path that ends in ``.py``, or ``package.module:function``.

        Raises:
            ModelError: For a file that cannot be read, and a name that is none of these.
        """
        if model in BUILTIN or (":" in model and os.sep not in model and not model.endswith(".py")):
            return cls(model)
        if not model.endswith(".py") and os.sep not in model:
            raise ModelError(
                f"no model {model!r}",
                f"{nearest(model, BUILTIN)} (or give my_model.py, or package.module:function)",
            )
        path = Path(model).expanduser().absolute()
        try:
            return cls(model, str(path), path.read_text())
        except FileNotFoundError:
            raise ModelError(f"no model file {path}", "Check the path, or use the built-in mlp") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"cannot read the model file {path}: {error}", _CONTRACT) from None

    @property
    def builtin(self) -> bool:
        """Whether it is one of ours."""
        return self.name in BUILTIN

    def builder(self) -> Callable[[int], Any] | None:
        """Return the user's function ``model(input_dim)``; None for a built-in model.

        Raises:
            ModelError: When the code does not run (naming file and line) or has no such function.
        """
        if self.builtin:
            return None
        module_name, _, function_name = ("", "", "model") if self.path else self.name.partition(":")
        try:
            module = self._execute() if self.path else importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise ModelError(f"{self.where(error)}: {one_line(error)}", "Correct the model's code") from None
        function = getattr(module, function_name, None)
        if not callable(function):
            raise ModelError(f"{self.name} has no function {function_name!r}", _CONTRACT)
        return function  # type: ignore[no-any-return]

    def where(self, error: BaseException) -> str:
        """Return the model's name, with the line of its file where the error arose."""
        line: int | None = None
        if isinstance(error, SyntaxError) and error.filename == self.path:
            line = error.lineno
        trace = error.__traceback__
        while trace is not None:
            if self.path and trace.tb_frame.f_code.co_filename == self.path:
                line = trace.tb_lineno
            trace = trace.tb_next
        return self.name if line is None else f"{self.name}, line {line}"

    def _execute(self) -> types.ModuleType:
        """Run the file's text as a module of a name nobody else uses."""
        digest = hashlib.sha256(f"{self.path}\n{self.text}".encode()).hexdigest()[:16]
        name = f"mlaas_user_model_{digest}"
        module = types.ModuleType(name)
        module.__file__ = self.path
        # For tracebacks, and for frameworks that look at a function's source (Keras, TorchScript).
        linecache.cache[self.path] = (len(self.text), None, self.text.splitlines(keepends=True), self.path)
        folder = str(Path(self.path).parent)
        if folder not in sys.path and Path(folder).is_dir():
            sys.path.append(folder)  # last: what lies beside the file shadows nothing
        code = compile(self.text, self.path, "exec", dont_inherit=True)
        sys.modules[name] = module
        try:
            exec(code, module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        return module


def one_line(error: BaseException) -> str:
    """Return an error's kind and the first lines of its message on one line, without a full stop."""
    text = " ".join(str(error).split())
    if len(text) > 300:
        text = text[:300] + " …"
    return f"{type(error).__name__}: {text}".rstrip(".: ")
