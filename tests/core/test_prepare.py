from __future__ import annotations

import math
from typing import Any

import awkward as ak
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlaas_ray.core.columns import Columns, Jagged, Kind, from_awkward, to_awkward
from mlaas_ray.core.errors import BranchMissingError, FeatureError, JobError
from mlaas_ray.core.features import Feature, FeatureSpec, ObjectRule
from mlaas_ray.core.inputs import Inputs, ObjectSettings
from mlaas_ray.core.prepare import check, check_syntax, computed, needed_branches, prepare, rule_of

NAN = math.nan
KINDS: dict[str, Kind] = {
    "MET_pt": "flat",
    "nJet": "flat",
    "Jet_pt": "jagged",
    "Jet_eta": "jagged",
    "Jet_btag": "jagged",
    "Muon_pt": "jagged",
    "cov": "fixed",
}


def events() -> dict[str, Any]:
    arrays = {
        "MET_pt": np.array([10.0, 20.0, 30.0], ">f4"),
        "nJet": np.array([3, 0, 2], np.uint32),
        "Jet_pt": ak.Array([[20.0, 50.0, 30.0], [], [40.0, 60.0]]),
        "Jet_eta": ak.Array([[0.0, 1.0, NAN], [], [3.0, -1.0]]),
        "Jet_btag": ak.Array([[1, 2, 3], [], [4, 5]]),
        "Muon_pt": ak.Array([[5.0], [6.0, 7.0], []]),
        "cov": np.arange(6.0).reshape(3, 2),
    }
    return {name: from_awkward(array, name) for name, array in arrays.items()}


def lists(columns: Columns) -> dict[str, Any]:
    return {name: to_awkward(column).to_list() for name, column in columns.items()}


def objects(**rules: dict[str, Any]) -> Inputs:
    return Inputs(objects={name: ObjectSettings(**rule) for name, rule in rules.items()})


def test_without_rules_the_columns_are_left_alone() -> None:
    columns = events()
    assert prepare(columns, objects(Jet={"length": 2})) == (columns, None)
    assert prepare(columns, objects(Jet={"length": 2}))[0] is columns


def test_definitions_use_those_before_them_and_selections_use_both() -> None:
    rules = Inputs(
        define={"HT": "sum(Jet_pt)", "rest": "HT - Jet_pt", "unused": "1"}, select="(HT > 50) & (nJet < 3)"
    )
    prepared, keep = prepare(events(), rules, ["HT", "rest", "MET_pt"])
    assert lists(prepared) == {
        "HT": [100, 0, 100],
        "rest": [[80, 50, 70], [], [60, 40]],
        "MET_pt": [10, 20, 30],
    }
    assert keep is not None
    assert keep.tolist() == [False, False, True]
    everything, _ = prepare(events(), rules)
    assert everything.keys() == KINDS.keys() | rules.define.keys()
    assert prepare(events(), rules, ["HT"], select=False)[1] is None


def test_where_and_order_are_shared_by_a_collection_and_seen_by_the_model_only() -> None:
    rules = Inputs(
        define={"HT": "sum(Jet_pt)", "Jet_half": "Jet_pt / 2"},
        objects={"Jet": ObjectSettings(where="abs(Jet_eta) < 2", sort_by="Jet_pt")},
    )
    prepared, keep = prepare(events(), rules)
    assert keep is None
    assert lists(prepared) | {"cov": 0} == {
        "MET_pt": [10, 20, 30],
        "nJet": [3, 0, 2],
        "Jet_pt": [[50, 20], [], [60]],
        "Jet_eta": [[1, 0], [], [-1]],
        "Jet_btag": [[2, 1], [], [5]],
        "Jet_half": [[25, 10], [], [30]],
        "Muon_pt": [[5], [6, 7], []],
        "HT": [100, 0, 100],
        "cov": 0,
    }


