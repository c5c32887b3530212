"""Events: one tree of one open file, whatever its format; the one way everything here is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mlaas_ray.core.columns import Columns, Kind

# What becomes of vector<vector<number>>: left out, or its values of an event in one list.
Nested = Literal["leave", "flatten"]


@dataclass(frozen=True)
class Branch:
    """One branch that can be columns.

    Attributes:
        name: Its name, unique in the tree; ``<branch>.<leaf>`` style names are the file's own.
        kind: ``flat``, ``fixed`` or ``jagged``.
        type: C++ type, for people.
        length: Values of an event when ``fixed``, else 1.
        bytes: Uncompressed bytes of all entries; 0 where the format does not say.
        counter: The branch or field that holds the number of values of each event, where there is one.
    """

    name: str
    kind: Kind
    type: str
    length: int = 1
    bytes: int = 0
    counter: str | None = None


class Events(Protocol):
    """One tree of one open file. Objects are kept per process and used from several threads.

    Attributes:
        path: Path or URL, for messages.
        tree: Name of the tree; empty for formats without.
        format: ``TTree``, ``RNTuple``, ``Parquet``, ``CSV`` or ``JSON lines``.
        uuid: The file's own identifier, the same wherever a copy lies.
        entries: Events.
        size: Bytes of the file.
        branches: What can be columns, by name.
        left_out: What cannot, with its C++ type.
    """

    path: str
    tree: str
    format: str
    uuid: str
    entries: int
    size: int
    branches: Mapping[str, Branch]
    left_out: Mapping[str, str]

    def boundaries(self, names: Sequence[str]) -> tuple[int, ...]:
        """First entry of each cluster that these branches share, and last ``entries``: ``(0, 10, 18)``."""

    def fetch(self, names: Sequence[str], start: int, stop: int) -> Any:
        """Get the bytes of some branches of the entries ``start`` to ``stop`` (not included).

        Waits for I/O and does as little else as the format allows; may be called by several threads.

        Raises:
            DataError: Naming file, tree and branch.
        """

    def decode(self, fetched: Any) -> Columns:
        """Make columns of what :meth:`fetch` got.

        Raises:
            DataError: Naming file, tree and branch.
        """
