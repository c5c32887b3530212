from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import vector
from hypothesis import given, settings
from hypothesis import strategies as st

from mlaas_ray.core.columns import Jagged, to_awkward
from mlaas_ray.core.errors import BranchMissingError, FeatureError, JobError
from mlaas_ray.core.expressions import Expression, Scope
from mlaas_ray.core.functions import CONSTANTS, FUNCTIONS

NAN = math.nan

# Three events: the usual, one without any object, one with a NaN.
ARRAYS: dict[str, Any] = {
    "Jet_pt": ak.values_astype(ak.Array([[50.0, 30.0, 20.0], [], [70.0]]), np.float32),
    "Jet_eta": ak.Array([[1.0, -3.0, 0.5], [], [NAN]]),
    "Jet_phi": ak.Array([[3.0, -3.0, 0.5], [], [2.0]]),
    "Jet_mass": ak.Array([[5.0, 4.0, 3.0], [], [7.0]]),
    "Jet_id": ak.values_astype(ak.Array([[1, 2, 6], [], [4]]), np.uint8),
    "Jet_tight": ak.Array([[True, False, True], [], [False]]),
    "Muon_pt": ak.Array([[5.0], [6.0], []]),
    "Muon_jetIdx": ak.Array([[2], [-1], []]),
    "Jet_genIdx": ak.Array([[0, 3, 1], [], [-1]]),
    "MET_pt": np.array([10.0, 0.0, 35.0], np.float32),
    "nJet": np.array([3, 0, 1], np.uint32),
    "run": np.array([1, 2, 2**63 - 1], np.uint64),
    "Info.number": np.array([7, 8, 9]),
    "odd name": np.array([1.0, NAN, 3.0]),
    "vertex": np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]),
}


