"""Source: one input file, resolved: where it lies, where else, and what a catalogue says of it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """One input file.

    Attributes:
        path: Absolute path or URL, and the file's name in messages and records.
        alternatives: Other URLs of the same file, to be tried in this order when the first fails.
        size: Bytes, where a catalogue or listing says so.
        adler32: Checksum as 8 hexadecimal digits, where a catalogue says so.
        site: Where the catalogue says it lies.
        entries: Events, where the catalogue says so.
        local: Path of this node's copy of a remote file, to be tried before all others.
        patience: Seconds that a server which has answered before may be away; 0 gives up after some attempts.
        tree: Name of the tree, where it was named with the file: ``a.root:Events``.
    """

    path: str
    alternatives: tuple[str, ...] = ()
    size: int | None = None
    adler32: str | None = None
    site: str | None = None
    entries: int | None = None
    local: str | None = None
    patience: float = field(default=0.0, compare=False)
    tree: str | None = None

    @property
    def urls(self) -> tuple[str, ...]:
        """All places, in the order to try them."""
        remote = (self.path, *self.alternatives)
        return (self.local, *remote) if self.local else remote

    def __str__(self) -> str:
        return self.path
