"""Our own networks, as far as they are the same in all frameworks: options, and what of a row they see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from mlaas_ray.core import FeatureSpec, GridSpec
from mlaas_ray.core.errors import JobError, ModelError
from mlaas_ray.core.settings import Settings
from mlaas_ray.training.batches import Integers
from mlaas_ray.training.framework import Setup

Sizes = tuple[Annotated[int, Field(ge=1)], ...]


def _odd(value: int) -> int:
    """Refuse a kernel without a middle: frameworks place it differently."""
    if value % 2 == 0:
        raise ValueError("give an odd number")
    return value


class Mlp(Settings):
    """A multilayer perceptron with GELU.

    Attributes:
        hidden: Nodes of each hidden layer.
        dropout: Share of the nodes that are left out of each step.
    """

    hidden: Sizes = (128, 64, 32)
    dropout: float = Field(default=0.1, ge=0, lt=1)


class Periodic(Mlp):
    """A multilayer perceptron that also sees cosines of each column, and which values there are.

    After Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning, NeurIPS 2022: a
    value z becomes z and three mixtures of cos(2 pi f z + phase) over learnt frequencies f.

    Attributes:
        frequencies: Cosines of each column.
    """

    hidden: Sizes = (256, 128)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    frequencies: int = Field(default=8, ge=1)


# Mixtures of the cosines of a column; deviation of the first frequencies, per unit of a normalised value.
MIXTURES = 3
FREQUENCY = 0.1


class MaskedLinear(Mlp):
    """The same, but its first layer also sees which values there are: see ``jagged_array_linear``."""


class DeepSets(Settings):
    """One network for every object of a collection, their sum, and a network over that and the flat values.

    After Zaheer et al., Deep Sets, NeurIPS 2017.

    Attributes:
        objects: Nodes of the layers that see one object.
        pool: How objects become one: ``sum``, ``mean`` or ``max``.
        hidden: Nodes of the layers after that.
        dropout: Share of their nodes that are left out of each step.
    """

    objects: Sizes = (64, 64)
    pool: Literal["sum", "mean", "max"] = "sum"
    hidden: Sizes = (64, 32)
    dropout: float = Field(default=0.1, ge=0, lt=1)


class Cnn(Settings):
    """Convolutions over each view's images, and a network over what they find and the scalars.

    Attributes:
        channels: Filters of each convolution; after each, the image is halved while it has 4 cells or more.
        kernel: Cells a filter sees along each axis; odd.
        hidden: Nodes of the layers after that.
        dropout: Share of their nodes that are left out of each step.
    """

    channels: Sizes = (16, 32)
    kernel: Annotated[int, AfterValidator(_odd)] = Field(default=3, ge=1, le=15)
    hidden: Sizes = (64,)
    dropout: float = Field(default=0.1, ge=0, lt=1)


# The first is the usual one.
MODELS: dict[str, type[Settings]] = {
    "periodic": Periodic,
    "mlp": Mlp,
    "masked_linear": MaskedLinear,
    "deepsets": DeepSets,
    "cnn": Cnn,
}


def options_of(setup: Setup) -> Settings:
    """Check the options of one of our models.

    Raises:
        ModelError: For one that it does not have.
    """
    try:
        return MODELS[setup.model.name].of(setup.options, f"model {setup.model.name}")
    except JobError as error:
        raise ModelError(error.message, error.remedy) from None


@dataclass(frozen=True)
class Collection:
    """Objects of a row.

    Attributes:
        name: Such as ``Jet``.
        columns: ``(objects, variables)``: where each value lies.
    """

    name: str
    columns: Integers


@dataclass(frozen=True)
class Objects:
    """A row as sequences of objects.

    Attributes:
        flat: Columns that belong to no object, ``(n,)``.
        collections: The sequences.
    """

    flat: Integers
    collections: tuple[Collection, ...]


def objects_of(features: FeatureSpec) -> Objects:
    """Take a row apart into objects; branches of one collection and length make one sequence.

    Raises:
        ModelError: When there are none.
    """
    flat: list[int] = []
    found: dict[tuple[str, int], list[range]] = {}
    for feature in [] if isinstance(features, GridSpec) else features.features:
        start = features.starts[feature.name]
        columns = range(start, start + len(feature.columns))
        if feature.kind == "jagged" and len(columns):
            found.setdefault((feature.name.partition("_")[0], len(columns)), []).append(columns)
        else:
            flat += columns
    if not found:
        raise ModelError("the model deepsets needs jagged branches, and there are none", "Use mlp")
    return Objects(
        np.array(flat, dtype=np.int64),
        tuple(Collection(name, np.array(parts, dtype=np.int64).T) for (name, _), parts in found.items()),
    )


def waved(features: FeatureSpec) -> int:
    """Return how many columns, the first ones, are seen through cosines: all but an image's cells."""
    return images_of(features).scalars if isinstance(features, GridSpec) else features.width


def lacking(features: FeatureSpec) -> Integers:
    """Return the columns in which some events have no value: ``(n,)``."""
    found: list[int] = []
    for feature in [] if isinstance(features, GridSpec) else features.features:
        seen = feature.statistics
        if feature.kind == "jagged" or (seen and seen.nan + seen.infinite + seen.missing > 0):
            start = features.starts[feature.name]
            found += range(start, start + len(feature.columns))
    return np.array(found, dtype=np.int64)


@dataclass(frozen=True)
class Image:
    """The images of one view in a row.

    Attributes:
        start: Its first column.
        shape: Channels, rows, columns.
    """

    start: int
    shape: tuple[int, int, int]

    @property
    def stop(self) -> int:
        """End of its columns."""
        return self.start + int(np.prod(self.shape))


@dataclass(frozen=True)
class Images:
    """A row as images.

    Attributes:
        scalars: How many columns come before them.
        views: The images.
    """

    scalars: int
    views: tuple[Image, ...]


def images_of(features: FeatureSpec) -> Images:
    """Take a row of a grid apart into images.

    Raises:
        ModelError: When it is none.
    """
    if not isinstance(features, GridSpec):
        raise ModelError(
            "the model cnn needs images, and the inputs are vectors", "Say inputs.representation: grid"
        )
    firsts = {plane.view.name: plane.start for plane in reversed(features.planes)}
    views = tuple(Image(firsts[view.name], view.shape) for view in features.views)
    return Images(features.vector.width if features.vector else 0, views)


def halvings(size: int, layers: int) -> int:
    """Return after how many of some convolutions an image of that size along its shorter axis is halved."""
    count = 0
    while count < layers and size >= 4:
        size, count = size // 2, count + 1
    return count