def evaluate(text: str, arrays: Any = None) -> list[Any]:
    column = Expression.parse(text).evaluate(ARRAYS if arrays is None else arrays)
    return to_awkward(column).to_list()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MET_pt * 2 - 1", [19, -1, 69]),
        ("nJet - 2", [1, -2, -1]),  # of unsigned numbers too
        ("Jet_id * 100", [[100, 200, 600], [], [400]]),  # beyond 8 bits
        ("nJet ** 2 / 3", [3, 0, 1 / 3]),
        ("nJet // 2 + nJet % 2", [2, 0, 1]),
        ("run % 10", [1, 2, 7]),
        ("1 / nJet", [1 / 3, math.inf, 1]),
        ("(nJet - 1) // nJet", [0, -math.inf, 0]),  # numpy's own whole numbers would say 0
        ("-MET_pt", [-10, -0.0, -35]),
        ("1 < nJet < 4", [True, False, False]),
        ("(nJet > 0) & ~(MET_pt > 20)", [True, False, False]),
        ("nJet > 0 and not MET_pt > 20 or nJet == 0", [True, True, False]),
        ("nJet and run", [True, False, True]),
        ("nJet & 2", [2, 0, 0]),
        ("nJet & (MET_pt > 5)", [True, False, True]),
        ("(nJet & 1) == 1", [True, False, True]),
        ("(nJet > 0) ^ (MET_pt > 20)", [True, False, False]),
        ('branch("odd name") ** 0', [1, NAN, 1]),  # numpy's own would be 1
        ('1 ** branch("odd name")', [1, NAN, 1]),
        ("1 if nJet > 1 else MET_pt", [1, 0, 35]),
        ("where(Jet_pt > 25, 1, 0)", [[1, 1, 0], [], [1]]),
        ("clip(MET_pt, 5, 20)", [10, 5, 20]),
        ("round(2 * sin(pi / 2) + e)", [5, 5, 5]),
        ("Jet_pt / MET_pt", [[5, 3, 2], [], [2]]),
        ("Info.number + 1", [8, 9, 10]),
        ('branch("odd name") * branch("MET_pt")', [10, NAN, 105]),
        ("vertex[:, 2] + sum(vertex)", [9, 21, 33]),
        ("sum(vertex * MET_pt)", [60, 0, 840]),
    ],
)
def test_numbers_of_an_event(text: str, expected: list[Any]) -> None:
    np.testing.assert_allclose(ak.flatten(evaluate(text), None), ak.flatten(expected, None), rtol=1e-6)
    assert ak.Array(evaluate(text)).ndim == ak.Array(expected).ndim


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Jet_pt[:, 0]", [50, NAN, 70]),
        ("Jet_pt[:, -1]", [20, NAN, 70]),
        ("Jet_id[:, 1] & 2", [2, NAN, NAN]),
        ("Jet_pt[:, nJet - 1]", [20, NAN, 70]),
        ("Jet_pt[:, :2]", [[50, 30], [], [70]]),
        ("Jet_pt[:, 1:]", [[30, 20], [], []]),
        ("Jet_pt[:, ::2]", [[50, 20], [], [70]]),
        ("Jet_pt[:, -2:-1]", [[30], [], []]),
        ("Jet_pt[abs(Jet_eta) < 2]", [[50, 20], [], []]),  # a comparison with NaN is false
        ("Jet_pt[Jet_tight]", [[50, 20], [], []]),
        ("Jet_pt[argsort(Jet_eta)]", [[30, 20, 50], [], [70]]),
        ("Jet_pt[Muon_jetIdx]", [[20], [NAN], []]),  # -1 is no jet
        ("Jet_pt[Jet_genIdx]", [[50, NAN, 30], [], [NAN]]),
        ("Jet_eta[:, argmax(Jet_pt)]", [1, NAN, NAN]),
        ("leading(Jet_eta, -Jet_pt)", [0.5, NAN, NAN]),
        ("first(Jet_pt)", [50, NAN, 70]),
    ],
)
def test_objects_are_picked_and_what_is_not_there_is_nan(text: str, expected: list[Any]) -> None:
    found = evaluate(text)
    np.testing.assert_array_equal(ak.flatten(found, None), ak.flatten(expected, None))
    if isinstance(expected[0], list):
        assert [len(event) for event in found] == [len(event) for event in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Jet_pt[:, 0] > 0", [True, False, True]),
        ("Jet_pt[:, 0] != 0", [True, False, True]),
        ("Jet_id[:, 0] != 0", [True, False, True]),
        ("Jet_tight[:, 0] == False", [False, False, True]),
        ("not Jet_tight[:, 0]", [False, True, True]),
        ("Jet_tight[:, 0] | (nJet == 0)", [True, True, False]),
        ("any(Jet_eta > 0)", [True, False, False]),
        ("all(Jet_eta > -9)", [True, True, False]),
        ("isnan(Jet_id[:, 0])", [False, True, False]),
        ("isfinite(first(Jet_eta))", [True, False, False]),
    ],
)
def test_no_comparison_is_true_of_what_is_missing(text: str, expected: list[bool]) -> None:
    assert evaluate(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sum(Jet_eta)", [-1.5, 0, 0]),
        ("sum(Jet_id)", [9, 0, 4]),
        ("sum(Jet_pt[Muon_jetIdx])", [20, 0, 0]),
        ("prod(Jet_mass)", [60, 1, 7]),
        ("min(Jet_eta)", [-3, NAN, NAN]),
        ("max(Jet_id)", [6, NAN, 4]),
        ("mean(Jet_eta)", [-0.5, NAN, NAN]),
        ("std(Jet_pt, axis=-1)", [np.std([50, 30, 20]), NAN, 0]),
        ("num(Jet_eta)", [3, 0, 1]),
        ("count(Jet_eta)", [3, 0, 0]),
        ("argmin(Jet_eta)", [1, NAN, NAN]),
        ("nan_to_num(max(Jet_eta), -1)", [1, -1, -1]),
        ("sum(Jet_pt > 25)", [2, 0, 1]),
    ],
)
def test_reductions_are_within_an_event_and_leave_out_what_is_missing(
    text: str, expected: list[float]
) -> None:
    np.testing.assert_allclose(evaluate(text), expected)


