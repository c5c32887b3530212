"""FeatureSpec: which branches make a model's input, in which order, how long, and how they are scaled."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlaas_ray.core.columns import Kind
from mlaas_ray.core.errors import FeatureError
from mlaas_ray.core.prepare import needed_branches, shapes
from mlaas_ray.core.statistics import Statistics as Statistics  # known by this name before

SCHEMA_VERSION: Literal[2] = 2

Normalisation = Literal["softclip", "standard", "robust", "minmax", "none"]

# Where ``softclip`` ends, in deviations.
BOUND = 5.0
# Interquartile range of a normal distribution, in deviations.
_QUARTILES = 1.349

# A Python float: numpy's own would have a comparison done in float32, where a wide range overflows.
_FLOAT32_TINY = float(np.finfo(np.float32).tiny)


class Feature(BaseModel):
    """One branch of the input: a single column, several, or a jagged one padded to ``length`` columns.

    Attributes:
        name: Branch name, of the file or of a definition.
        kind: ``flat`` (one value an event), ``fixed`` (as many for every event) or ``jagged`` (any number).
        length: Columns it fills: 1 for flat; for jagged, the objects kept of each event.
        multiplicity: The most values seen in one event; None unless jagged.
        statistics: What the first pass saw; None when there was no first pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    kind: Kind
    length: int = Field(default=1, ge=0)
    multiplicity: int | None = Field(default=None, ge=0)
    statistics: Statistics | None = None

    @model_validator(mode="after")
    def _check(self) -> Feature:
        if self.kind == "flat" and self.length != 1:
            raise ValueError(f"a flat branch has length 1, not {self.length}")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names: the branch's own, or ``<branch>_<i>`` for each value kept."""
        if self.kind == "flat":
            return (self.name,)
        return tuple(f"{self.name}_{i}" for i in range(self.length))


