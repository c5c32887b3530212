"""Catalog: the repository's packages, each parsed once.

Packages appear and vanish under it (uploads, deletes, publishes of other processes).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlaas_ray.core.errors import EventError, MlaasError, ModelMissingError, PackageError
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.package import ModelPackage
from mlaas_ray.inference.rows import FLOAT32
from mlaas_ray.inference.shipment import ModelKey
from mlaas_ray.repository import ModelVersion, Repository

ENTRIES = 1000


@dataclass(frozen=True)
class Entry:
    """One version of a model, parsed.

    Attributes:
        key: Its name, number and digest.
        version: Its name and number.
        package: The package in the repository.
        features: Its columns; None in a model that came from elsewhere.
        width: Values a row has.
        labels: Class names, in the order of the classes; empty where they are not known.
        dtype: Type of a row's values.
    """

    key: ModelKey
    version: ModelVersion = field(compare=False)
    package: ModelPackage = field(compare=False)
    features: FeatureSpec | None = field(compare=False)
    width: int = field(compare=False)
    labels: list[str] = field(compare=False)
    dtype: np.dtype[Any] = field(default=FLOAT32, compare=False)


class Catalog:
    """Names to entries.

    Args:
        repository: Where the packages are.
    """

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self._entries: OrderedDict[tuple[object, ...], Entry] = OrderedDict()

    def find(self, model: str) -> Entry:
        """Return the entry of ``name``, ``name:version`` or ``name:alias``; of the only model when empty.

        Raises:
            InvalidNameError: For a name no model may have.
            ModelMissingError: When there is no such model.
            VersionMissingError: When the model has no such version.
            EventError: When no model is named and there are several.
        """
        return self.entry(self.repository.find(model or self.only()))

    def newest(self) -> list[tuple[ModelVersion, Entry | MlaasError]]:
        """Return the newest version of each model, or what is wrong with it."""
        found: list[tuple[ModelVersion, Entry | MlaasError]] = []
        for name in self.repository.names():
            version = ModelVersion(name, 0)
            try:
                version = self.repository.latest(name)
                found.append((version, self.entry(version)))
            except ModelMissingError:  # deleted meanwhile
                continue
            except MlaasError as error:
                found.append((version, error))
        return found

    def only(self) -> str:
        """Return the name of the only model.

        Raises:
            ModelMissingError: When there is none.
            EventError: When there are several.
        """
        names = self.repository.names()
        if len(names) == 1:
            return names[0]
        if not names:
            raise ModelMissingError("the service has no models", "Publish one with mlaas models publish")
        shown = ", ".join(names[:8]) + ("…" if len(names) > 8 else "")
        raise EventError(f"no model is named, and there are {len(names)}: {shown}", 'Send "model": "name"')

    def entry(self, version: ModelVersion) -> Entry:
        """Return the entry of a version.

        Raises:
            ModelMissingError: When there is no such model.
            VersionMissingError: When the model has no such version.
            PackageError: When the package is damaged.
        """
        package = self.repository.get(version.name, version.version)
        # A package never changes; its identity tells it from one of the same name and number.
        key = (version, *package.identity)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _parse(version, package)
            if len(self._entries) > ENTRIES:
                self._entries.popitem(last=False)
        else:
            self._entries.move_to_end(key)
        return entry


def _parse(version: ModelVersion, package: ModelPackage) -> Entry:
    features = package.features
    width = package.signature.width
    if width is None or (features is not None and features.width != width):
        columns = f"its features.json has {features.width}" if features else "it has no fixed width"
        raise PackageError(f"{version}: the model takes {width} values a row, {columns}", "Publish it again")
    key = ModelKey(version.name, version.version, package.digest)
    try:
        dtype = np.dtype(package.signature.inputs[0].dtype)
    except TypeError:
        raise PackageError(f"{version}: the model takes no numbers", "Publish it again") from None
    return Entry(key, version, package, features, width, _labels(package), dtype)


def _labels(package: ModelPackage) -> list[str]:
    """Return a package's class names; none where they cannot be read, for predictions need them not."""
    try:
        return list(package.labels)
    except PackageError:
        return []