def test_sorting_puts_what_is_missing_last_and_keeps_the_order_of_equals() -> None:
    arrays = {"x": ak.Array([[2.0, NAN, -0.0, 3.0, 0.0, 2.0]]), "i": ak.Array([[0, 1, 2, 3, 4, 5]])}
    for dtype in (np.float32, np.float64):
        typed = arrays | {"x": ak.values_astype(arrays["x"], dtype)}
        assert evaluate("i[argsort(x)]", typed) == [[2, 4, 0, 5, 3, 1]]
        assert evaluate("i[argsort(x, ascending=False)]", typed) == [[3, 0, 5, 2, 4, 1]]
        np.testing.assert_array_equal(evaluate("sort(x)", typed), [[0, 0, 2, 2, 3, NAN]])
    assert evaluate("sort(i, ascending=False)", arrays) == [[5, 4, 3, 2, 1, 0]]


def test_four_vectors_agree_with_their_formulas() -> None:
    pt, eta, phi, mass = (np.array(ARRAYS[f"Jet_{name}"][0], float) for name in ("pt", "eta", "phi", "mass"))
    momentum = np.array([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])
    energy = np.sqrt(mass**2 + (momentum**2).sum(axis=0))

    def invariant(chosen: slice) -> float:
        return math.sqrt(energy[chosen].sum() ** 2 - (momentum[:, chosen].sum(axis=1) ** 2).sum())

    arrays = {name: array[:2] for name, array in ARRAYS.items()}
    jets = "Jet_pt, Jet_eta, Jet_phi, Jet_mass"
    first, second = (jets.replace(",", f"[:, {i}],") + f"[:, {i}]" for i in (0, 1))
    np.testing.assert_allclose(evaluate(f"invariant_mass({jets})", arrays), [invariant(slice(None)), NAN])
    np.testing.assert_allclose(
        evaluate(f"invariant_mass({first}, {second})", arrays), [invariant(slice(2)), NAN]
    )
    np.testing.assert_allclose(
        evaluate("delta_phi(Jet_phi[:, 0], Jet_phi[:, 1])", arrays), [6 - 2 * math.pi, NAN]
    )
    np.testing.assert_allclose(
        evaluate("delta_r(Jet_eta, Jet_phi, Jet_eta[:, 0], Jet_phi[:, 0])", arrays)[0],
        np.hypot(eta - eta[0], (phi - phi[0] + math.pi) % (2 * math.pi) - math.pi),
    )


# Events of no, one, two, three and four objects, and one of two of which one has no value.
FEW = {
    name: ak.Array([(values + values)[:n] for n in range(5)] + [[values[0], missing]])
    for name, values, missing in (
        ("pt", [50.0, 40.0], NAN),
        ("eta", [1.0, -0.5], 2.0),
        ("phi", [0.3, -3.0], 1.0),
        ("mass", [5.0, 3.0], 0.1),
        ("id", [3, 1], 1),
        ("tight", [True, False], True),
    )
}


def mass_by_vector(event: dict[str, list[float]], least: int) -> float:
    """Return the mass of an event's objects together by vector; NaN of fewer than ``least``."""
    objects = [vector.obj(**dict(zip(event, one, strict=True))) for one in zip(*event.values(), strict=True)]
    return NAN if len(objects) < least else sum(objects[1:], objects[0]).mass


@pytest.mark.parametrize(
    ("range_", "chosen", "least"),
    [
        ("", slice(None), 2),
        ("[:, :2]", slice(2), 2),
        ("[:, 1:3]", slice(1, 3), 2),
        ("[:, :4]", slice(4), 4),
        ("[:, -3:]", slice(-3, None), 3),
        ("[:, :4:2]", slice(0, 4, 2), 2),
        ("[:, 1:]", slice(1, None), 2),
    ],
)
def test_a_mass_of_fewer_objects_than_were_asked_for_is_no_value(
    range_: str, chosen: slice, least: int
) -> None:
    names = ("pt", "eta", "phi", "mass")
    events = [{name: FEW[name][i].to_list()[chosen] for name in names} for i in range(len(FEW["pt"]))]
    expected = [mass_by_vector(event, least) for event in events]
    assert np.isfinite(expected).any()
    pt, eta, phi, mass = (f"{name}{range_}" for name in ("pt", "eta", "phi", "mass"))
    for text in (
        f"invariant_mass({pt}, {eta}, {phi}, {mass})",
        f"invariant_mass(1.0 * {pt}, abs({eta}) * sign({eta}), {phi}, where({pt} > 0, {mass}, {mass}))",
    ):
        np.testing.assert_allclose(evaluate(text, FEW), expected, rtol=1e-9)


