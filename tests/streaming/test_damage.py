from __future__ import annotations

from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from mlaas_ray.core.columns import Column, Jagged
from mlaas_ray.core.errors import MlaasError
from mlaas_ray.streaming.rootfile import open_tree
from mlaas_ray.streaming.source import Source

CODECS = {
    "none": None,
    "zlib": uproot.ZLIB(1),
    "lz4": uproot.LZ4(4),
    "lzma": uproot.LZMA(1),
    "zstd": uproot.ZSTD(5),
}
TELLING = ("zlib", "lz4", "lzma")
NAMES = ["MET", "nJet", "Jet_pt", "Jet_id"]


@pytest.fixture(params=CODECS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A small file of one codec."""
    random = np.random.default_rng(5)
    counts = random.integers(0, 5, 600)
    arrays: dict[str, Any] = {
        "MET": random.exponential(30, 600).astype(np.float32),
        "Jet": ak.zip(
            {
                "pt": ak.unflatten(random.exponential(30, counts.sum()).round(1), counts),
                "id": ak.unflatten(random.integers(0, 7, counts.sum()).astype(np.int32), counts),
            }
        ),
    }
    path = tmp_path / "whole.root"
    with uproot.recreate(path, compression=CODECS[request.param]) as file:
        tree = file.mktree("Events", {"MET": np.dtype("f4"), "Jet": arrays["Jet"].type.content})
        for start in (0, 300):
            tree.extend({name: array[start : start + 300] for name, array in arrays.items()})
    return request.param, path


def read(path: Path, names: list[str] | None = NAMES) -> dict[str, Column]:
    events = open_tree(Source(str(path)), None, "leave")
    return dict(events.decode(events.fetch(names or list(events.branches), 0, events.entries)))


def payloads(path: Path) -> list[int]:
    """Positions of the bytes of the tree's baskets: compressed ones if there are, without their headers."""
    packed: list[int] = []
    bare: list[int] = []
    with uproot.open(path) as file:
        for branch in file["Events"].branches:
            for index in range(branch.num_baskets):
                seek, size = (
                    int(branch.member("fBasketSeek")[index]),
                    int(branch.member("fBasketBytes")[index]),
                )
                key = branch.basket_key(index)
                if key.fNbytes - key.fKeylen == key.fObjlen:  # it would not become smaller
                    bare += range(seek + key.fKeylen, seek + size)
                else:
                    packed += range(seek + key.fKeylen + 9, seek + size)
    return packed or bare


def same(a: dict[str, Column], b: dict[str, Column]) -> bool:
    for name in a:
        one, two = a[name], b[name]
        assert isinstance(one, Jagged) == isinstance(two, Jagged)
        if isinstance(one, Jagged) and isinstance(two, Jagged):
            if not np.array_equal(one.offsets, two.offsets):
                return False
            one, two = one.content, two.content
        if not np.array_equal(np.asarray(one), np.asarray(two), equal_nan=True):
            return False
    return True


def test_a_flipped_bit_of_any_basket_is_told_where_the_codec_can(
    written: tuple[str, Path], tmp_path: Path
) -> None:
    codec, path = written
    whole, content = read(path), path.read_bytes()
    random = np.random.default_rng(7)
    told = wrong = 0
    for position in random.choice(payloads(path), 60):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(random.integers(8))
        (tmp_path / "damaged.root").write_bytes(damaged)
        try:
            wrong += not same(whole, read(tmp_path / "damaged.root"))
        except MlaasError as error:
            told += "damaged.root, tree 'Events', branch '" in str(error)
    if codec in TELLING:
        assert wrong == 0
        assert told >= 57  # a codec may leave a bit unused
    else:
        assert told + wrong > 0


def test_a_flipped_bit_anywhere_raises_our_errors_only(written: tuple[str, Path], tmp_path: Path) -> None:
    _, path = written
    whole, content = read(path), path.read_bytes()
    random = np.random.default_rng(8)
    fine = told = 0
    for position in random.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(random.integers(8))
        (tmp_path / "damaged.root").write_bytes(damaged)
        try:
            fine += same(whole, read(tmp_path / "damaged.root"))
        except MlaasError:
            told += 1
    assert fine
    assert told


def test_a_file_cut_at_any_of_20_places_is_refused(written: tuple[str, Path], tmp_path: Path) -> None:
    _, path = written
    content = path.read_bytes()
    for length in np.linspace(0, len(content) - 1, 20).astype(int):
        (tmp_path / "short.root").write_bytes(content[:length])
        with pytest.raises(MlaasError, match=r"short\.root"):
            read(tmp_path / "short.root")


@pytest.mark.parametrize(
    "name",
    ["bitflipped_ww", "not_root", "truncated_NanoAODv5_1.5MB", "zero_bytes"],
)
def test_files_damaged_on_purpose_are_refused_by_name(real_data: Path, name: str) -> None:
    path = real_data / "corner" / f"DERIVED_{name}.root"
    with pytest.raises(MlaasError, match=path.name):
        read(path, None)
