"""Recall: the whole result of a first pass, to and from the memo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.statistics import Sketches
from mlaas_ray.streaming.memo import Memo, pack_layout, unpack_layout
from mlaas_ray.streaming.scan import Request, ScannedFile
from mlaas_ray.streaming.source import Source

if TYPE_CHECKING:
    from mlaas_ray.streaming.first_pass import FirstPass, Sample

# What differs from file to file; the rest is kept once for all that have it in common.
_OWN = ("tree", "format", "uuid", "size", "entries", "boundaries", "bytes", "beside")


@dataclass(frozen=True)
class Recalled:
    """What is remembered of a first pass.

    Attributes:
        content: As :func:`remember` wrote it.
    """

    content: dict[str, Any]

    def result(
        self, samples: tuple[Sample, ...], sources: Sequence[tuple[Source, int]], request: Request
    ) -> FirstPass:
        """Make the first pass of these samples, whose files are the remembered ones."""
        from mlaas_ray.streaming.first_pass import FirstPass

        content = self.content
        layouts = [unpack_layout(layout) for layout in content["layouts"]]
        files = []
        for place, layout, *own in content["files"]:
            source, dataset = sources[place]
            values = dict(zip(_OWN, own, strict=True))
            values |= {name: tuple(values[name]) for name in ("boundaries", "beside")}
            files.append(ScannedFile(source=source, dataset=dataset, **values, **layouts[layout]))
        features = request.features or FeatureSpec.from_json(content["features"])
        return FirstPass(
            samples,
            tuple(files),
            features,
            missing={name: tuple(paths) for name, paths in content["missing"].items()},
            sampled=content["sampled"],
            key=tuple(content["key"]),
            max_events=request.reading.max_events,
            sketches=tuple(Sketches.from_document(one) for one in content["sketches"]),
            digests=tuple(content["digests"]),
        )


def recall(memo: Memo, key: Any) -> Recalled | None:
    """Return what is remembered under a key, if anything."""
    content = memo.get("total", key)
    return None if content is None else Recalled(content)


def remember(memo: Memo, key: Any, found: FirstPass) -> None:
    """Keep a first pass under a key."""
    named = [(index, source) for index, sample in enumerate(found.samples) for source in sample.sources]
    place = {name: number for number, name in enumerate(named)}
    numbers: dict[int, int] = {}
    layouts: list[dict[str, Any]] = []
    files = []
    for file in found.files:
        # files with the same branches share their description
        if id(file.branches) not in numbers:
            numbers[id(file.branches)] = len(layouts)
            layouts.append(pack_layout(file))
        at = place[file.dataset, file.source]
        files.append([at, numbers[id(file.branches)], *(getattr(file, name) for name in _OWN)])
    memo.put(
        "total",
        key,
        {
            "files": files,
            "layouts": layouts,
            "features": found.features.to_json(),
            "missing": found.missing,
            "sampled": found.sampled,
            "key": found.key,
            "sketches": [one.document() for one in found.sketches],
            "digests": [dict(one) for one in found.digests],
        },
    )