def test_a_mass_of_objects_in_an_order_or_under_a_condition_is_of_at_least_two() -> None:
    best = "[argsort(pt, ascending=False)[:, :3]]"
    pt, eta, phi, mass = (f"{name}{best}" for name in ("pt", "eta", "phi", "mass"))
    found = evaluate(f"invariant_mass({pt}, {eta}, {phi}, {mass})", FEW)
    assert np.isnan(found).tolist() == [True, True, True, False, False, True]
    pt, eta, phi, mass = (f"{name}[id > 2]" for name in ("pt", "eta", "phi", "mass"))
    found = evaluate(f"invariant_mass({pt}, {eta}, {phi}, {mass})", FEW)
    assert np.isnan(found).tolist() == [True, True, True, False, False, True]
    # one was asked for, and is there
    one = evaluate("invariant_mass(pt[:, :1], eta[:, :1], phi[:, :1], mass[:, :1])", FEW)
    np.testing.assert_allclose(one, [NAN, 5, 5, 5, 5, 5])


@pytest.mark.parametrize(
    "text",
    [
        *(f"{name}[:, 1]" for name in FEW),
        "first(pt[:, 1:])",
        "pt[:, -2]",
        "pt[:, 1] ** 0",
        "id[:, 1] ** 0",
        "sign(id[:, 1])",
        "-tight[:, 1]",
        "min(pt[:, 1:])",
        "max(id[:, 1:])",
        "mean(tight[:, 1:])",
        "std(pt[:, 1:])",
        "var(id[:, 1:])",
        "leading(id[:, 1:], pt[:, 1:])",
        "id[:, argmax(pt[:, 1:])]",
        "delta_phi(phi[:, 0], phi[:, 1])",
        "delta_r(eta[:, 0], phi[:, 0], eta[:, 1], phi[:, 1])",
        "invariant_mass("
        + ", ".join(f"{n}[:, {i}]" for i in (0, 1) for n in ("pt", "eta", "phi", "mass"))
        + ")",
    ],
)
def test_what_needs_a_second_object_is_no_value_without_one(text: str) -> None:
    there = np.isfinite(np.array(evaluate(text, FEW), float))
    assert there.tolist()[:5] == [False, False, True, True, True]


@pytest.mark.parametrize("name", ["pt", "id", "tight"])
@pytest.mark.parametrize("function", ["sum", "prod", "min", "max", "mean", "var", "std", "any", "all"])
def test_reductions_of_few_objects_are_those_of_awkward(function: str, name: str) -> None:
    for array in (FEW[name], ak.Array(np.array([[1.0, 4.0], [2.0, 2.0]]))):
        # awkward knows a value that is not there as None; a condition on it is false
        lacking = ak.nan_to_num(array) if function in ("any", "all") else ak.nan_to_none(array)
        expected = ak.fill_none(getattr(ak, function)(lacking, axis=1), NAN)
        np.testing.assert_allclose(evaluate(f"{function}(x)", {"x": array}), expected)


# What MLaaS4HEP's preproc.json can say, said here.
def test_the_preprocessing_of_mlaas4hep_can_be_written() -> None:
    assert evaluate("0 <= nJet <= 2") == [False, True, True]
    assert evaluate("any(log(Jet_pt) < 3.2)") == [True, False, False]
    assert evaluate("all(Jet_pt > 25)") == [False, True, True]
    assert evaluate("(1 <= nJet <= 16) & any(Jet_id != 4)") == [True, False, False]


