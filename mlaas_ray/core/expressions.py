"""Expressions over branches, such as ``sum(Jet_pt[Jet_pt > 30])``: checked when read, never run as Python."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np

from mlaas_ray.core import syntax
from mlaas_ray.core.columns import Column, Jagged, from_awkward
from mlaas_ray.core.errors import BranchMissingError, FeatureError, nearest
from mlaas_ray.core.functions import CONSTANTS, FUNCTIONS, TAKES, Function
from mlaas_ray.core.indexing import at, picked, sliced
from mlaas_ray.core.operators import BINARY, BOOLEAN, COMPARISONS, UNARY
from mlaas_ray.core.values import CountsDifferError, Value


class Scope(Mapping[str, Value]):
    """What expressions see of some events: their branches, and what was defined of them.

    Args:
        columns: By branch name: columns, or awkward arrays.
        absent: Of these, what stands for branches that the file lacks, with the branches' numpy types.

    Raises:
        FeatureError: When there is none.
    """

    def __init__(self, columns: Mapping[str, Any], absent: Mapping[str, str] | None = None) -> None:
        if not columns:
            raise FeatureError("there are no branches to compute with", "Read at least one")
        self._columns = columns
        self._absent = absent or {}
        self._values: dict[str, Value] = {}
        first = next(iter(columns.values()))
        self.events = len(first)

    def __getitem__(self, name: str) -> Value:
        if name not in self._values:
            values = self._columns[name]
            column: Column = values if isinstance(values, Jagged) else from_awkward(values, name)
            if len(column) != self.events:
                raise FeatureError(
                    f"{name!r} has values for {len(column)} events, other branches for {self.events}",
                    "Read them together",
                )
            value = Value.of(column)
            self._values[name] = value.standing_for(self._absent[name]) if name in self._absent else value
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._columns, *self._values]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def define(self, name: str, value: Value) -> None:
        """Add what an expression gave."""
        if value.kind is None:
            value = Value(np.full(self.events, value.content))
        self._values[name] = value


Compute = Callable[[Scope], Value]


@dataclass(frozen=True)
class Expression:
    """An expression that was checked.

    Attributes:
        text: As it was written, on one line.
        what: Where, for messages: ``define.HT``.
        names: The branches it needs, in the order in which they are named.
        compute: What computes it.
    """

    text: str
    what: str
    names: tuple[str, ...]
    compute: Compute

    @classmethod
    def parse(cls, text: str, what: str = "expression") -> Expression:
        """Read and check an expression; the same one is read once.

        Raises:
            JobError: When it is none, or holds what is not allowed; it shows the place.
        """
        return _parse(text, what)

    def __reduce__(self) -> tuple[Any, ...]:
        return _parse, (self.text, self.what)

    def value(self, scope: Scope) -> Value:
        """Compute it.

        Raises:
            BranchMissingError: For a name that is no branch.
            FeatureError: When the branches do not fit together, or an operation does not fit them.
        """
        with np.errstate(all="ignore"):  # 1/0 is infinite, and statistics count that
            return self.compute(scope)

    def evaluate(self, arrays: Mapping[str, Any]) -> Column:
        """Compute it of columns or awkward arrays by branch name.

        Returns:
            ``(events,)``, or the objects of each event; NaN where there is no value.

        Raises:
            BranchMissingError: For a name that is no branch.
            FeatureError: When the branches do not fit together, or an operation does not fit them.
        """
        scope = Scope(arrays)
        return self.value(scope).column(scope.events)


@lru_cache(maxsize=1024)
def _parse(text: str, what: str) -> Expression:
    line, tree = syntax.read(text, what)
    compiler = _Compiler(line, what)
    compute = compiler.compile(tree)
    return Expression(line, what, tuple(compiler.names), compute)


class _Compiler:
    """Turns a tree into functions of a scope, and refuses every kind of node it has no method for."""

    def __init__(self, text: str, what: str) -> None:
        self.text = text
        self.what = what
        self.names: dict[str, None] = {}

    def compile(self, node: ast.expr) -> Compute:
        match node:
            case ast.Constant():
                return self._constant(node)
            case ast.Name() | ast.Attribute():
                return self._name(node)
            case ast.BinOp():
                return self._arithmetic(node)
            case ast.UnaryOp():
                return self._run(node, UNARY[type(node.op)], node.operand)
            case ast.BoolOp():
                return self._boolean(node)
            case ast.Compare():
                return self._comparison(node)
            case ast.IfExp():
                return self._run(node, FUNCTIONS["where"].call, node.test, node.body, node.orelse)
            case ast.Subscript():
                return self._index(node)
            case ast.Call():
                return self._call(node)
            case _:
                return self._refuse(node, "this cannot be part of an expression", syntax.ALLOWED)

    def _constant(self, node: ast.Constant) -> Compute:
        value = syntax.number(node)
        if value is None:
            if isinstance(node.value, str):
                self._refuse(node, "a text is no number", 'A branch of an odd name is written branch("a b")')
            self._refuse(node, "this is no number that can be computed with", "Use a smaller or real number")
        constant = Value(value)
        return lambda scope: constant

    def _name(self, node: ast.Name | ast.Attribute) -> Compute:
        name = syntax.dotted(node)
        if name is None or "__" in name:
            self._refuse(node, "this is no name of a branch", 'Write branch("…") round an odd name')
        if name in CONSTANTS:
            constant = Value(CONSTANTS[name])
            return lambda scope: constant
        return self._branch(name, node)

    def _branch(self, name: str, node: ast.expr) -> Compute:
        self.names[name] = None

        def look_up(scope: Scope) -> Value:
            if name in scope:
                return scope[name]
            raise BranchMissingError(
                f"{self.what}: there is no branch {name!r}",
                nearest(name, scope) + syntax.picture(self.text, node),
            )

        return look_up

    def _arithmetic(self, node: ast.BinOp) -> Compute:
        if type(node.op) not in BINARY:
            self._refuse(node, "there is no such operator here", syntax.ALLOWED)
        compute = self._run(node, BINARY[type(node.op)], node.left, node.right)
        if not syntax.is_constant(node):
            return compute
        with np.errstate(all="ignore"):
            constant = compute(Scope({"": np.zeros(0)}))
        if not np.isfinite(constant.content):
            self._refuse(node, "this is no finite number", "Write the number")
        return lambda scope: constant

    def _boolean(self, node: ast.BoolOp) -> Compute:
        operator = BOOLEAN[type(node.op)]

        def fold(*values: Value) -> Value:
            result = values[0]
            for value in values[1:]:
                result = operator(result, value)
            return result

        return self._run(node, fold, *node.values)

    def _comparison(self, node: ast.Compare) -> Compute:
        if any(type(operator) not in COMPARISONS for operator in node.ops):
            self._refuse(node, "there is no such comparison here", "Use < <= > >= == !=")
        taken = syntax.swallowed(self.text, node)
        if taken is not None:
            self._refuse(
                taken,
                "this is computed before the comparison",
                "Put each comparison into parentheses: (a > 1) & (b < 2)",
            )
        operators = [COMPARISONS[type(operator)] for operator in node.ops]
        both = BOOLEAN[ast.And]

        def chain(*values: Value) -> Value:
            result = operators[0](values[0], values[1])
            for operator, one, other in zip(operators[1:], values[1:], values[2:], strict=False):
                result = both(result, operator(one, other))
            return result

        return self._run(node, chain, node.left, *node.comparators)

    def _index(self, node: ast.Subscript) -> Compute:
        index = node.slice
        if isinstance(index, ast.Tuple) and len(index.elts) == 2 and _is_colon(index.elts[0]):
            inner = index.elts[1]
            if isinstance(inner, ast.Slice):
                bounds = [self._bound(edge) for edge in (inner.lower, inner.upper, inner.step)]
                if bounds[2] is not None and bounds[2] < 1:
                    self._refuse(inner, "a step is at least 1", "Use sort(x, ascending=False)")
                return self._run(node, lambda x: sliced(x, *bounds), node.value)
            return self._run(node, at, node.value, inner)
        if isinstance(index, ast.Tuple | ast.Slice) or syntax.is_constant(index):
            self._refuse(
                node,
                "this would pick events, not objects",
                "Write x[:, 0] for the first object of each event, x[:, :2] for two, x[x > 30] for some",
            )
        return self._run(node, picked, node.value, index)

    def _bound(self, node: ast.expr | None) -> int | None:
        if node is None:
            return None
        value = syntax.number(node)
        if value is None or isinstance(value, bool | float) or abs(value) >= 2**31:
            self._refuse(node, "a range of objects has whole numbers", "Write x[:, 0:2]")
        return value

    def _call(self, node: ast.Call) -> Compute:
        name = syntax.dotted(node.func)
        if name == "branch":
            return self._quoted(node)
        function = FUNCTIONS.get(name or "")
        if function is None:
            last = (name or "").rpartition(".")[2]
            close = f"Write {last}(…)" if last in FUNCTIONS else nearest(last, [*FUNCTIONS, "branch"])
            shown = repr(name) if name else "of that kind"
            self._refuse(node.func, f"there is no function {shown}", close)
        values, options = self._arguments(node, function)

        if name == "is_missing" and not _is_named(values["x"]):
            self._refuse(
                node, "is_missing asks about a branch, by its name", "Use isnan for what is computed"
            )

        def call(*computed: Value) -> Value:
            return function.call(**dict(zip(values, computed, strict=True)), **options)

        if any(p.kind is p.POSITIONAL_ONLY for p in function.parameters.parameters.values()):
            return self._run(node, function.call, *values.values())
        return self._run(node, call, *values.values())

    def _quoted(self, node: ast.Call) -> Compute:
        argument = node.args[0] if len(node.args) == 1 and not node.keywords else None
        if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
            self._refuse(node, "branch takes one name in quotes", 'Write branch("a b")')
        return self._branch(argument.value, node)

    def _arguments(self, node: ast.Call, function: Function) -> tuple[dict[str, ast.expr], dict[str, Any]]:
        """Sort the arguments of a call into expressions and options."""
        usage = f"It is called {function.signature}"
        keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
        if len(keywords) < len(node.keywords) or any(isinstance(one, ast.Starred) for one in node.args):
            self._refuse(node, "arguments are written one by one", usage)
        try:
            bound = function.parameters.bind(*node.args, **keywords).arguments
        except TypeError as error:
            self._refuse(node, f"{function.name}: {error}", usage)
        kinds = function.parameters.parameters
        values = {name: bound[name] for name in bound if kinds[name].annotation.startswith("Value")}
        if len(values) not in TAKES.get(function.name, (len(values),)):
            self._refuse(
                node, f"{function.name} takes {' or '.join(map(str, TAKES[function.name]))} values", usage
            )
        options = {name: self._option(name, bound[name]) for name in bound if name not in values}
        return values, options

    def _option(self, name: str, node: ast.expr) -> Any:
        value = syntax.number(node)
        if name == "axis" and (value not in (1, -1) or isinstance(value, bool)):
            self._refuse(
                node, "axis is 1: the objects of an event; events are never combined", "Leave it out"
            )
        if name == "ascending" and not isinstance(value, bool):
            self._refuse(node, "ascending is True or False", "Leave it out for True")
        return value

    def _run(self, node: ast.expr, function: Callable[..., Value], *operands: ast.expr) -> Compute:
        """Return what computes the operands, then applies a function; its errors show the place."""
        computes = [self.compile(operand) for operand in operands]

        def run(scope: Scope) -> Value:
            values = [compute(scope) for compute in computes]
            try:
                return function(*values)
            except CountsDifferError as error:
                names = [
                    syntax.part(self.text, operand)
                    for operand, value in zip(operands, values, strict=True)
                    if error.pair and (value is error.pair[0] or value is error.pair[1])
                ]
                message = f"{' and '.join(map(repr, names))}: {error.message}" if names else error.message
                raise self._misfit(node, message, error.remedy) from None
            except FeatureError as error:
                raise self._misfit(node, error.message, error.remedy) from None
            except OverflowError:
                raise self._misfit(node, "a number is too large for this", "Use a smaller one") from None

        return run

    def _misfit(self, node: ast.expr, message: str, remedy: str) -> FeatureError:
        return FeatureError(f"{self.what}: {message}", remedy + syntax.picture(self.text, node))

    def _refuse(self, node: ast.AST, message: str, remedy: str) -> NoReturn:
        syntax.refuse(message, remedy, self.text, node, self.what)


def _is_named(node: ast.expr) -> bool:
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(node, ast.Name | ast.Attribute) or (
        isinstance(called, ast.Name) and called.id == "branch"
    )


def _is_colon(node: ast.expr) -> bool:
    return isinstance(node, ast.Slice) and node.lower is None and node.upper is None and node.step is None
