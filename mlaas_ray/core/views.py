"""What a user wants to see as images, to the branches that takes and to a GridSpec."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from pydantic import ValidationError

from mlaas_ray.core.columns import Kind
from mlaas_ray.core.errors import BranchMissingError, DataError, FeatureError, JobError, nearest
from mlaas_ray.core.features import Feature
from mlaas_ray.core.grid import Axis, Channel, GridSpec, View
from mlaas_ray.core.inputs import ChannelSettings, InputSettings, ViewSettings
from mlaas_ray.core.prepare import rule_of

# How files join a collection's name and a field's: EDM4hep, ROOT's LorentzVector, NanoAOD, Delphes and
# PHYSLITE, and plain camel case; the longest first.
_JOINTS = (".position.", ".fCoordinates.f", "_", ".", "")
# Beyond it lie the beams, and the -999 of what has no direction.
_LARGEST_ETA = 5.0
_HALF_TURN = float(np.pi)


def grid_branches(inputs: InputSettings, kinds: Mapping[str, Kind]) -> list[str]:
    """Return the branches that the views and scalars need, sorted.

    Args:
        inputs: With ``representation`` grid.
        kinds: What there is, definitions included, after ``include`` and ``exclude``.

    Raises:
        BranchMissingError: When there is no such branch, naming the view and channel.
        DataError: When the branches of one channel are of different kinds.
    """
    needed = set(_scalars(inputs.scalars, kinds))
    for settings in inputs.views:
        for channel in _channels(settings, inputs, kinds):
            needed.update(channel.branches)
            if len({kinds[name] for name in channel.branches}) > 1:
                told = ", ".join(f"{name} is {kinds[name]}" for name in channel.branches)
                raise DataError(
                    f"{_where(settings, channel.name)}: {told}", "Give it branches of one collection"
                )
    return sorted(needed)


def grid_spec(inputs: InputSettings, features: Sequence[Feature], **rest: Any) -> GridSpec:
    """Make the spec of the views; what has no range gets one from the features' statistics.

    Args:
        inputs: With ``representation`` grid.
        features: The branches of :func:`grid_branches`, measured; others are left out.
        rest: The other attributes: ``define``, ``objects``, ``select``, ``entries``.

    Raises:
        JobError: When a range is neither given nor known, or two views or channels have one name.
    """
    by_name = {feature.name: feature for feature in features}
    kinds = {feature.name: feature.kind for feature in features}
    views = []
    for settings in inputs.views:
        channels = _channels(settings, inputs, kinds)
        x = _axis(settings, "x", [by_name[channel.x] for channel in channels])
        y = _axis(settings, "y", [by_name[channel.y] for channel in channels])
        views.append(View(name=_name(settings), x=x, y=y, channels=tuple(channels)))
    needed = set(grid_branches(inputs, kinds))
    try:
        return GridSpec.of(
            [feature for feature in features if feature.name in needed],
            scalars=tuple(_scalars(inputs.scalars, kinds)),
            views=tuple(views),
            **{"normalisation": inputs.normalise, **rest},
        )
    except FeatureError as error:
        raise JobError(f"inputs.views: {error.message}", "Name each view and channel differently") from None


def _name(settings: ViewSettings) -> str:
    return settings.name or f"{settings.x}_{settings.y}"


def _where(settings: ViewSettings, channel: str = "") -> str:
    return f"view {_name(settings)!r}" + (f", channel {channel!r}" if channel else "")


def _scalars(patterns: Iterable[str], kinds: Mapping[str, Kind]) -> list[str]:
    known = [name for name, kind in kinds.items() if kind != "jagged"]
    chosen: set[str] = set()
    for pattern in patterns:
        matches = [name for name in known if name == pattern or fnmatchcase(name, pattern)]
        if not matches:
            raise BranchMissingError(f"scalars: no flat branch {pattern!r}", nearest(pattern, known))
        chosen.update(matches)
    return sorted(chosen)


def _channels(settings: ViewSettings, inputs: InputSettings, kinds: Mapping[str, Kind]) -> list[Channel]:
    """Find the branches of a view's channels."""
    wanted = settings.channels or tuple(_collections(settings, kinds))
    if not wanted:
        raise BranchMissingError(
            f"{_where(settings)}: no collection has both {settings.x!r} and {settings.y!r}",
            "Name branches (x: Hit_x, y: Hit_y), or the channels' collections",
        )
    channels = []
    for channel in wanted:
        where = _where(settings, channel.collection)
        x = _branch(channel.collection, channel.x or settings.x, kinds, where)
        y = _branch(channel.collection, channel.y or settings.y, kinds, where)
        weight = settings.weight if channel.weight is None else channel.weight
        channels.append(
            Channel(
                name=channel.name or channel.collection,
                x=x,
                y=y,
                weight=None if weight in (1, "1") else _branch(channel.collection, str(weight), kinds, where),
                length=_length(inputs, x),
            )
        )
    return channels