OBJECTS = st.lists(
    st.lists(
        st.tuples(
            st.floats(-1e3, 1e3, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3),
            st.integers(-5, 5),
            st.booleans(),
        ),
        max_size=5,
    ),
    min_size=1,
    max_size=8,
)
ORACLES: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "x * 2 + f": lambda x, i, b, f: x * 2 + f,
    "(x > 0) & b | (i == f)": lambda x, i, b, f: (x > 0) & b | (i == f),
    "sqrt(abs(x)) / (1 + hypot(i, f))": lambda x, i, b, f: np.sqrt(abs(x)) / (1 + np.hypot(i, f)),
    "sum(x)": lambda x, i, b, f: ak.sum(ak.values_astype(x, np.float64), axis=1),
    "max(x)": lambda x, i, b, f: ak.max(x, axis=1),
    "min(i)": lambda x, i, b, f: ak.min(i, axis=1),
    "mean(x[b])": lambda x, i, b, f: ak.mean(ak.values_astype(x[b], np.float64), axis=1),
    "std(x)": lambda x, i, b, f: ak.std(ak.values_astype(x, np.float64), axis=1),
    "any(b) & ~all(x > f)": lambda x, i, b, f: ak.any(b, axis=1) & ~ak.all(x > f, axis=1),
    "argmax(x)": lambda x, i, b, f: ak.argmax(x, axis=1),
    "x[i > 0][:, :2]": lambda x, i, b, f: x[i > 0][:, :2],
    "x[argsort(i, ascending=False)]": lambda x, i, b, f: x[ak.argsort(i, axis=1, ascending=False)],
    "sort(x)": lambda x, i, b, f: ak.sort(x, axis=1),
    "x[:, 1]": lambda x, i, b, f: ak.pad_none(x, 2, axis=1)[:, 1],
    "where(b, x, f)": lambda x, i, b, f: ak.where(b, x, ak.broadcast_arrays(x, f)[1]),
}


@settings(max_examples=60)
@given(objects=OBJECTS)
def test_any_events_give_what_awkward_gives(objects: list[list[tuple[float, int, bool]]]) -> None:
    counts = [len(event) for event in objects]
    flat = [one for event in objects for one in event]
    x, i, b = (
        ak.unflatten(np.array([one[field] for one in flat], dtype), counts)
        for field, dtype in enumerate((np.float32, np.int32, bool))
    )
    f = np.arange(len(objects)) - 2
    # as a reader may give it
    content = np.array([one[0] for one in flat], ">f4")
    column = Jagged(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), content)
    arrays = {"x": column, "i": i, "b": b, "f": f}
    for text, oracle in ORACLES.items():
        found, expected = evaluate(text, arrays), ak.Array(oracle(x, i, b, f))
        expected = ak.fill_none(expected, NAN)
        assert ak.num(ak.Array(found), axis=0) == ak.num(expected, axis=0)
        if expected.ndim == 2:
            assert [len(event) for event in found] == ak.num(expected, axis=1).to_list()
        np.testing.assert_allclose(
            ak.to_numpy(ak.flatten(found, None)),
            ak.to_numpy(ak.flatten(expected, None)),
            rtol=1e-5,
            atol=1e-9,
        )


def test_the_names_are_the_branches_and_nothing_else() -> None:
    expression = Expression.parse('sum(Jet_pt[a.b > pi]) + (MET if branch("odd, name") else Jet_pt[:, 0])')
    assert sorted(expression.names) == ["Jet_pt", "MET", "a.b", "odd, name"]
    again = pickle.loads(pickle.dumps(Expression.parse("sum(Jet_pt)", "define.HT")))
    assert (again.what, again.evaluate(ARRAYS).tolist()) == ("define.HT", [100, 0, 70])


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__.__bases__",
        "Jet_pt.__class__",
        "Jet_pt[0].__class__",
        "sum.__globals__",
        "__builtins__",
        "eval('1')",
        "getattr(Jet_pt, 'x')",
        "open('/etc/passwd')",
        "lambda: 1",
        "(lambda: 1)()",
        "[x for x in Jet_pt]",
        "{1: 2}",
        "{1}",
        "[1, 2]",
        "(1, 2)",
        "(x := 1)",
        "f'{Jet_pt}'",
        "'text'",
        "b'text'",
        "None",
        "...",
        "1j",
        "await x",
        "yield",
        "x = 1",
        "import os",
        "x; y",
        "sum(*Jet_pt)",
        "sum(**Jet_pt)",
        "sum(Jet_pt, out=MET_pt)",
        "sum(Jet_pt)(1)",
        "sum(Jet_pt).real",
        "np.sqrt(MET_pt)",
        "branch(MET_pt)",
        "nJet @ nJet",
        "nJet << 60",
        "nJet is 1",
        "nJet in Jet_pt",
        "9**9**9",
        "10**10000",
        "9999999999**99999999*0",
        "1" * 400,
        "1 / 0",
        "-" * 3000 + "x",
        "(" * 300 + "x" + ")" * 300,
        "x" + "+x" * 150,
        "x[" * 120 + "x" + "]" * 120,
        "x" * 5000,
        "x\0y",
        "",
        "  \n ",
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_expression_is_refused_when_it_is_read(text: str) -> None:
    with pytest.raises(JobError, match=r"^define\.x: "):
        Expression.parse(text, "define.x")


