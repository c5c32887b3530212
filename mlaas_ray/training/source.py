"""Source: where a user's code comes from, in a form that travels to workers which lack the file."""

from __future__ import annotations

import hashlib
import importlib
import linecache
import os
import re
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlaas_ray.core.errors import ModelError, nearest


@dataclass(frozen=True)
class Contract:
    """What code of a user's is to provide.

    Attributes:
        what: What it is, for messages: ``model``.
        function: Name of the function a file must have.
        usage: How to write one.
    """

    what: str
    function: str
    usage: str


MODEL = Contract("model", "model", "Define a function model(input_dim) in it that returns the network")
FRAMEWORK = Contract(
    "framework", "framework", "Define a function framework() in it that returns the framework"
)


@dataclass(frozen=True)
class Source:
    """A name of ours, the text of a user's file, or ``package.module:function``.

    Attributes:
        name: What the user wrote; messages call it by that.
        contract: What it is to provide.
        path: The user's file, absolute; empty when it is no file.
        text: The file's content, so that it need not exist where the workers run.
    """

    name: str
    contract: Contract
    path: str = ""
    text: str = ""

    @classmethod
    def locate(cls, name: str, contract: Contract, known: Sequence[str] = ()) -> Source:
        """Find code by the name a user gave; a file is read here, once.

        Args:
            name: One of ours, a path that ends in ``.py``, or ``package.module:function``.
            contract: What it is to provide.
            known: Names of ours.

        Raises:
            ModelError: For a name that is none of these, and a file that cannot be read.
        """
        what = contract.what
        if name in known or (":" in name and os.sep not in name and not name.endswith(".py")):
            return cls(name, contract)
        if not name.endswith(".py"):
            raise ModelError(
                f"no {what} {name!r}",
                f"{nearest(name, known)} (or give my_{what}.py, or package.module:function)".strip(),
            )
        path = Path(name).expanduser().absolute()
        try:
            return cls(name, contract, str(path), path.read_text())
        except FileNotFoundError:
            ours = f", or use one of ours: {', '.join(known)}" if known else ""
            raise ModelError(f"no {what} file {path}", f"Check the path{ours}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"cannot read the {what} file {path}: {error}", contract.usage) from None

    @property
    def builtin(self) -> bool:
        """Whether it is one of ours."""
        return not self.path and ":" not in self.name

    def function(self) -> Callable[..., Any]:
        """Return the user's function.

        Raises:
            ModelError: When the code does not run (naming file and line) or has no such function.
        """
        module_name, _, name = ("", "", self.contract.function) if self.path else self.name.partition(":")
        try:
            module = self._execute() if self.path else importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise ModelError(f"{self.where(error)}: {one_line(error)}", "Correct the code") from None
        function = getattr(module, name, None)
        if not callable(function):
            raise ModelError(f"{self.name} has no function {name!r}", self.contract.usage)
        return function  # type: ignore[no-any-return]

    def where(self, error: BaseException) -> str:
        """Return its name, with the innermost line of its file, or of one beside it, where the error arose.

        Compilers of frameworks keep the user's lines in the message only.
        """
        path = self.path or str(getattr(sys.modules.get(self.name.partition(":")[0]), "__file__", None) or "")
        folder = str(Path(path).parent)
        found = [(file, line) for file, line in _lines(error) if path and str(Path(file).parent) == folder]
        if not found:
            return self.name
        file, line = found[-1]
        name = self.name if file == path else str(Path(self.name.partition(":")[0]).parent / Path(file).name)
        return f"{name}, line {line}"

    def _execute(self) -> types.ModuleType:
        """Run the file's text as a module of a name nobody else uses."""
        digest = hashlib.sha256(f"{self.path}\n{self.text}".encode()).hexdigest()[:16]
        name = f"mlaas_user_{self.contract.what}_{digest}"
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


def _lines(error: BaseException) -> list[tuple[str, int]]:
    """Return the lines of code that an error came through, the innermost last, without those of our own."""
    found: list[tuple[str, int]] = []
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        found = [(error.filename, error.lineno)]
    trace = error.__traceback__
    while trace is not None:
        found.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    found += [(file, int(line)) for file, line in re.findall(r'File "([^"]+)", line (\d+)', str(error))]
    behind = error.__cause__ or error.__context__
    ours = str(Path(__file__).parents[1])
    return (_lines(behind) if behind is not None else []) + [
        (file, line) for file, line in found if not file.startswith(ours)
    ]


def one_line(error: BaseException) -> str:
    """Return an error's kind and the first lines of its message on one line, without a full stop."""
    text = str(error)
    # Keras wraps what went wrong in where it did, and prints it in bold; TensorFlow puts its own trace before
    text = (re.findall(r"\x1b\[1m(.*?)\x1b\[0m", text, re.DOTALL) or [text])[-1]
    text = text.rpartition("Error encountered:")[2]
    if text.startswith("in user code:"):
        text = text.rpartition("\n\n")[2]
    text = " ".join(re.sub(r"{{.*?}}", "", text).split())
    if len(text) > 300:
        text = text[:300] + " …"
    return f"{type(error).__name__}: {text}".rstrip(".: ")
