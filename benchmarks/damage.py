"""How much damage is noticed: one bit flipped in a basket, by codec, and who notices it.

``codec``: decompressing fails or its checksum does not fit. ``structure``: sizes, offsets, counters or heads
contradict each other. ``range``: a value lies outside the range that the first pass saw. ``nothing``: the
flip changed no value. ``missed``: a value is wrong, and nobody noticed. Baskets that would not become smaller
are stored bare, whatever the codec.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import awkward as ak
import numpy as np
import uproot
from rich.console import Console
from rich.table import Table

from mlaas_ray.core import Feature, FeatureSpec
from mlaas_ray.core.columns import Jagged
from mlaas_ray.core.errors import DataError
from mlaas_ray.core.statistics import Statistics
from mlaas_ray.streaming.baskets import BasketReader
from mlaas_ray.streaming.codecs import CodecError
from mlaas_ray.streaming.scatter import Bounds, scatter

EVENTS = 5_000
LENGTH = 12
CODECS = {
    "none": None,
    "zlib": uproot.ZLIB(1),
    "lz4": uproot.LZ4(4),
    "lzma": uproot.LZMA(1),
    "zstd": uproot.ZSTD(5),
}
OUTCOMES = ("codec", "structure", "range", "nothing", "missed")


def rounded(values: np.ndarray) -> np.ndarray:
    """Keep 10 bits of each mantissa."""
    words = values.astype(np.float32).view(np.uint32)
    return (words & np.uint32(0xFFFFE000)).view(np.float32)


def write_file(path: Path, codec: uproot.compression.Compression | None) -> None:
    """Write flat and jagged branches: energies and angles to 10 bits, as NanoAOD's; integers, flags."""
    random = np.random.default_rng(0)
    counts = random.poisson(4, EVENTS)
    total = int(counts.sum())
    fields = {
        "pt": rounded(random.exponential(25, total) + 3),
        "phi": rounded(random.uniform(-3.14, 3.14, total)),
        "id": random.integers(-1, 12, total).astype(np.int32),
        "tight": random.random(total) < 0.4,
    }
    arrays = {
        "MET": rounded(random.gamma(2, 20, EVENTS)),
        "PV": random.poisson(15, EVENTS).astype(np.int32),
        "Jet": ak.zip({name: ak.unflatten(values, counts) for name, values in fields.items()}),
    }
    with uproot.recreate(path, compression=codec) as file:
        types = {name: (getattr(a, "type", None) and a.type.content) or a.dtype for name, a in arrays.items()}
        file.mktree("Events", types).extend(arrays)


class Trial:
    """One file, in memory, to be damaged again and again."""

    def __init__(self, path: Path) -> None:
        tree = uproot.open(path)["Events"]
        self.reader = BasketReader(dict(tree.items()), tree.num_entries, path.name)
        self.names = list(tree.keys())
        content = memoryview(path.read_bytes())
        self.chunks = [bytes(content[a:b]) for a, b in self.reader.ranges(self.names, 0, EVENTS)]
        columns = self.columns(self.chunks)
        features = []
        for name, column in columns.items():
            values = column.content if isinstance(column, Jagged) else column
            jagged = isinstance(column, Jagged)
            features.append(
                Feature(
                    name=name,
                    kind="jagged" if jagged else "flat",
                    length=LENGTH if jagged else 1,
                    statistics=Statistics.of(values),
                )
            )
        self.spec = FeatureSpec.of(features)
        self.bounds = Bounds.of(self.spec)
        self.rows = np.empty((EVENTS, self.spec.width), np.float32)
        scatter(columns, self.spec, self.rows)

    def columns(self, chunks: list[bytes]) -> dict[str, object]:
        """Decode, by reference to nothing that is reused."""
        return self.reader.decode([memoryview(chunk) for chunk in chunks], self.names, 0, EVENTS)

    def flip(self, random: np.random.Generator) -> str:
        """Flip one bit of one basket's compressed values, and return who notices."""
        chunks = list(self.chunks)
        sizes = np.array([len(chunk) for chunk in chunks])
        number = int(random.choice(len(chunks), p=sizes / sizes.sum()))
        damaged = bytearray(chunks[number])
        damaged[int(random.integers(len(damaged)))] ^= 1 << int(random.integers(8))
        chunks[number] = bytes(damaged)
        try:
            columns = self.columns(chunks)
        except DataError as error:
            return "codec" if isinstance(error.__cause__, CodecError) else "structure"
        rows = np.empty_like(self.rows)
        outside = scatter(columns, self.spec, rows, bounds=self.bounds)
        if outside.any():
            return "range"
        return "nothing" if np.array_equal(rows, self.rows, equal_nan=True) else "missed"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=400)
    options = parser.parse_args()
    table = Table("codec", *OUTCOMES, "noticed", title=f"{options.flips} flips each")
    for name, codec in CODECS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.root"
            write_file(path, codec)
            trial = Trial(path)
        random = np.random.default_rng(1)
        found = Counter(trial.flip(random) for _ in range(options.flips))
        noticed = sum(found[outcome] for outcome in ("codec", "structure", "range"))
        share = noticed / max(1, noticed + found["missed"])
        table.add_row(name, *(str(found[outcome]) for outcome in OUTCOMES), f"{share:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