def _collections(settings: ViewSettings, kinds: Mapping[str, Kind]) -> Iterator[ChannelSettings]:
    """Yield the collections that have both fields of a view, of those that join names in the same way."""
    if settings.x in kinds and settings.y in kinds:
        stems = {re.sub(r"[._][^._]*$", "", name) for name in (settings.x, settings.y)}
        yield ChannelSettings(collection=stems.pop() if len(stems) == 1 else _name(settings))
        return
    names = sorted(_short(name) for name, kind in kinds.items() if kind == "jagged")
    folded = {name.casefold() for name in names}
    for joint in _JOINTS:
        end = (joint + settings.x).casefold()
        # without a joint, only a capital tells where the field begins: jetEta, not beta
        named = [
            name[: -len(end)]
            for name in names
            if name.casefold().endswith(end) and (joint or name[-len(end)].isupper())
        ]
        found = [
            collection
            for collection in named
            if collection and (collection + joint + settings.y).casefold() in folded
        ]
        if found:  # the other ways are other things: Jet.momentum.x beside Hits.position.x
            yield from (ChannelSettings(collection=collection) for collection in found)
            return


def _branch(collection: str, field: str, kinds: Mapping[str, Kind], where: str) -> str:
    """Find a collection's field, or else the branch of that name.

    Raises:
        BranchMissingError: When there is neither.
    """
    exact = {_short(name): name for name in kinds} | {name: name for name in kinds}
    folded = {name.casefold(): branch for name, branch in exact.items()}
    for name in [*(collection + joint + field for joint in _JOINTS), field]:
        found = exact.get(name) or folded.get(name.casefold())
        if found is not None:
            return found
    usual = f"{collection}_{field}"
    raise BranchMissingError(f"{where}: no branch {usual!r}, and none {field!r}", nearest(usual, kinds))


def _short(name: str) -> str:
    """Return a branch's name without the branches it lies in: ``Hits/Hits.position.x``."""
    return name.rpartition("/")[2]


def _length(inputs: InputSettings, branch: str) -> int | None:
    rule = rule_of(branch, inputs.objects)
    return None if rule is None else inputs.objects[rule].length


def _axis(settings: ViewSettings, side: str, features: Sequence[Feature]) -> Axis:
    """Decide where an axis begins and ends, and whether it closes on itself."""
    name, bins = getattr(settings, side), getattr(settings, f"{side}_bins")
    limits = getattr(settings, f"{side}_range")
    if limits is None:
        limits = (-_HALF_TURN, _HALF_TURN) if _is("phi", name) else _seen(settings, side, name, features)
    turn = _is("phi", name) and abs(limits[1] - limits[0] - 2 * _HALF_TURN) < 0.01
    periodic = turn if settings.periodic is None else name in settings.periodic
    try:
        return Axis(name=name, bins=bins, low=limits[0], high=limits[1], periodic=periodic)
    except ValidationError as error:
        raise JobError(f"{_where(settings)}: {error.errors()[0]['msg']}", f"Give {side}_range") from None


def _seen(settings: ViewSettings, side: str, name: str, features: Sequence[Feature]) -> tuple[float, float]:
    """Return the range of the values that the first pass saw, widened when it is a point."""
    statistics = [feature.statistics for feature in features if feature.statistics is not None]
    lows = [seen.min for seen in statistics if seen.min is not None]
    highs = [seen.max for seen in statistics if seen.max is not None]
    if not lows or not highs:
        raise JobError(
            f"{_where(settings)}: no value of {features[0].name!r} was seen, so {name!r} has no range",
            f"Give {side}_range: [from, to]",
        )
    low, high = min(lows), max(highs)
    if _is("eta", name):
        low, high = max(low, -_LARGEST_ETA), min(high, _LARGEST_ETA)
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def _is(angle: str, name: str) -> bool:
    """Tell whether a field or branch is called so: ``eta``, ``Jet_eta``, ``jetEta``, but not ``theta``."""
    return re.search(rf"(^|[_.]){angle}$|{angle.capitalize()}$|{angle.upper()}$", name) is not None
