"""What commands print: tables for people on a terminal, one JSON line for programs, one line for an error."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from typing import Annotated, Any, NoReturn, ParamSpec, TextIO, TypeVar, cast

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.status import Status
from rich.table import Column, Table
from rich.text import Text

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
AllowDuplicates = Annotated[
    bool,
    typer.Option("--allow-duplicates", help="Read a file twice that is named twice, linked or copied."),
]


def with_duplicates(changes: list[str] | None, allowed: bool) -> list[str]:
    """Return the changes of a job, and that which ``--allow-duplicates`` makes."""
    return [*(changes or []), *(["reading.allow_duplicates=true"] if allowed else [])]


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


def say(text: str) -> None:
    """Print a line on standard error, as it is."""
    err.print(Text(text), soft_wrap=True, highlight=False)


def tell(text: str) -> None:
    """Print a line of the result on standard output, as it is."""
    out.print(Text(text), soft_wrap=True, highlight=False)


class Stages:
    """Tells what begins and takes a while: by a spinner on a terminal, else by a line."""

    def __init__(self) -> None:
        self.on_terminal = err.is_terminal and sys.stderr.isatty()
        self._spinner: Status | None = None

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def __call__(self, what: str) -> None:
        """Say what begins; nothing for what shows itself, such as a bar."""
        self.end()
        if what and self.on_terminal:
            self.spin(what)
        elif what:
            say(f"{what} …")

    def spin(self, what: str) -> None:
        """Show a spinner, on a terminal; a log needs no line for it."""
        self.end()
        if what and self.on_terminal:
            self._spinner = err.status(f"{what} …")
            self._spinner.start()

    def end(self) -> None:
        """Take the spinner away."""
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None


def terminal_width() -> int | None:
    """Return the columns of the terminal; None for a file or a pipe, whose lines have no end."""
    if not out.is_terminal and not os.environ.get("COLUMNS"):
        return None
    return shutil.get_terminal_size().columns


def number(head: str) -> Column:
    """Return a table's column of numbers, which are never broken."""
    return Column(head, justify="right", no_wrap=True)


def table(
    columns: Sequence[str | Column],
    rows: Sequence[Sequence[object]],
    *,
    title: str = "",
    spare: Sequence[str] = (),
) -> None:
    """Print a table of which nothing is cut.

    Args:
        columns: Heads of columns of text, which is folded where the terminal is narrow; or :func:`number`.
        rows: What stands in them.
        title: A line above.
        spare: Heads of columns that a narrow terminal may lack, the first one first. A line names them.
    """
    width = terminal_width()
    heads = [column if isinstance(column, Column) else Column(column, overflow="fold") for column in columns]
    sizes = [
        max((cell_len(line) for cell in cells for line in str(cell).split("\n")), default=0)
        for cells in zip((head.header for head in heads), *rows, strict=True)
    ]
    least = [size if head.no_wrap else min(size, _NARROW) for head, size in zip(heads, sizes, strict=True)]
    shown = list(range(len(heads)))
    for name in spare:
        if width is None or _across(least, shown) <= width:
            break
        shown = [place for place in shown if heads[place].header != name]
    sheet = Table(
        box=None,
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
        show_header=any(head.header for head in heads),
        header_style="bold",
    )
    for place in shown:
        head = heads[place]
        sheet.add_column(
            head.header,
            justify=head.justify,
            no_wrap=head.no_wrap,
            overflow="fold",
            min_width=least[place],
        )
    for row in rows:
        cells = (row[place] for place in shown)
        sheet.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))
    if title:
        tell(title)
    # what needs more than the terminal has is wrapped by it, and not cut
    room = _across(sizes, shown) if width is None else max(width, _across(least, shown))
    console = Console(file=out.file, width=room, color_system="auto" if out.is_terminal else None)
    with console.capture() as text:
        console.print(sheet, highlight=False)
    out.file.write("".join(f"{line.rstrip()}\n" for line in text.get().splitlines()))
    missing = [str(head.header) for place, head in enumerate(heads) if place not in shown]
    if missing:
        say(f"(a wider terminal also shows: {', '.join(missing)})")


# A column of text is folded to no fewer characters than this; between columns there are as many spaces.
_NARROW = 14
_GAP = 2


def _across(sizes: Sequence[int], shown: Sequence[int]) -> int:
    return sum(sizes[place] + _GAP for place in shown)


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and what they are, one a line."""
    table([Column("", no_wrap=True), ""], rows)


def fail(error: MlaasError) -> NoReturn:
    """Print an error as one line, below it the place in an expression if it shows one; end with status 2."""
    text, *picture = re.split(r"\n(?=    .*\n *\^+\s*$)", str(error), maxsplit=1)
    line = f"error: {' '.join(text.split())}"
    width = shutil.get_terminal_size().columns if err.is_terminal else None
    if width is not None:  # between words; a long path stays whole
        line = textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
    shown = Text(line)
    shown.stylize("bold red", 0, len("error:"))
    err.print(shown, soft_wrap=True, highlight=False)
    for part in picture:
        say(_within(part, width))
    raise typer.Exit(2)


def _within(picture: str, width: int | None) -> str:
    """Return an expression and the carets under it, of a long one what is near the carets."""
    text, carets = picture.rstrip().split("\n")
    if width is None or len(text) <= width:
        return f"{text}\n{carets}"
    first = carets.index("^")
    start = max(0, min(first - width // 3, len(text) - width))
    shown = text[start : start + width]
    if start:
        shown = "…" + shown[1:]
    if start + width < len(text):
        shown = shown[:-1] + "…"
    return f"{shown}\n{carets[start : start + width]}"


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Give a command its manner of failing: one line, and no traceback."""

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
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            fail(_unforeseen(error))

    return run


def _unforeseen(error: Exception) -> MlaasError:
    """Describe an error that nobody has given words; its traceback goes to a file."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return MlaasError(f"{error.filename}: {error.strerror}", "Check the path and its permissions")
    with tempfile.NamedTemporaryFile("w", prefix="mlaas-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    *_, last = ["", *str(error).strip().splitlines()]
    return MlaasError(
        f"{type(error).__name__}: {last}", f"This should not happen; please report it with {file.name}"
    )


@contextmanager
def _results_apart() -> Iterator[None]:
    """Send to standard error what others print meanwhile, such as Ray's reports of the cluster."""
    _results.stream = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results.stream = None