def test_the_bits_of_unsigned_numbers_are_all_there() -> None:
    words = np.array([1, 2**63 + 1, 2**64 - 1], np.uint64)
    for content in (words, words[:1]):  # whatever other events hold
        assert evaluate("w & 3", {"w": content}) == [1, 1, 3][: len(content)]
        assert (
            evaluate("(w & 9223372036854775808) != 0", {"w": content}) == [False, True, True][: len(content)]
        )
        assert evaluate("(~w & 1) == 0", {"w": content}) == [True] * len(content)
        assert evaluate("w % 4 - 2", {"w": content}) == [-1, -1, 1][: len(content)]
        assert evaluate("w // 2**62", {"w": content}) == [0, 2, 3][: len(content)]


def test_what_a_file_lacks_is_missing_keeps_its_type_and_can_be_told_from_what_it_holds() -> None:
    nothing = np.full(2, np.nan, np.float32)
    columns = {
        **{"flag": np.zeros(2, bool), "word": nothing, "x": nothing, "there": np.array([1, 2])},
        **{"sent": np.array([1, np.nan]), "jets": Jagged(np.array([0, 1, 1]), np.array([np.nan]))},
        "tags": Jagged(np.array([0, 1, 1]), np.array([5])),
    }
    absent = {"flag": "bool", "word": "uint32", "x": "float64", "tags": "int16"}

    def of(text: str) -> list[Any]:
        scope = Scope(columns, absent)
        return to_awkward(Expression.parse(text).value(scope).column(scope.events)).tolist()

    for name in ("flag", "word", "x", "tags", 'branch("x")'):
        assert of(f"is_missing({name})") == [True, True]
    assert of("is_missing(there)") == [False, False]
    assert of("is_missing(sent)") == [False, True]
    assert of("is_missing(jets)") == [True, False]
    assert of("flag | ~flag") == [True, True]
    assert np.isnan(of("word & there")).all()
    assert np.isnan(of("~word")).all()
    assert of("(word & 1) == 0") == [False, False]
    assert of("word or there > 1") == [False, True]
    assert np.isnan(of("x + 1")).all()
    assert of("is_missing(flag) & (there == 1)") == [True, False]


def test_constants_are_bounded_also_inside() -> None:
    assert evaluate("MET_pt * 2**10", {"MET_pt": np.ones(1)}) == [1024]
    assert evaluate("MET_pt * 0 + 2**62 * 4", {"MET_pt": np.ones(1)}) == [2.0**64]
    with pytest.raises(JobError, match="no finite number"):
        Expression.parse("Jet_pt[:, 9**999]")


