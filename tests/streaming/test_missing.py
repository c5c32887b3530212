from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlaas_ray.core.columns import Jagged
from mlaas_ray.core.errors import JobError
from mlaas_ray.streaming import ReadingSettings
from mlaas_ray.streaming.events import Branch
from mlaas_ray.streaming.missing import filled

OFFSETS = np.array([0, 2, 2, 3], np.int64)


def fill(kind: str, dtype: str, values: dict[str, Any], name: str = "Jet_x") -> Any:
    branch = Branch(name, kind, "a type", length=2, dtype=dtype)  # type: ignore[arg-type]
    present = {"Mu_pt": Jagged(np.zeros(4, np.int64), np.zeros(0)), "Jet_pt": Jagged(OFFSETS, np.ones(3))}
    return filled([branch], present, 3, values)[name]


def test_booleans_are_false_others_without_a_value_and_what_is_asked_for_goes_before() -> None:
    assert fill("flat", "bool", {}).tolist() == [False] * 3
    assert fill("flat", "bool", {"Jet_x": True}).tolist() == [True] * 3
    assert np.isnan(fill("flat", "bool", {"*": np.nan})).all()
    for dtype in ("int32", "uint8", "float64"):
        assert np.isnan(fill("flat", dtype, {"Mu*": 1})).all()
        given = fill("flat", dtype, {"J*": 7, "*": 8})
        assert (given.dtype, given.tolist()) == (np.dtype(dtype), [7, 7, 7])
    # a name goes before globs, and what looks like a glob may be a name
    assert fill("flat", "int64", {"Jet*": 1, "Jet_x": 2}).tolist() == [2] * 3
    assert fill("flat", "int64", {"hits[3]": 1}, name="hits[3]").tolist() == [1] * 3


def test_a_filled_branch_has_the_shape_it_has_in_other_files() -> None:
    assert fill("fixed", "bool", {}).tolist() == [[False, False]] * 3
    jets = fill("jagged", "bool", {})
    assert (jets.offsets.tolist(), jets.content.tolist()) == (OFFSETS.tolist(), [False] * 3)
    alone = fill("jagged", "bool", {}, name="Tau_x")
    assert (len(alone), len(alone.content)) == (3, 0)


@pytest.mark.parametrize(
    ("dtype", "value"), [("bool", 2), ("int32", 0.5), ("int8", 200), ("uint16", -1), ("int64", np.inf)]
)
def test_a_value_that_the_branch_never_has_is_refused(dtype: str, value: float) -> None:
    with pytest.raises(JobError, match=r"reading.fill: 'Jet_x' is a type, which is never"):
        fill("flat", dtype, {"Jet_*": value})


def test_what_to_fill_with_is_for_those_who_fill() -> None:
    with pytest.raises(JobError, match="fill is for missing: fill, and missing is fail"):
        ReadingSettings.of({"fill": {"x": 0}}, "test")
    reading = ReadingSettings.of({"missing": "fill", "fill": {"x": False, "y": 1, "z": 0.5}}, "test")
    assert [type(value) for value in reading.fill.values()] == [bool, int, float]
