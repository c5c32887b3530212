from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlaas_ray.core.package import ModelPackage
from mlaas_ray.repository import ModelVersion, Repository
from mlaas_ray.streaming import FirstPass, first_pass
from mlaas_ray.workflows import Job, published_if_wanted
from mlaas_ray.workflows.deciding import Decision
from tests.packaged import package_of

pytestmark = pytest.mark.usefixtures("ray_local")

# By how much the scores of these grow with the likeliest b jet, with the next, and with nothing: areas of
# 0.78, 0.71 and 0.50.
SLOPES = {"good": {"Jet_btag_0": 8.0}, "middling": {"Jet_btag_1": 8.0}, "poor": {}}


@pytest.fixture(scope="module")
def found(samples: dict[str, Path], ray_local: None) -> FirstPass:
    datasets = {name: {"files": str(path), "label": name == "signal"} for name, path in samples.items()}
    inputs = {"include": ["Jet_btag"], "objects": {"Jet": {"length": 2, "sort_by": "Jet_btag"}}}
    job = Job.of({"datasets": datasets, "inputs": inputs}, "the job")
    return first_pass(job.samples({}), job.wanted, progress=False)


@pytest.fixture
def make(found: FirstPass, tmp_path: Path) -> Callable[[str], ModelPackage]:
    """Make a package: ``good``, ``middling`` or ``poor``."""
    return lambda kind: package_of(tmp_path / kind, found.features, SLOPES[kind], name="toy")


@pytest.fixture
def shelf(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "shelf")


@pytest.fixture
def decide(write_job: Callable[..., Path], shelf: Repository) -> Callable[..., Decision]:
    def run(package: ModelPackage, publish: dict[str, Any] | None, *, wanted: bool = False) -> Decision:
        job = Job.load(write_job(publish=publish))
        return published_if_wanted(job, package, shelf.root, wanted=wanted)

    return run


def test_a_package_is_published_when_somebody_wants_it(
    make: Callable[..., ModelPackage], decide: Callable[..., Decision], shelf: Repository
) -> None:
    package = make("poor")
    assert decide(package, None) == Decision(None)
    assert shelf.names() == []
    assert decide(package, None, wanted=True) == Decision(ModelVersion("toy", 1))
    assert decide(package, {}) == Decision(ModelVersion("toy", 1))  # it is there
    assert decide(package, {"name": "other", "aliases": ["a", "b"]}) == Decision(ModelVersion("other", 1))
    assert shelf.aliases("other") == {"a": 1, "b": 1}
    assert shelf.aliases("toy") == {}


def test_the_first_of_its_name_has_nothing_to_be_better_than(
    make: Callable[..., ModelPackage], decide: Callable[..., Decision], shelf: Repository
) -> None:
    wish = {"if_better_than": "production", "unless_worse_than": 3, "aliases": "production"}
    assert decide(make("poor"), wish) == Decision(ModelVersion("toy", 1))
    assert shelf.aliases("toy") == {"production": 1}


def test_what_is_not_better_is_not_published(
    make: Callable[..., ModelPackage], decide: Callable[..., Decision], shelf: Repository
) -> None:
    package = make("good")
    shelf.publish(package)
    decision = decide(package, {"if_better_than": 1, "aliases": "production"})
    assert decision.version is None
    assert decision.reason.startswith(
        "not published: the new model is not significantly different from toy:1 on "
    )
    assert (shelf.versions("toy"), shelf.aliases("toy")) == ([1], {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rivals", "new", "wish", "published", "told"),
    [
        (["good"], "good", {"unless_worse_than": "1"}, True, ["not significantly different from toy:1"]),
        (
            ["poor", "good"],
            "middling",
            {"if_better_than": 1, "unless_worse_than": "production"},
            False,
            ["not published: the new model is worse than toy:2"],
        ),
    ],
    ids=["no worse", "better than one only"],
)
def test_the_comparison_decides(
    make: Callable[..., ModelPackage],
    decide: Callable[..., Decision],
    shelf: Repository,
    rivals: list[str],
    new: str,
    wish: dict[str, Any],
    published: bool,
    told: list[str],
) -> None:
    packages = {kind: make(kind) for kind in {*rivals, new}}
    for rival in rivals:
        shelf.publish(packages[rival])
    shelf.set_alias("toy", "production")
    decision = decide(packages[new], {**wish, "aliases": "candidate"})
    # a package that is there already keeps its version
    number = [*rivals, new].index(new) + 1
    assert decision.version == (ModelVersion("toy", number) if published else None)
    assert shelf.aliases("toy").get("candidate") == (number if published else None)
    for words in told:
        assert words in decision.reason