def test_a_rule_for_a_branch_overrules_that_of_its_collection() -> None:
    rules = objects(
        Jet={"sort_by": "Jet_pt"}, Jet_btag={"sort_by": "Jet_btag", "where": "MET_pt < 25"}, Jet_eta={}
    )
    prepared = lists(prepare(events(), rules)[0])
    assert prepared["Jet_pt"] == [[50, 30, 20], [], [60, 40]]
    assert prepared["Jet_btag"] == [[3, 2, 1], [], []]
    np.testing.assert_array_equal(ak.flatten(prepared["Jet_eta"]), [0, 1, NAN, 3, -1])
    assert rule_of("Jet_btag_x", ["Jet", "Jet_btag", "J"]) == "Jet_btag"
    assert rule_of("Jets", ["Jet"]) is None


def test_values_of_the_event_and_constants_count_for_each_object() -> None:
    assert lists(prepare(events(), objects(Jet={"where": "nJet > 2"}))[0])["Jet_pt"] == [[20, 50, 30], [], []]
    assert lists(prepare(events(), objects(Jet={"where": "False"}))[0])["Jet_pt"] == [[], [], []]
    columns = events()
    assert prepare(columns, objects(Jet={"where": "1", "sort_by": "nJet"}))[0]["Jet_pt"] is columns["Jet_pt"]


def test_objects_that_are_in_order_already_are_not_copied() -> None:
    offsets = np.array([0, 3, 3, 6])
    columns = {"Jet_pt": Jagged(offsets, np.array([5, 4, NAN, 9, 9, 1], np.float32))}
    assert prepare(columns, objects(Jet={"sort_by": "Jet_pt"}))[0]["Jet_pt"] is columns["Jet_pt"]


def test_a_selection_of_a_number_takes_what_is_not_zero_and_there() -> None:
    for select, expected in {
        "nJet": [True, False, True],
        "Jet_pt[:, 2]": [True, False, False],
        "True": [True, True, True],
    }.items():
        keep = prepare(events(), Inputs(select=select), ["MET_pt"])[1]
        assert keep is not None
        assert keep.tolist() == expected


def test_a_branch_without_any_object_is_left_as_it_is() -> None:
    columns = events() | {
        "Jet_btag": Jagged(np.zeros(4, np.int64), np.zeros(0))
    }  # as of a file that lacks it
    prepared = lists(prepare(columns, objects(Jet={"where": "Jet_pt > 25"}))[0])
    assert prepared["Jet_pt"] == [[50, 30], [], [40, 60]]
    assert prepared["Jet_btag"] == [[], [], []]


NUMBERS = st.one_of(st.just(NAN), st.integers(-3, 3).map(float))
MANY = st.lists(
    st.tuples(NUMBERS, st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(0, 9)), max_size=5)),
    min_size=1,
    max_size=10,
)


@given(sent=MANY, ascending=st.booleans(), dtype=st.sampled_from(["f4", ">f4", "f8"]))
def test_any_events_are_prepared_as_one_would_do_it_event_by_event(
    sent: list[Any], ascending: bool, dtype: str
) -> None:
    offsets = np.concatenate([[0], np.cumsum([len(one) for _, one in sent])]).astype(np.int64)
    flat = [one for _, event in sent for one in event]
    columns: dict[str, Any] = {
        f"O_{name}": Jagged(offsets, np.array([one[k] for one in flat], dtype if name != "i" else "i4"))
        for k, name in enumerate("xyi")
    }
    columns["f"] = np.array([f for f, _ in sent])
    rules = Inputs(
        define={"best": "max(O_x[O_y > f])"},
        select="(best > 0) | (num(O_x) < 2)",
        objects={
            "O": ObjectSettings(where="(O_x > -2) & (O_y != 1)", sort_by="O_y - f", ascending=ascending)
        },
    )
    prepared, keep = prepare(columns, rules, ["O_i", "best"])
    assert keep is not None
    for index, (f, event) in enumerate(sent):
        best = max((x for x, y, _ in event if y > f and not math.isnan(x)), default=NAN)
        np.testing.assert_array_equal(prepared["best"][index], best)
        assert keep[index] == (best > 0 or len(event) < 2)
        kept = [one for one in event if one[0] > -2 and one[1] != 1 and not math.isnan(one[1])]
        kept.sort(key=lambda one: (math.isnan(one[1] - f), (one[1] - f) * (1 if ascending else -1)))
        if math.isnan(f):
            kept = [one for one in event if one in kept]
        assert to_awkward(prepared["O_i"])[index].to_list() == [one[2] for one in kept]


