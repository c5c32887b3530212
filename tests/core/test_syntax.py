from __future__ import annotations

import pytest

from mlaas_ray.core.errors import JobError
from mlaas_ray.core.syntax import conjuncts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a > 1", ["a > 1"]),
        ("(a > 1) & (b < 2)", ["a > 1", "b < 2"]),
        ("a > 1 and b < 2 and c", ["a > 1", "b < 2", "c"]),
        ("(a > 1) & (b < 2) & (c == 3) & ~(d > 4)", ["a > 1", "b < 2", "c == 3", "~(d > 4)"]),
        ("((a > 1) & (b < 2)) & ((c > 3) and (d > 4))", ["a > 1", "b < 2", "c > 3", "d > 4"]),
        ("(a > 1) | (b < 2)", ["(a > 1) | (b < 2)"]),
        ("((a > 1) | (b < 2)) & (c > 3)", ["(a > 1) | (b < 2)", "c > 3"]),
        ("not (a > 1 and b < 2)", ["not (a > 1 and b < 2)"]),
        ("any(x[(y > 2) & (z < 1)] > 3)", ["any(x[(y > 2) & (z < 1)] > 3)"]),
        # one side is a condition, so that the other counts as one
        ("trigger & (MET_pt > 100)", ["trigger", "MET_pt > 100"]),
        ("trigger & isfinite(MET_pt) & (MET_pt > 100)", ["trigger", "isfinite(MET_pt)", "MET_pt > 100"]),
        # & of what may be whole numbers is one of their bits
        ("flags & 4", ["flags & 4"]),
        ("(flags & 4) & (MET_pt > 100)", ["flags & 4", "MET_pt > 100"]),
        ("flags & mask", ["flags & mask"]),
        ("(nJet + 1) & ~mask", ["(nJet + 1) & ~mask"]),
        # positions are characters, though Python counts bytes
        ("(μ_pt > 1) & (τ_pt > 2)", ["μ_pt > 1", "τ_pt > 2"]),
        ("(a > 1)\n & (b < 2)", ["a > 1", "b < 2"]),
    ],
)
def test_a_selection_is_taken_apart_into_its_cuts(text: str, parts: list[str]) -> None:
    assert conjuncts(text) == parts


def test_what_is_no_selection_is_refused() -> None:
    with pytest.raises(JobError, match=r"^select: "):
        conjuncts("a > 1 &")
