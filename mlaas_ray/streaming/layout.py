"""Layout: what the files of a first pass have in common, and the FeatureSpec that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from mlaas_ray.core.columns import Kind
from mlaas_ray.core.errors import BranchMissingError, DataError, EmptyDataError, nearest
from mlaas_ray.core.features import Feature, FeatureSpec, ObjectRule
from mlaas_ray.core.inputs import Inputs
from mlaas_ray.core.prepare import check, needed_branches, rule_of
from mlaas_ray.core.statistics import Sketches
from mlaas_ray.core.views import grid_spec
from mlaas_ray.streaming.events import Branch
from mlaas_ray.streaming.missing import fill_value
from mlaas_ray.streaming.scan import KEYS, Request, ScannedFile, is_integer

Shape = tuple[Kind, int]


def common(
    files: Sequence[ScannedFile], request: Request
) -> tuple[dict[str, Shape], dict[str, tuple[str, ...]]]:
    """Return what the model sees of all files, and which branches which files lack.

    Raises:
        BranchMissingError: When a branch is missing and that is not allowed, or no file has it.
        DataError: When a branch is of another kind in another file.
    """
    chosen: dict[str, Shape] = {}
    origin: dict[str, ScannedFile] = {}
    for file in {id(file.chosen): file for file in files}.values():
        for name, shape in file.chosen.items():
            if chosen.setdefault(name, shape) != shape:
                raise _differ(name, origin[name], file)
            origin.setdefault(name, file)
    branches = all_branches(files)
    wanted = (
        needed_branches(request.features)
        if request.features
        else set(chosen) | needed_branches(request.inputs, chosen)
    )
    truths = {dataset: request.truth_branches(dataset) for dataset in {file.dataset for file in files}}
    missing: dict[str, tuple[str, ...]] = {}
    for name in sorted((wanted | set().union(*truths.values())) - set(request.rules.define)):
        # what only labels and weights need is wanted of their own dataset
        lacks = [
            file
            for file in files
            if name not in file.branches and (name in wanted or name in truths[file.dataset])
        ]
        if name not in branches:
            raise BranchMissingError(f"no file has a branch {name!r}", nearest(name, set(branches) - {name}))
        if lacks and request.reading.missing == "fail":
            has = next(file for file in files if name in file.branches)
            others = f" (and {len(lacks) - 1} more files)" if len(lacks) > 1 else ""
            raise BranchMissingError(
                f"branch {name!r} is in {has.path}, but not in {lacks[0].path}, tree {lacks[0].tree!r}"
                + others,
                "Choose branches that all files have with include and exclude, or say reading.missing: fill",
            )
        if lacks and request.reading.missing == "fill":
            fill_value(branches[name], request.reading.fill)  # refuses what is no value of its type
        if lacks:
            missing[name] = tuple(file.path for file in lacks)
    if request.features is None:
        chosen = _settled(chosen, missing, branches, request)
    return chosen, missing


def _settled(
    chosen: dict[str, Shape],
    missing: Mapping[str, tuple[str, ...]],
    branches: Mapping[str, Branch],
    request: Request,
) -> dict[str, Shape]:
    """Apply what is to become of missing branches; check the names and expressions against all files."""
    inputs = request.inputs
    if request.reading.missing == "drop":
        chosen = {name: shape for name, shape in chosen.items() if name not in missing}
        needed = needed_branches(inputs, chosen) & set(missing)
        if needed:
            name = min(needed)
            raise BranchMissingError(
                f"an expression needs {name!r}, which {missing[name][0]} lacks",
                "Say reading.missing: fill, or leave out the file",
            )
    if not chosen:
        raise BranchMissingError("the files have no branch in common", "Say reading.missing: fill")
    kinds = {name: shape[0] for name, shape in chosen.items() if name not in inputs.define}
    if inputs.define or inputs.select is not None or inputs.objects:
        known: dict[str, Kind] = {name: branch.kind for name, branch in branches.items()}
        check(inputs, known | kinds)
    for pattern in inputs.include or ():
        if pattern not in chosen and not any(c in pattern for c in "*?[") and pattern not in missing:
            raise BranchMissingError(f"no file has a branch {pattern!r}", nearest(pattern, chosen))
    return chosen


def shared(files: Sequence[ScannedFile]) -> list[ScannedFile]:
    """Let files that have the same branches share one description of them."""
    known: dict[Any, ScannedFile] = {}
    made = []
    for file in files:
        mappings = (file.branches, file.chosen, file.left_out)
        one = known.setdefault(tuple(tuple(mapping.items()) for mapping in mappings), file)
        made.append(replace(file, branches=one.branches, chosen=one.chosen, left_out=one.left_out))
    return made


def all_branches(files: Sequence[ScannedFile]) -> dict[str, Branch]:
    """Return every branch that some file has."""
    found: dict[str, Branch] = {}
    for layout in {id(file.branches): file.branches for file in files}.values():
        for name, branch in layout.items():
            found.setdefault(name, branch)
    return found


def key_of(files: Sequence[ScannedFile], request: Request) -> tuple[str, ...]:
    """Return the branches that identify an event in all files; none for file and entry."""
    if request.key is not None:
        return request.key
    for names in KEYS:
        if all(is_integer(file.branches.get(name)) for file in files for name in names):
            return names
    return ()


def check_not_empty(files: Sequence[ScannedFile], names: Sequence[str]) -> None:
    """Refuse a dataset without events.

    Raises:
        EmptyDataError: Naming a file and its tree.
    """
    for index, name in enumerate(names):
        own = [file for file in files if file.dataset == index]
        if not own:
            raise EmptyDataError(f"no file of dataset {name!r} can be read", "Give others, or leave it out")
        if not any(file.entries for file in own):
            others = f" and {len(own) - 1} more files are" if len(own) > 1 else " is"
            tree = f", tree {own[0].tree!r}" if own[0].tree else ""
            raise EmptyDataError(
                f"dataset {name!r} has no events: {own[0].path}{tree}{others} empty",
                "Leave it out, or give files with events",
            )


def unmeasured(chosen: Mapping[str, Shape], inputs: Inputs) -> FeatureSpec:
    """Make a spec that selects events, before anybody knows how long the columns are."""
    return FeatureSpec.of(
        [Feature(name=next(iter(chosen)), kind="flat")], define=dict(inputs.define), select=inputs.select
    )


def spec_of(
    chosen: Mapping[str, Shape],
    sketches: Sketches,
    full: Set[str],
    inputs: Inputs,
    branches: Mapping[str, Branch],
    entries: int,
) -> FeatureSpec:
    """Make the FeatureSpec of what was measured.

    Args:
        chosen: What the model sees.
        sketches: Of all files together.
        full: What was measured in full; of the others the multiplicity is known, if anything.
        inputs: What the user asked for.
        branches: Every branch that some file has.
        entries: Events measured.

    Raises:
        FeatureError: When no column is left.
    """
    features = [_feature(name, shape, sketches, full, inputs) for name, shape in chosen.items()]
    rules = {
        name: ObjectRule(where=rule.where, sort_by=rule.sort_by, ascending=rule.ascending)
        for name, rule in inputs.objects.items()
        if rule.where or rule.sort_by is not None
    }
    # a service must know of what kind the branches are that are sent to it
    raw = needed_branches(inputs, chosen, select=False) - set(chosen)
    rest = {
        "define": dict(inputs.define),
        "branches": {name: branches[name].kind for name in sorted(raw)},
        "objects": rules,
        "select": inputs.select,
        "normalisation": inputs.normalise,
        "entries": entries,
    }
    if inputs.representation == "grid":
        return grid_spec(inputs, features, **rest)
    return FeatureSpec.of(features, **rest)


def _feature(name: str, shape: Shape, sketches: Sketches, full: Set[str], inputs: Inputs) -> Feature:
    kind, length = shape
    seen = name in sketches.names
    statistics = sketches.statistics(name) if seen and name in full else None
    if kind != "jagged":
        return Feature(name=name, kind=kind, length=length, statistics=statistics)
    rule = rule_of(name, inputs.objects)
    wish = inputs.objects[rule].length if rule else None
    largest = sketches.largest(name) if seen else None
    return Feature(
        name=name,
        kind="jagged",
        length=wish if wish is not None else largest or 0,
        multiplicity=largest,
        statistics=statistics,
    )


def _differ(name: str, one: ScannedFile, other: ScannedFile) -> DataError:
    kinds = [
        kind if kind != "fixed" else f"fixed ({length} values)"
        for kind, length in (one.chosen[name], other.chosen[name])
    ]
    return DataError(
        f"{name!r} is {kinds[0]} in {one.path}, but {kinds[1]} in {other.path}", f"Exclude {name!r}"
    )