def test_only_what_is_needed_is_read() -> None:
    rules = Inputs(
        define={"a": "sum(Jet_pt)", "b": "a + MET_pt", "c": "Muon_pt[:, 0]"},
        select="b > nJet",
        objects={
            "Jet": ObjectSettings(where="Jet_eta < 2", sort_by="Jet_btag"),
            "Tau": ObjectSettings(where="Tau_x"),
        },
    )
    assert needed_branches(rules, ["c"]) == {"Muon_pt", "Jet_pt", "MET_pt", "nJet"}
    assert needed_branches(rules, ["c"], select=False) == {"Muon_pt"}
    assert needed_branches(rules, ["Jet_phi"], select=False) == {"Jet_phi", "Jet_eta", "Jet_btag"}
    spec = FeatureSpec.of(
        [Feature(name="b", kind="flat"), Feature(name="Jet_pt", kind="jagged", length=2)],
        define=rules.define,
        objects={"Jet": ObjectRule(where="Jet_eta < 2")},
        branches={"Jet_eta": "jagged"},
    )
    assert needed_branches(spec) == {"Jet_pt", "Jet_eta", "MET_pt"}
    assert spec.raw == {"Jet_pt": "jagged", "Jet_eta": "jagged", "MET_pt": None}


def test_a_check_tells_the_kinds_of_what_is_defined() -> None:
    define = {"HT": "sum(Jet_pt)", "x": "Jet_pt / HT", "y": "cov * 2", "z": "3", "w": "Jet_pt[:, 0]"}
    kinds = check(Inputs(define=define, select="HT > 1"), KINDS)
    assert kinds == KINDS | {"HT": "flat", "x": "jagged", "y": "jagged", "z": "flat", "w": "flat"}


@pytest.mark.parametrize(
    ("rules", "error", "said"),
    [
        (Inputs(define={"a": "b", "b": "1"}), JobError, "define.a refers to 'b', which is defined after it"),
        (Inputs(define={"a": "a + 1"}), JobError, "define.a refers to itself"),
        (Inputs(define={"a": "b", "b": "a"}), JobError, "define.a refers to 'b'"),
        (Inputs(define={"pi": "3"}), JobError, "define.pi"),
        (Inputs(define={"a": "1 +"}), JobError, "define.a: "),
        (Inputs(select="nJet >"), JobError, "select: "),
        (objects(Jet={"where": "Jet_pt >"}), JobError, "inputs.objects.Jet.where: "),
        (objects(Jet={"sort_by": "open('x')"}), JobError, "inputs.objects.Jet.sort_by: there is no function"),
        (Inputs(define={"MET_pt": "nJet"}), JobError, "the files have a branch of this name"),
        (
            Inputs(define={"a": "MET_Pt"}),
            BranchMissingError,
            "define.a: there is no branch 'MET_Pt'. Did you mean 'MET_pt'",
        ),
        (Inputs(define={"a": "1"}, select="aa > 1"), BranchMissingError, "select: there is no branch 'aa'"),
        (objects(Jet={"where": "Jet_x"}), BranchMissingError, "inputs.objects.Jet.where: there is no branch"),
        (
            Inputs(select="Jet_pt > 30"),
            JobError,
            "gives one value for each object, not for each event. Write any",
        ),
        (Inputs(define={"a": "sum(MET_pt)"}), JobError, "define.a: this has one value an event"),
        (
            objects(Jets={}),
            JobError,
            "inputs.objects.Jets: there is no jagged branch 'Jets' or 'Jets_*'. Did you mean 'Jet'",
        ),
        (objects(MET={"where": "1"}), JobError, "inputs.objects.MET: there is no jagged branch"),
    ],
    ids=lambda case: str(case)[:50],
)
def test_what_is_wrong_is_told_before_an_event_is_read(
    rules: Inputs, error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as caught:
        check(rules, KINDS)
    assert said in str(caught.value)


def test_syntax_is_checked_without_files() -> None:
    check_syntax({"a": "x", "b": "a + y"}, "b > 1", {"J": ObjectSettings(where="z", sort_by="b")})
    with pytest.raises(JobError, match=r"^inputs\.objects\.J\.sort_by: "):
        check_syntax({}, None, {"J": ObjectSettings(sort_by="-")})


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (objects(Jet={"where": "Muon_pt > 1"}), "other numbers of objects than 'Jet_pt'"),
        (
            Inputs(define={"Jet_two": "Jet_pt[:, :2]"}, objects={"Jet": ObjectSettings(sort_by="Jet_pt")}),
            "'Jet_pt' and 'Jet_two' have other numbers of objects. Give one of them a rule of its own",
        ),
        (Inputs(define={"a": "Jet_pt + Muon_pt"}), "define.a: 'Jet_pt' and 'Muon_pt'"),
    ],
)
def test_collections_that_do_not_go_together_are_named(rules: Inputs, said: str) -> None:
    with pytest.raises(FeatureError) as caught:
        prepare(events(), rules)
    assert said in str(caught.value)


