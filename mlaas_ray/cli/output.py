"""What commands print: tables for people on a terminal, one JSON line for programs, one line for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from typing import Annotated, Any, NoReturn, ParamSpec, TextIO, TypeVar, cast

import typer
from rich.console import Console

from mlaas_ray import __version__
from mlaas_ray.core.errors import MlaasError

P = ParamSpec("P")
R = TypeVar("R")


class _Results:
    """Standard output as it was when the command began."""

    stream: TextIO | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream or sys.stdout, name)


# Results go to standard output, and everything else (progress, hints, errors) to standard error.
_results = _Results()
out = Console(file=cast(TextIO, _results))
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON line at the end, for programs.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray cluster: 'auto' (this machine's) or host:port. Default: RAY_ADDRESS, else one of its own.",
        show_default=False,
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"mlaas-ray {__version__}", highlight=False)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
]


def emit(document: Any) -> None:
    """Print a document as one JSON line on standard output."""
    _results.write(json.dumps(document, allow_nan=False, default=str) + "\n")
    _results.flush()


def fail(error: MlaasError) -> NoReturn:
    """Print an error as one line and end with status 2."""
    err.print(f"[bold red]error:[/] {_escape(' '.join(str(error).split()))}", soft_wrap=True, highlight=False)
    raise typer.Exit(2)


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Give a command its manner of failing: one line for what the user can mend, no traceback."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _results_apart():
                return function(*args, **kwargs)
        except MlaasError as error:
            fail(error)
        except KeyboardInterrupt:
            err.print("stopped")
            raise typer.Exit(130) from None

    return run


@contextmanager
def _results_apart() -> Iterator[None]:
    """Send to standard error what others print meanwhile, such as Ray's reports of the cluster."""
    _results.stream = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results.stream = None


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
