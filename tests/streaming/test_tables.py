from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlaas_ray.core.columns import Columns, Jagged, to_awkward
from mlaas_ray.core.errors import (
    BranchMissingError,
    FileMissingError,
    FileUnreadableError,
    JobError,
)
from mlaas_ray.core.expressions import Expression
from mlaas_ray.streaming import rows
from mlaas_ray.streaming.events import Events, open_events
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.tables import open_table
from tests.webserver import running_webserver

EVENTS = 50
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small texts have many blocks."""
    monkeypatch.setattr(rows, "BLOCK", 300)


def sample() -> dict[str, list[Any]]:
    """Numbers, lists, and events that lack the one or the other."""
    random = np.random.default_rng(5)
    return {
        "event": [2**53 + entry for entry in range(1, EVENTS + 1)],
        "MET_pt": [None if entry % 7 == 3 else random.exponential(30.0) for entry in range(EVENTS)],
        "Jet_pt": [
            None if entry % 11 == 5 else random.exponential(40.0, entry % 4).tolist()
            for entry in range(EVENTS)
        ],
    }


def write_parquet(path: Path, columns: Mapping[str, Any]) -> None:
    pq.write_table(pa.table(dict(columns)), path, row_group_size=8)


def write_jsonl(path: Path, columns: Mapping[str, Any]) -> None:
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    path.write_bytes(packed(path, "\n".join(lines).encode()))


def write_csv(path: Path, columns: Mapping[str, Any]) -> None:
    """Write the columns without lists, with a newline of Windows and a blank line."""
    flat = {name: values for name, values in columns.items() if not isinstance(values[0], list)}
    lines = [
        ",".join("" if value is None else repr(value) for value in row)
        for row in zip(*flat.values(), strict=True)
    ]
    lines.insert(4, "")
    path.write_bytes(packed(path, "\r\n".join([",".join(flat), *lines, ""]).encode()))


def packed(path: Path, text: bytes) -> bytes:
    pack = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    }
    return pack.get(path.suffix, lambda data: data)(text)


WRITERS = {
    "a.parquet": write_parquet,
    "a.jsonl": write_jsonl,
    "a.json.bz2": write_jsonl,
    "a.csv": write_csv,
    "a.csv.gz": write_csv,
    "a.csv.zst": write_csv,
}


def read(events: Events, start: int = 0, stop: int | None = None) -> Columns:
    stop = events.entries if stop is None else stop
    return events.decode(events.fetch(list(events.branches), start, stop))


def text(tmp_path: Path, name: str, content: str) -> Events:
    (tmp_path / name).write_bytes(content.encode())
    return open_table(Source(str(tmp_path / name)))


def assert_equal(columns: Columns, expected: Mapping[str, list[Any]], start: int, stop: int) -> None:
    """Compare, where null is NaN and a list that is null has no values."""
    for name, column in columns.items():
        due = [
            ([] if name == "Jet_pt" else np.nan) if value is None else value
            for value in expected[name][start:stop]
        ]
        found = to_awkward(column).to_list()
        assert len(found) == stop - start
        for one, other in zip(found, due, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", WRITERS)
def test_every_range_of_a_table_gives_its_numbers(tmp_path: Path, name: str) -> None:
    expected = sample()
    WRITERS[name](tmp_path / name, expected)
    events = open_events(str(tmp_path / name))
    assert (events.entries, events.tree, events.size) == (EVENTS, "", (tmp_path / name).stat().st_size)
    assert set(events.branches) == set(expected) - ({"Jet_pt"} if "csv" in name else set())
    edges = events.boundaries(["MET_pt"])
    assert (edges[0], edges[-1]) == (0, EVENTS)
    assert len(edges) > 3
    assert list(edges) == sorted(set(edges))
    for start, stop in [(0, EVENTS), (edges[1], edges[2]), (edges[1] - 1, edges[2] + 1), (5, 5), (49, 50)]:
        assert_equal(read(events, start, stop), expected, start, stop)
    # more digits than a float has
    assert read(events)["event"].dtype == np.int64  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.csv"])
def test_a_table_is_read_from_servers(tmp_path: Path, name: str) -> None:
    expected = sample()
    writer = {"parquet": write_parquet, "jsonl": write_jsonl, "csv": write_csv}[name.split(".")[1]]
    writer(tmp_path / name, expected)
    with running_webserver(tmp_path) as web:
        events = open_events(f"{web.url}/{name}")
        assert_equal(read(events), expected, 0, EVENTS)
        assert events.uuid == open_events(str(tmp_path / name)).uuid


@pytest.mark.xrootd
def test_a_table_is_read_over_xrootd(tmp_path: Path, xrootd_server: Callable[[Path], str]) -> None:
    expected = sample()
    write_parquet(tmp_path / "a.parquet", expected)
    assert_equal(read(open_events(f"{xrootd_server(tmp_path)}/a.parquet")), expected, 0, EVENTS)


def test_of_parquet_only_the_wanted_columns_are_transferred(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    write_parquet(tmp_path / "a.parquet", {f"x{n}": random.random(4_000) for n in range(10)})
    with running_webserver(tmp_path) as web:
        events = open_events(f"{web.url}/a.parquet")
        asked = len(web.requests)
        events.decode(events.fetch(["x3"], 0, 8))
        [(_, span)] = web.requests[asked:]
        first, last = map(int, span.removeprefix("bytes=").split("-"))
        assert last - first < 500


def test_a_large_row_group_is_fetched_and_decoded_once_for_all_its_pieces(tmp_path: Path) -> None:
    values = np.random.default_rng(2).random(1000)
    pq.write_table(pa.table({"x": values, "y": values}), tmp_path / "a.parquet")
    with running_webserver(tmp_path) as web:
        events = open_events(f"{web.url}/a.parquet")
        asked = len(web.requests)
        for start in (300, 0, 700):
            found = events.decode(events.fetch(["y"], start, start + 300))
            np.testing.assert_array_equal(found["y"], values[start : start + 300])
        assert len(web.requests) == asked + 1


def test_parquet_types_become_columns_or_are_left_out(tmp_path: Path) -> None:
    columns = {
        "half": pa.array(np.array([1, 2, 3], np.float16)),
        "flag": pa.array([True, None, False]),
        "dotted.name": pa.array([1, 2, 3], pa.uint8()),
        "dotted": pa.array([4, 5, 6]),
        "lists": pa.array([[1, None], [], [2]], pa.large_list(pa.int32())),
        "fixed": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32(), 2)),
        "tensor": pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float32(), [2, 2]),
            pa.array([[1, 2, 3, 4]] * 3, pa.list_(pa.float32(), 4)),
        ),
        "nested": pa.array([[[1], [2, 3]], [], [[4]]]),
        "word": pa.array(["a", "b", "c"]),
        "struct": pa.array([{"x": 1, "y": 2}, None, {"x": 3, "y": None}]),
        "structs": pa.array([[{"x": 1, "name": "a", "p": {"z": 0.5}}, {"x": None}], None, [{"p": {"z": 2}}]]),
        "pairs": pa.array(
            [[{"x": 1}, {"x": 2}], None, [{"x": 3}, None]], pa.list_(pa.struct({"x": pa.int8()}), 2)
        ),
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=2)
    events = open_table(Source(str(path)))
    assert events.left_out == {
        "nested": "list<element: list<element: int64>>",
        "word": "string",
        "structs.name": "list<item: string>",
    }
    kinds = {name: (branch.kind, branch.length) for name, branch in events.branches.items()}
    assert (kinds["lists"], kinds["fixed"], kinds["tensor"]) == (("jagged", 1), ("fixed", 2), ("fixed", 4))
    found = read(events)
    np.testing.assert_array_equal(found["half"], np.array([1, 2, 3], np.float32))
    np.testing.assert_array_equal(found["flag"], [1, np.nan, 0])
    np.testing.assert_array_equal(Expression.parse("~flag").evaluate(found), [False, True, True])
    np.testing.assert_array_equal(found["dotted.name"], [1, 2, 3])
    np.testing.assert_array_equal(found["dotted"], [4, 5, 6])
    np.testing.assert_array_equal(found["fixed"], [[1, 2], [np.nan, np.nan], [3, 4]])
    np.testing.assert_array_equal(found["tensor"], [[1, 2, 3, 4]] * 3)
    np.testing.assert_array_equal(found["struct.x"], [1, np.nan, 3])
    np.testing.assert_array_equal(found["struct.y"], [2, np.nan, np.nan])
    np.testing.assert_array_equal(found["pairs.x"], [[1, 2], [np.nan, np.nan], [3, np.nan]])
    for member, want in {"structs.x": [1, np.nan, np.nan], "structs.p.z": [0.5, np.nan, 2]}.items():
        column = found[member]
        assert isinstance(column, Jagged)
        assert column.offsets.tolist() == [0, 2, 2, 3]
        np.testing.assert_array_equal(column.content, want)
    last = events.decode(events.fetch(["structs.x", "struct.y"], 1, 3))
    assert isinstance(last["structs.x"], Jagged)
    assert last["structs.x"].offsets.tolist() == [0, 0, 1]
    flattened = open_table(Source(str(path)), nested="flatten")
    nested = flattened.decode(flattened.fetch(["nested"], 1, 3))["nested"]
    assert isinstance(nested, Jagged)
    assert ak.to_list(to_awkward(nested)) == [[], [4]]


def test_a_damaged_column_of_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    random = np.random.default_rng(1)
    table = pa.table({"good": random.random(1000), "bad": random.random(1000)})
    pq.write_table(table, path, write_page_checksum=True, use_dictionary=False)
    chunk = pq.read_metadata(path).row_group(0).column(1)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    events = open_table(Source(str(path)))
    assert events.decode(events.fetch(["good"], 0, 1000)).keys() == {"good"}
    with pytest.raises(FileUnreadableError, match=r"a.parquet, column 'bad'"):
        events.decode(events.fetch(["good", "bad"], 0, 1000))


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_a_parquet_file_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, sample())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FileUnreadableError, match=r"a.parquet, .*(cut short|too short)"):
        open_table(Source(str(path)))


def test_a_csv_column_that_holds_text_is_left_out_with_the_reason(tmp_path: Path) -> None:
    lines = [f"{entry},{entry}.5,{'oops' if entry == 70 else entry},name,," for entry in range(100)]
    events = text(tmp_path, "a.csv", "\n".join(["a,b,c,d,e,", *lines]))
    assert set(events.branches) == {"a", "b"}
    assert events.left_out == {
        "c": "text: 'oops' in line 72",
        "d": "text",
        "e": "no value in any row",
        "column 6": "no value in any row",
    }
    np.testing.assert_array_equal(read(events, 60, 80)["b"], np.arange(60, 80) + 0.5)


def test_csv_columns_go_by_their_names_and_quotes_may_hold_anything(tmp_path: Path) -> None:
    row = '{0},"a ""word"", and\n\na line",{1}\n'
    events = text(tmp_path, "a.csv", 'z,"a,b",b\n' + "".join(row.format(n, n / 2) for n in range(40)))
    assert (events.entries, list(events.branches), list(events.left_out)) == (40, ["z", "b"], ["a,b"])
    np.testing.assert_array_equal(read(events)["z"], np.arange(40))
    np.testing.assert_array_equal(read(events)["b"], np.arange(40) / 2)


def test_whole_numbers_that_become_fractions_later_are_read_as_such(tmp_path: Path) -> None:
    values = [*range(100), 0.5]
    for name, lines in {
        "a.csv": ["x", *map(str, values)],
        "a.jsonl": [json.dumps({"x": value}) for value in values],
    }.items():
        np.testing.assert_array_equal(read(text(tmp_path, name, "\n".join(lines)), 90)["x"], values[90:])


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        (
            "a.csv",
            "a,b\n" + "1,2\n" * 100 + "\n3\n4,5\n",
            FileUnreadableError,
            "line 103: .*Expected 2 columns, got 1",
        ),
        ("a.csv", "a,b\n1,2\n3,4,5\n", FileUnreadableError, "line 3: .*Expected 2 columns, got 3"),
        (
            "a.csv",
            "\n1.5,2\n3,4\n",
            FileUnreadableError,
            "line 2: it holds numbers instead of the columns' names",
        ),
        ("a.csv", "a;b\n1;2\n", FileUnreadableError, "line 1: its names are not separated by commas"),
        ("a.csv", "a,b,a\n1,2,3\n", FileUnreadableError, "line 1: it names the column 'a' twice"),
        ("a.jsonl", '{"a": 1}\n' * 100 + '{"a": 1\n', FileUnreadableError, "line 101: "),
        (
            "a.jsonl",
            '{"a": 1}\n\n{"a": "x"}\n',
            FileUnreadableError,
            r"line 3: .*/a\) changed from number to string",
        ),
        ("a.json", '[{"a": 1},\n{"a": 2}]\n', FileUnreadableError, "line 1: .*changed from object to array"),
        ("a.json", '{\n"a": 1\n}\n', FileUnreadableError, "lines 1 to 3: they hold 1 rows instead of 3"),
    ],
)
def test_a_text_that_is_not_what_it_should_be_is_refused_by_its_line(
    tmp_path: Path, name: str, content: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=rf"{name}.*{message}"):
        text(tmp_path, name, content)


def test_json_columns_may_come_late_hold_nan_and_be_no_numbers(tmp_path: Path) -> None:
    lines = ['{"a": NaN, "s": "x", "n": null, "o": {"k": 1}, "m": 1}'] * 20 + [
        '{"late": [1, null], "m": true}'
    ]
    events = text(tmp_path, "a.jsonl", "\n".join(lines))
    assert events.left_out == {
        "s": "string",
        "n": "no value in any row",
        "o": "struct<k: int64>",
        "m": "int64 and bool",
    }
    found = read(events, 19)
    np.testing.assert_array_equal(found["a"], [np.nan, np.nan])
    assert isinstance(found["late"], Jagged)
    np.testing.assert_array_equal(found["late"].offsets, [0, 0, 2])
    np.testing.assert_array_equal(found["late"].content, [1, np.nan])


def test_a_packed_text_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 10_000)[:-20])
    with pytest.raises(FileUnreadableError, match=r"cannot unpack .*a.csv.gz"):
        open_table(Source(str(path)))


def test_the_identifier_is_the_contents(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.csv"):
        uuids = set()
        for values in ([1, 2], [1, 3]):
            WRITERS[name](tmp_path / name, {"x": values})
            uuids.add(open_table(Source(str(tmp_path / name))).uuid)
        assert len(uuids) == 2


def test_what_is_no_table_not_there_or_no_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"a.root is no table"):
        open_table(Source("/data/a.root"))
    with pytest.raises(FileMissingError, match=r"none.csv"):
        open_table(Source(str(tmp_path / "none.csv")))
    for name in ("a.parquet", "a.csv"):
        WRITERS[name](tmp_path / name, {"MET_pt": [1.0]})
        with pytest.raises(BranchMissingError, match=rf"'MET_pf' in .*{name}.*Did you mean 'MET_pt'"):
            open_table(Source(str(tmp_path / name))).fetch(["MET_pf"], 0, 1)
