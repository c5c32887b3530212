from __future__ import annotations

import pytest

from mlaas_ray.core.errors import BranchMissingError, DataError
from mlaas_ray.streaming.branches import choose

KINDS = {"MET_pt": "flat", "Jet_pt": "jagged", "Jet_eta": "jagged", "hits[3]": "fixed"}


def test_branches_are_chosen_by_name_and_glob() -> None:
    assert choose(KINDS, {}, "here", ["Jet_*"], ["*_eta"]) == {"Jet_pt": "jagged"}
    assert choose(KINDS, {}, "here", None, []) == KINDS


def test_a_name_that_looks_like_a_glob_is_a_name_first() -> None:
    assert choose(KINDS, {}, "here", ["hits[3]"], []) == {"hits[3]": "fixed"}
    assert "hits[3]" not in choose(KINDS, {}, "here", None, ["hits[3]"])


def test_a_missing_branch_offers_the_nearest() -> None:
    with pytest.raises(BranchMissingError, match=r"no branch 'Jet_Pt' in here.*'Jet_pt'"):
        choose(KINDS, {}, "here", ["Jet_Pt"], [])


def test_a_branch_that_is_no_number_is_refused_by_its_type() -> None:
    with pytest.raises(DataError, match="'name' in here is no numeric branch \\(std::string\\)"):
        choose(KINDS, {"name": "std::string"}, "here", ["name"], [])


def test_excluding_everything_is_refused() -> None:
    with pytest.raises(BranchMissingError, match="no numeric branch is left"):
        choose(KINDS, {}, "here", None, ["*"])


def test_a_file_may_lack_what_others_have() -> None:
    assert choose(KINDS, {}, "here", ["Tau_*", "MET_pt"], [], lenient=True) == {"MET_pt": "flat"}
    assert choose(KINDS, {}, "here", ["Tau_*"], [], lenient=True) == {}


def test_a_second_branch_of_one_name_is_read_where_it_is_named_so() -> None:
    branches = {"x": 1, "x;2": 2, "y": 3}
    assert choose(branches, {}, "a.root", None, []) == {"x": 1, "y": 3}
    assert choose(branches, {}, "a.root", ["x*"], []) == {"x": 1}
    assert choose(branches, {}, "a.root", ["x;2"], []) == {"x;2": 2}
    assert choose(branches, {}, "a.root", ["x;*"], []) == {"x;2": 2}
