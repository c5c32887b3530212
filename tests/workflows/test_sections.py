from __future__ import annotations

from typing import Any

import pytest

from mlaas_ray.core.errors import JobError
from mlaas_ray.workflows.sections import DatasetSettings, LabelSettings, SplitSettings


@pytest.mark.parametrize(
    ("split", "parts", "held_out"),
    [
        ({}, ((0.0, 0.8), (0.8, 1.0)), (0.8, 1.0)),
        ({"validation": 0.3}, ((0.0, 0.7), (0.7, 1.0)), (0.7, 1.0)),
        ({"train": 0.5, "validation": 0.25}, ((0.0, 0.5), (0.5, 0.75)), (0.5, 0.75)),
        ({"validation": 0.1, "test": 0.1}, ((0.0, 0.8), (0.8, 0.9)), (0.9, 1.0)),
        ({"train": 0.1, "validation": 0.2, "test": 0.3}, ((0.0, 0.1), (0.1, 0.3)), (0.3, 0.6)),
    ],
)
def test_the_split_is_of_neighbouring_intervals(
    split: dict[str, float], parts: Any, held_out: tuple[float, float]
) -> None:
    found = SplitSettings.of(split, "split")
    learn, judge = found.parts
    assert learn[1] == judge[0]
    assert (learn, judge) == (pytest.approx(parts[0]), pytest.approx(parts[1]))
    assert found.held_out == pytest.approx(held_out)


@pytest.mark.parametrize("test", [0.0, 0.1, 0.2, 0.3, 0.35])
@pytest.mark.parametrize("validation", [0.1, 0.15, 0.3, 0.6])
def test_an_interval_that_ends_at_one_ends_there_whatever_rounding_does(
    validation: float, test: float
) -> None:
    split = SplitSettings(validation=validation, test=test)
    assert split.held_out[1] == 1.0
    if test:
        assert split.parts[1][1] == split.held_out[0]
        assert split.parts[1] != split.held_out


@pytest.mark.parametrize(
    "split",
    [{"validation": 0.5, "test": 0.5}, {"train": 0.9}, {"train": 0.5, "validation": 0.3, "test": 0.3}],
)
def test_fractions_of_more_than_there_is_are_refused(split: dict[str, float]) -> None:
    with pytest.raises(JobError, match="must leave something for train and sum to at most 1"):
        SplitSettings.of(split, "split")


def test_a_dataset_is_files_or_a_name_of_the_catalogue() -> None:
    assert DatasetSettings(files="a.root", label=1).names == ["a.root"]
    assert DatasetSettings(das="/A/B/NANOAODSIM", label=1).names == ["das:/A/B/NANOAODSIM"]
    for both in ({}, {"files": "a.root", "das": "/A/B/NANOAODSIM"}):
        with pytest.raises(JobError, match="give either files or das"):
            DatasetSettings.of({**both, "label": 1}, "the dataset")


def test_labels_of_events_are_expressions() -> None:
    assert LabelSettings(branch="flavour").texts == ("flavour",)
    assert LabelSettings(branch=["truth.x", "y"]).texts == ('branch("truth.x")', "y")
    assert LabelSettings(expression="pt > 3").texts == ("pt > 3",)
    with pytest.raises(JobError, match="give either branch or expression"):
        LabelSettings.of({"branch": "a", "expression": "b"}, "the label")
