"""ReadingSettings: how files are read, and what may go wrong meanwhile."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mlaas_ray.core.inputs import Names
from mlaas_ray.core.settings import Settings


class BadFiles(Settings):
    """What becomes of a file that cannot be read.

    Attributes:
        policy: ``fail``: the run ends with an error that names it; ``skip``: what cannot be read of it is
            left out and recorded.
        max_fraction: Of all files, how many may be skipped before the run fails after all.
    """

    policy: Literal["fail", "skip"] = "fail"
    max_fraction: float = Field(default=0.1, gt=0, le=1)


class Cache(Settings):
    """Copies of remote files on each node's own disk.

    Attributes:
        folder: Where.
        max_bytes: Size at which the copy used least recently is deleted.
    """

    folder: str
    max_bytes: int = Field(default=50_000_000_000, ge=1)


def _policy(value: object) -> object:
    """Let ``bad_files: skip`` stand for ``bad_files: {policy: skip}``."""
    return {"policy": value} if isinstance(value, str) else value


def _named_before(value: object) -> object:
    """Let the names that modes had before stand for those of today."""
    return {"plan": "workers", "block": "cluster"}.get(value, value) if isinstance(value, str) else value


def _all(value: object) -> object:
    """Let ``max_events: all`` stand for no limit."""
    return None if value == "all" else value


class ReadingSettings(Settings):
    """How files are read.

    Attributes:
        mode: ``workers``: each training worker reads its own events; ``cluster``: Ray Data reads them on
            whichever CPUs of the cluster are free, and sends them through the object store; ``auto``:
            ``workers``, unless these have GPUs and other nodes have CPUs. (Older names: ``plan``, ``block``.)
        redirectors: XRootD redirectors for ``/store/…`` names, tried in this order.
        allow_duplicates: Whether a file may be read twice: named twice, linked, or as a copy.
        bad_files: What becomes of a file that cannot be read.
        missing: What becomes of a branch that some files lack: ``fail``, ``fill`` it: booleans with false,
            others with NaN (or no objects), or ``drop`` it.
        fill: By name or glob, what such a branch is filled with in place of NaN (false, where it is boolean);
            ``.nan`` for no value.
        nested: What becomes of ``vector<vector>`` branches: ``leave`` them out, or ``flatten`` each event's.
        max_events: Events to read at most of each dataset; left out, all.
        sample: Share of each file's clusters that the first pass measures; 1 for all.
        patience_s: Seconds that a server which has answered before is waited for, when no other has the file.
        checksums: Whether files whose adler32 is known are checked before they are read.
        cache: Copies of remote files; left out, none are kept.
        ahead_bytes: Compressed bytes a reader may have fetched ahead.
        in_flight: Reads a reader may have under way at once.
        threads: Blocks that a consumer decodes at once with ``mode: workers``; by default one for each CPU.
    """

    mode: Annotated[Literal["auto", "workers", "cluster"], BeforeValidator(_named_before)] = "auto"
    redirectors: Names = (
        "root://cms-xrd-global.cern.ch/",
        "root://xrootd-cms.infn.it/",
        "root://cmsxrootd.fnal.gov/",
    )
    allow_duplicates: bool = False
    bad_files: Annotated[BadFiles, BeforeValidator(_policy)] = BadFiles()
    missing: Literal["fail", "fill", "drop"] = "fail"
    fill: dict[str, bool | int | float] = Field(default_factory=dict)
    nested: Literal["leave", "flatten"] = "leave"
    max_events: Annotated[int | None, BeforeValidator(_all)] = Field(default=None, ge=1)
    sample: float = Field(default=1.0, gt=0, le=1)
    patience_s: float = Field(default=180.0, ge=0)
    checksums: bool = True
    cache: Cache | None = None
    ahead_bytes: int = Field(default=200_000_000, ge=1)
    in_flight: int = Field(default=6, ge=1)
    threads: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fill and self.missing != "fill":
            raise ValueError(f"fill is for missing: fill, and missing is {self.missing}")
        return self