def test_no_events_are_prepared_too() -> None:
    rules = Inputs(
        define={"HT": "sum(Jet_pt)"}, select="HT > 1", objects={"Jet": ObjectSettings(where="Jet_eta < 1")}
    )
    empty = {name: from_awkward(to_awkward(column)[:0], name) for name, column in events().items()}
    prepared, keep = prepare(empty, rules)
    assert keep is not None
    assert (len(keep), len(prepared["HT"]), len(prepared["Jet_pt"])) == (0, 0, 0)


def test_expressions_are_computed_to_one_number_an_event() -> None:
    rules = Inputs(define={"HT": "sum(Jet_pt)", "half": "HT / 2"}, select="nJet > 2")
    texts = {"label": "nJet > 0", "weights": "xsec * half / lumi", "constant": "lumi"}
    found = computed(events(), rules, texts, {"xsec": 3.0, "lumi": 2.0})
    assert list(found) == ["label", "weights", "constant"]
    # of all events: what is selected is decided elsewhere
    assert found["label"].tolist() == [True, False, True]
    assert found["weights"].tolist() == [75.0, 0.0, 75.0]
    assert found["constant"].tolist() == [2.0, 2.0, 2.0]


def test_expressions_see_the_objects_as_they_are_in_the_file() -> None:
    rules = Inputs(
        define={"HT": "sum(Jet_pt)"},
        objects={"Jet": ObjectSettings(where="Jet_pt > 35", sort_by="Jet_pt")},
    )
    found = computed(events(), rules, {"n": "num(Jet_pt)", "first": "Jet_pt[:, 0]", "HT": "HT"}, {})
    assert found["n"].tolist() == [3, 0, 2]
    np.testing.assert_array_equal(found["first"], [20, NAN, 40])
    assert found["HT"].tolist() == [100, 0, 100]


def test_a_constant_stands_before_a_branch_or_definition_of_its_name() -> None:
    # what is defined of a branch that was not read, since nobody asked for it
    rules = Inputs(define={"sum_weights": "genWeight * 2"})
    constants = {"MET_pt": 7.0, "sum_weights": 2.0}
    assert computed(events(), rules, {"w": "MET_pt / sum_weights"}, constants)["w"].tolist() == [3.5] * 3


def test_nothing_to_compute_asks_for_no_branch() -> None:
    assert computed({}, Inputs(), {}, {"lumi": 1.0}) == {}


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("Jet_pt", FeatureError, "weights: 'Jet_pt' gives one value for each object, not for each event"),
        ("cov", FeatureError, "weights: 'cov' gives one value for each object, not for each event"),
        ("MET_Pt * lumi", BranchMissingError, "there is no branch 'MET_Pt'. Did you mean 'MET_pt'"),
        ("lumy", BranchMissingError, "there is no branch 'lumy'. Did you mean 'lumi'"),
        ("open('x')", JobError, "weights: there is no function 'open'"),
    ],
)
def test_an_expression_that_gives_no_number_an_event_is_refused(
    text: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as caught:
        computed(events(), Inputs(), {"weights": text}, {"lumi": 2.0})
    assert said in str(caught.value)