@pytest.mark.parametrize(
    "text",
    [
        "nJet > 1 & MET_pt < 2",
        "(nJet > 1) & MET_pt < 2",
        "nJet > 0 | nJet",
        "~nJet > 2",
        "sum(Jet_pt > 1 & nJet)",
    ],
)
def test_the_common_mistake_of_precedence_is_explained(text: str) -> None:
    with pytest.raises(JobError, match=r"computed before the comparison.*\(a > 1\) & \(b < 2\)"):
        Expression.parse(text)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (
            "2 * summ(Jet_pt)",
            JobError,
            "no function 'summ'. Did you mean 'sum'?\n    2 * summ(Jet_pt)\n        ^^^^",
        ),
        ("np.sqrt(nJet)", JobError, "no function 'np.sqrt'. Write sqrt(…)"),
        ("nJet && nJet", JobError, "Write & for &&\n    nJet && nJet\n          ^"),
        ("sum()", JobError, "missing a required argument: 'x'. It is called sum(x, axis=1)"),
        ("sum(Jet_pt, axis=0)", JobError, "events are never combined"),
        ("sort(Jet_pt, ascending=2)", JobError, "ascending is True or False"),
        ("invariant_mass(nJet, nJet, nJet, nJet, nJet)", JobError, "takes 4 or 8 values"),
        ("Jet_pt[0]", JobError, "would pick events, not objects. Write x[:, 0]"),
        ("Jet_pt[1:]", JobError, "would pick events"),
        ("Jet_pt[:, ::-1]", JobError, "a step is at least 1"),
        ("1 + Jet_Pt", BranchMissingError, "no branch 'Jet_Pt'. Did you mean 'Jet_pt'"),
        ("é + Jet_Pt", BranchMissingError, "no branch 'é'"),
        (
            "Jet_pt + 1 + Muon_pt",
            FeatureError,
            "'Jet_pt + 1' and 'Muon_pt': they have different numbers of objects, such as 3 and 1",
        ),
        ("Jet_pt[Muon_pt > 3]", FeatureError, "'Jet_pt' and 'Muon_pt > 3': they have different"),
        ("sum(MET_pt)", FeatureError, "one value an event, where a list of objects is due"),
        ("Jet_pt[nJet > 1]", FeatureError, "conditions on events belong into select"),
        ("Jet_pt[Jet_pt]", FeatureError, "an index is a condition or whole numbers"),
        ("Jet_pt[:, MET_pt]", FeatureError, "one whole number an event"),
        ("MET_pt ^ 2", FeatureError, "Use ** for a power: x**2"),
        ("nJet ^ 2", FeatureError, "Use ** for a power"),
        ("Jet_id ^ Jet_tight", FeatureError, "Use ** for a power"),
        ("MET_pt & 2", FeatureError, "Compare first"),
        ("is_missing(nJet + 1)", JobError, "asks about a branch, by its name. Use isnan"),
        ("Jet_pt[:, MET_pt > 5]", FeatureError, "one whole number an event"),
        ("leading(Jet_pt, MET_pt)", FeatureError, "a list of objects is due"),
        ("~MET_pt", FeatureError, "Compare first"),
        ("invariant_mass(nJet, nJet, nJet, nJet)", FeatureError, "needs branches with objects"),
    ],
    ids=lambda case: str(case)[:40],
)
def test_an_error_says_what_is_wrong_shows_where_and_what_to_write(
    text: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as caught:
        Expression.parse(text).evaluate(ARRAYS)
    assert said in str(caught.value)
    assert f"\n    {text}\n" in str(caught.value)


@pytest.mark.parametrize(
    "values", [ak.Array(["a", "b", "c"]), ak.Array([[[1.0]], [], []]), ak.Array([{"x": 1}] * 3), np.ones(2)]
)
def test_what_is_not_numeric_or_has_other_events_is_refused(values: Any) -> None:
    with pytest.raises(FeatureError, match="'bad'"):
        Expression.parse("nJet + bad").evaluate(ARRAYS | {"bad": values})


def test_no_events_give_none() -> None:
    arrays = {name: array[:0] for name, array in ARRAYS.items()}
    for text in ("sum(Jet_pt)", "Jet_pt[:, 0]", "nJet > 1", "std(Jet_pt)", "first(Jet_id) & 2", "2"):
        assert evaluate(text, arrays) == []
    jets = "Jet_pt, Jet_eta, Jet_phi, Jet_mass"
    for text in (
        "Jet_pt[Jet_eta > 1]",
        "sort(Jet_pt)",
        "Jet_pt[argsort(Jet_eta)]",
        f"invariant_mass({jets})",
    ):
        assert evaluate(text, arrays) == []


def test_the_documentation_lists_every_function_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "streaming" / "expressions.md").read_text()
    for function in FUNCTIONS.values():
        assert f"| `{function.signature}` | {function.summary} |" in page
    for name in CONSTANTS:
        assert f"`{name}`" in page
