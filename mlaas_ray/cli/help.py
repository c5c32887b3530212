"""How ``--help`` is shown: a flag takes no value, and a paragraph is as wide as the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

F = TypeVar("F", bound=Callable[..., Any])


class App(typer.Typer):
    """An app whose commands and groups show their help so."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=_Group, rich_markup_mode="rich", no_args_is_help=True, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Add a command."""
        return super().command(name, cls=_Command, **options)


class _Command(TyperCommand):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"help": _flowing(options.get("help"))})

    def get_params(self, ctx: Any) -> Any:
        return _plain(super().get_params(ctx))


class _Group(TyperGroup):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"help": _flowing(options.get("help"))})

    def get_params(self, ctx: Any) -> Any:
        return _plain(super().get_params(ctx))


def _plain(parameters: list[Any]) -> list[Any]:
    """Let flags not be shown as options that take a bool."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


def _flowing(text: str | None) -> str | None:
    """Join the lines of each paragraph; lines that are indented, such as commands, stay."""
    if text is None:
        return None
    paragraphs = (
        one.replace("\n    ", f"\n{_KEPT}    ").replace("    ", f"{_KEPT}    ", 1)
        if one.startswith(" ")
        else one.replace("\n", " ")
        for one in text.split("\n\n")
    )
    return "\n\n".join(paragraphs)


# Markup of nothing, before which spaces are not taken for the margin of the whole text.
_KEPT = "[bold][/bold]"
