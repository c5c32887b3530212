"""Syntax of expressions: text to a tree of Python's own parser, and what may stand where in it.

Nothing is ever evaluated as Python: names become names of branches, calls are looked up in a table, and
whatever is not listed here is refused.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NoReturn

from mlaas_ray.core.errors import JobError

MAX_CHARACTERS = 4000
# Nested this deeply, an expression is evaluated well within Python's own limit.
MAX_DEPTH = 100
MAX_NUMBER = 2**64
# Functions that answer with true or false.
_CONDITIONS = ("all", "any", "is_missing", "isfinite", "isinf", "isnan")

ALLOWED = (
    "Use branches, numbers, + - * / // % **, comparisons, & | ~, and or not, where(c, a, b), x[:, 0], "
    "x[x > 1], and the functions of docs/streaming/expressions.md"
)


def read(text: str, what: str) -> tuple[str, ast.expr]:
    """Parse a text.

    Args:
        text: What the user wrote.
        what: Where, for messages: ``define.HT``.

    Returns:
        The text on one line, and its tree.

    Raises:
        JobError: When it is no expression, or one that is too long or too deep.
    """
    text = " ".join(text.splitlines()).strip()
    if not text:
        raise JobError(f"{what}: the expression is empty", "Write one, or leave the key out")
    if len(text) > MAX_CHARACTERS:
        raise JobError(
            f"{what}: the expression has {len(text)} characters, more than {MAX_CHARACTERS}",
            "Divide it over several definitions",
        )
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise JobError(f"{what}: {error.msg}", _mistake(text) + _underlined(text, error)) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise JobError(f"{what}: this is no expression: {error}", ALLOWED) from None
    if _depth(tree) > MAX_DEPTH:
        raise JobError(
            f"{what}: the expression is nested more than {MAX_DEPTH} deep",
            "Divide it over several definitions",
        )
    return text, tree


def refuse(message: str, remedy: str, text: str, node: ast.AST, what: str) -> NoReturn:
    """Raise a JobError that shows the place."""
    raise JobError(f"{what}: {message}", remedy + picture(text, node))


def picture(text: str, node: ast.AST) -> str:
    """Return lines that show the expression with a part of it underlined."""
    start, stop = _span(text, node)
    return _marked(text, start, stop)


def part(text: str, node: ast.AST) -> str:
    """Return the text of a part."""
    start, stop = _span(text, node)
    return text[start:stop]


def dotted(node: ast.expr) -> str | None:
    """Return ``a.b.c`` of names and dots; None of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return before and f"{before}.{node.attr}"
    return None


def conjuncts(text: str) -> list[str]:
    """Take a condition apart where ``and`` joins it, or ``&`` of which one side at least is a condition.

    What is joined otherwise stays whole: of whole numbers, as in ``flags & 4``, ``&`` takes the bits.
    """
    text, tree = read(text, "select")
    found: list[str] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd) and _is_condition(node):
            waiting += [node.right, node.left]
        elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            waiting += reversed(node.values)
        else:
            found.append(part(text, node))
    return found


def _is_condition(node: ast.expr) -> bool:
    """Tell whether it is true or false, whatever the branches hold."""
    if isinstance(node, ast.BinOp):
        joined = isinstance(node.op, ast.BitAnd | ast.BitOr | ast.BitXor)
        return joined and (_is_condition(node.left) or _is_condition(node.right))
    if isinstance(node, ast.UnaryOp):
        turned = isinstance(node.op, ast.Invert) and _is_condition(node.operand)
        return turned or isinstance(node.op, ast.Not)
    if isinstance(node, ast.Call):
        return dotted(node.func) in _CONDITIONS
    return isinstance(node, ast.Compare | ast.BoolOp)


def number(node: ast.expr) -> bool | int | float | None:
    """Return the number that is written there, with its sign; None when it is none or too large."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = number(node.operand)
        return None if value is None else -value
    if not isinstance(node, ast.Constant) or not isinstance(node.value, bool | int | float):
        return None
    return node.value if abs(node.value) < MAX_NUMBER or isinstance(node.value, float) else None


def is_constant(node: ast.expr) -> bool:
    """Tell whether it is made of written numbers only."""
    return not any(isinstance(one, ast.Name | ast.Attribute | ast.Call) for one in ast.walk(node))


def swallowed(text: str, node: ast.Compare) -> ast.expr | None:
    """Return the operand of a comparison that ``&``, ``|``, ``^`` or ``~`` took before it, if any.

    In ``a > 1 & b < 2`` Python computes ``1 & b`` first, which nobody means.
    """
    for operand in (node.left, *node.comparators):
        binary = isinstance(operand, ast.BinOp) and isinstance(
            operand.op, ast.BitAnd | ast.BitOr | ast.BitXor
        )
        inverted = isinstance(operand, ast.UnaryOp) and isinstance(operand.op, ast.Invert)
        if (binary or inverted) and not _in_parentheses(text, operand):
            return operand
    return None


def _in_parentheses(text: str, node: ast.expr) -> bool:
    start, stop = _span(text, node)
    return text[:start].rstrip().endswith("(") and text[stop:].lstrip().startswith(")")


def _span(text: str, node: ast.AST) -> tuple[int, int]:
    """Return the characters of a part; Python counts bytes of UTF-8."""
    line = text.encode()
    start, stop = getattr(node, "col_offset", 0), getattr(node, "end_col_offset", len(line))
    return len(line[:start].decode()), len(line[:stop].decode())


def _underlined(text: str, error: SyntaxError) -> str:
    start = min(max((error.offset or 1) - 1, 0), len(text) - 1)
    stop = error.end_offset - 1 if error.end_offset and error.end_offset > start + 1 else start + 1
    return _marked(text, start, min(stop, len(text)))


def _marked(text: str, start: int, stop: int) -> str:
    return f"\n    {text}\n    {' ' * start}{'^' * max(1, stop - start)}"


def _mistake(text: str) -> str:
    """Return advice on what people write by habit."""
    for written, meant in {"&&": "&", "||": "|", "!": "~"}.items():
        if written in text.replace("!=", ""):
            return f"Write {meant} for {written}"
    return "Correct it"


def _depth(tree: ast.AST) -> int:
    """Return how deeply a tree is nested, without recursion."""
    depth, level = 0, [tree]
    while level:
        depth += 1
        level = [child for node in level for child in _children(node)]
    return depth


def _children(node: ast.AST) -> Iterator[ast.AST]:
    return (child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))