class ObjectRule(BaseModel):
    """What is done to a collection's objects before they become columns; the length is each feature's own.

    Attributes:
        where: Expression over the objects: those for which it is true are kept.
        sort_by: Jagged branch or expression; the largest come first.
        ascending: Whether the smallest come first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str | None = None
    sort_by: str | None = None
    ascending: bool = False


class FeatureSpec(BaseModel):
    """The contract between files, training and serving: what a row of ``(features,)`` means.

    The order is MLaaS4HEP's: flat (and fixed) branches sorted by name, then jagged branches sorted by name,
    each padded with NaN to its length. The same object prepares, orders and pads an event in training and in
    serving, and its normalisation is built into the exported model.

    Attributes:
        features: Branches in column order.
        define: New branches by name: expressions over the file's branches and those defined before.
        objects: What is done to the objects of a collection (``Jet`` for every jagged ``Jet_*``) or branch.
        branches: Kind of each branch of the file that ``define`` and ``objects`` use and that is no feature:
            what a service must be sent too.
        select: Which events it was made for; a service answers for others too.
        normalisation: How the model's first layer scales a value: ``minmax`` to [0, 1], ``standard`` to
            zero mean and unit deviation, ``robust`` to zero median and unit interquartile range, or ``none``.
            ``softclip`` scales to zero median and the deviation that a normal distribution of that
            interquartile range has, then bends tails smoothly towards ``bound``.
        entries: Events the statistics were made from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = SCHEMA_VERSION
    representation: Literal["vector"] = "vector"
    features: tuple[Feature, ...]
    define: dict[str, str] = Field(default_factory=dict)
    objects: dict[str, ObjectRule] = Field(default_factory=dict)
    branches: dict[str, Kind] = Field(default_factory=dict)
    select: str | None = None
    normalisation: Normalisation = "minmax"
    entries: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> FeatureSpec:
        if not self.columns:
            raise ValueError("a FeatureSpec needs at least one column")
        twice = [name for name, count in Counter(self.columns).items() if count > 1]
        if twice:
            raise ValueError(f"columns of the same name: {', '.join(sorted(twice)[:5])}")
        order = [(feature.kind == "jagged", feature.name) for feature in self.features]
        if order != sorted(order):
            raise ValueError("features must be flat before jagged, each sorted by name: use FeatureSpec.of")
        return self

    @classmethod
    def of(cls, features: list[Feature], **rest: Any) -> Self:
        """Put features in their order and make the spec; ``rest`` are its other attributes.

        Raises:
            FeatureError: When there is no column, or two have the same name.
        """
        ordered = tuple(sorted(features, key=lambda feature: (feature.kind == "jagged", feature.name)))
        try:
            return cls(features=ordered, **rest)
        except ValidationError as error:
            raise FeatureError(
                _reasons(error), "Choose the branches with inputs.include and inputs.exclude"
            ) from None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy, but not what was computed from the values before."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column for feature in self.features for column in feature.columns)

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.columns)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each column."""
        return {column: i for i, column in enumerate(self.columns)}

    @cached_property
    def starts(self) -> dict[str, int]:
        """Position of each branch's first column."""
        starts, position = {}, 0
        for feature in self.features:
            starts[feature.name] = position
            position += len(feature.columns)
        return starts

    @cached_property
    def by_name(self) -> dict[str, Feature]:
        """Features by branch name."""
        return {feature.name: feature for feature in self.features}

    @cached_property
    def is_prepared(self) -> bool:
        """Whether an event's branches are not yet what the columns hold: something is defined or shaped."""
        return shapes(self)

    @cached_property
    def raw(self) -> dict[str, Kind | None]:
        """Kind of each branch of the file that a row is made of; None where nobody noted it."""
        kinds: dict[str, Kind] = {**self.branches, **{f.name: f.kind for f in self.features}}
        return {name: kinds.get(name) for name in sorted(needed_branches(self, select=False))}

    def affine(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return ``offset`` and ``scale``, each ``(features,)``: normalised = (x - offset) * scale.

        A column whose values are all equal is shifted to zero and not scaled; one that was never seen is
        left as it is. With ``robust`` and ``softclip``, one whose middle half is all equal is scaled by its
        deviation. With ``softclip``, :attr:`bound` comes after that.

        Raises:
            FeatureError: With ``robust`` and ``softclip``, when the statistics have no quantiles.
        """
        offset = np.zeros(self.width)
        scale = np.ones(self.width)
        for feature in self.features:
            seen = feature.statistics
            if self.normalisation == "none" or seen is None or seen.min is None or seen.max is None:
                continue
            columns = slice(self.starts[feature.name], self.starts[feature.name] + len(feature.columns))
            centre, spread = _extent(seen, self.normalisation)
            offset[columns] = centre
            # a spread float32 cannot hold would scale to infinity
            if spread > _FLOAT32_TINY:
                scale[columns] = 1.0 / spread
        return offset.astype(np.float32), scale.astype(np.float32)

    @property
    def bound(self) -> float:
        """Where tails end: a value z becomes z / sqrt(1 + (z / bound)**2); infinity leaves it as it is."""
        return BOUND if self.normalisation == "softclip" else math.inf

    def normalised(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return values ``(events, features)`` as a network takes them, 0 where nothing finite is."""
        offset, scale = self.affine()
        with np.errstate(invalid="ignore", over="ignore"):
            z = (x - offset) * scale
            z /= np.sqrt(1 + np.square(z / np.float32(self.bound)))
        return np.where(np.isfinite(x), z, np.float32(0))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content: equal specs have equal digests, whoever wrote the JSON."""
        return _digest(self.model_dump(mode="json"))

    def to_json(self) -> str:
        """Write as JSON, with the digest that :meth:`from_json` checks."""
        return json.dumps({**self.model_dump(mode="json"), "sha256": self.digest}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> FeatureSpec:
        """Read what :meth:`to_json` wrote, of whichever representation.

        Raises:
            FeatureError: When it is not a FeatureSpec, is of a newer schema, or was changed since.
        """
        try:
            content: dict[str, Any] = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise FeatureError(f"not a FeatureSpec: {error}", "Write it with FeatureSpec.to_json") from None
        version = content.get("schema_version", SCHEMA_VERSION)
        if version not in (1, SCHEMA_VERSION):
            raise FeatureError(f"FeatureSpec schema {version} is unknown here", "Upgrade mlaas-ray")
        written = content.pop("sha256", None)
        if written is not None and written != _digest(content):
            raise FeatureError(
                "the FeatureSpec was changed after it was written",
                "Restore the file, or take out its sha256 if the change is meant",
            )
        # schema 1 had no definitions, objects or selection
        content["schema_version"] = SCHEMA_VERSION
        kind = cls
        if content.get("representation") == "grid":
            from mlaas_ray.core.grid import GridSpec  # which is made of this class

            kind = GridSpec
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            raise FeatureError(
                f"not a FeatureSpec: {_reasons(error)}", "Write it with FeatureSpec.to_json"
            ) from None


def _extent(seen: Statistics, normalisation: Normalisation) -> tuple[float, float]:
    """Return the centre and width of what was seen, as the normalisation has it."""
    if normalisation == "minmax":
        assert seen.min is not None
        assert seen.max is not None
        return seen.min, seen.max - seen.min
    if normalisation == "standard":
        return seen.mean, seen.std
    if not seen.quantiles:
        raise FeatureError("the statistics have no quantiles to normalise by", "Make the features anew")
    quartiles = seen.quantiles[0.75] - seen.quantiles[0.25]
    return seen.quantiles[0.5], (
        quartiles / _QUARTILES if normalisation == "softclip" else quartiles
    ) or seen.std


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _reasons(error: ValidationError) -> str:
    """Put pydantic's complaints on one line."""
    return "; ".join(
        ".".join(map(str, item["loc"]))
        + (": " if item["loc"] else "")
        + item["msg"].removeprefix("Value error, ")
        for item in error.errors()
    )
