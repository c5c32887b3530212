from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlaas_ray.core.errors import FileMissingError, FileUnreadableError, JobError
from mlaas_ray.streaming.events import open_events
from mlaas_ray.streaming.source import Source
from mlaas_ray.streaming.sources import Files, absolute, find_sources
from mlaas_ray.streaming.states import states
from tests.s3 import running_s3

Serve = Callable[[Path], str]

DEAD = "root://127.0.0.1:1/"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.root", "a.root", "sub/c.root", "notes.md", ".hidden/d.root"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def paths(files: Files, *redirectors: str) -> list[str]:
    return [source.path for source in find_sources(files, redirectors=redirectors)]


def test_a_path_is_made_absolute_and_its_size_is_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.root").write_bytes(bytes(12))
    monkeypatch.chdir(folder)
    assert find_sources("a.root") == [Source(str(folder / "a.root"), size=12)]


def test_a_glob_is_sorted_and_a_list_keeps_its_order(folder: Path) -> None:
    assert paths(f"{folder}/*.root") == [str(folder / "a.root"), str(folder / "b.root")]
    assert paths([folder / "b.root", folder / "a.root"]) == [str(folder / "b.root"), str(folder / "a.root")]


def test_a_glob_gives_files_and_only_where_there_are_none_the_folders(folder: Path) -> None:
    (folder / "c.root").mkdir()
    assert paths(f"{folder}/*.root") == [str(folder / "a.root"), str(folder / "b.root")]
    assert paths(f"{folder}/s*") == [str(folder / "sub/c.root")]


def test_a_folder_gives_every_root_file_below_it(folder: Path) -> None:
    assert paths(folder) == [str(folder / name) for name in ("a.root", "b.root", "sub/c.root")]


@pytest.mark.parametrize(
    ("inside", "data"),
    [
        (("1.parquet", "0.parquet", "features.json"), ["0.parquet", "1.parquet"]),
        (("a.csv", "b.csv.gz", "README"), ["a.csv", "b.csv.gz"]),
        (("a.jsonl.zst", "settings.json"), ["a.jsonl.zst"]),
        (("a.json", "b.json.bz2"), ["b.json.bz2"]),
        (("a.json", "b.json"), ["a.json", "b.json"]),
    ],
)
def test_a_folder_gives_what_is_inside(tmp_path: Path, inside: tuple[str, ...], data: list[str]) -> None:
    for name in inside:
        (tmp_path / name).touch()
    assert paths(tmp_path) == [str(tmp_path / name) for name in data]


def test_a_folder_of_several_formats_is_refused(folder: Path) -> None:
    (folder / "d.parquet").touch()
    with pytest.raises(JobError, match=r"holds ROOT \(c.root\) and Parquet \(d.parquet\).*FOLDER/\*.root"):
        find_sources(folder)


def test_a_text_file_names_one_file_a_line(folder: Path) -> None:
    listing = folder / "files.txt"
    listing.write_text(
        f"# samples\n{folder}/b.root\n\n{folder}/sub/*.root  # all\nroot://host//store/x.root\n"
    )
    assert paths(listing) == [
        str(folder / "b.root"),
        str(folder / "sub/c.root"),
        "root://host//store/x.root",
    ]


def test_a_folder_is_searched_through_links_as_a_glob_is(tmp_path: Path) -> None:
    for name in ("data/a.root", "elsewhere/b.root", "elsewhere/deeper/c.root"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    found = paths(tmp_path / "data")
    assert found == [
        str(tmp_path / "data" / name) for name in ("a.root", "linked/b.root", "linked/deeper/c.root")
    ]
    assert paths(f"{tmp_path}/data/**/*.root") == found


def test_links_that_lead_back_are_followed_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.root").touch()
    (tmp_path / "a/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/x").symlink_to(tmp_path / "b")
    (tmp_path / "b/y").symlink_to(tmp_path / "a")
    assert paths(tmp_path / "a") == [str(tmp_path / "a/a.root"), str(tmp_path / "a/x/b.root")]


@pytest.mark.parametrize("name", ["data", "data/*.root", "data/gone.root"])
def test_a_link_to_nowhere_is_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/gone.root").symlink_to("/none/a.root")
    (source,) = find_sources(tmp_path / name)
    with pytest.raises(
        FileMissingError, match=r"data/gone.root is a link to /none/a.root, which is not there"
    ):
        open_events(source)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.root")
    with pytest.raises(JobError, match="no file, but a device or a pipe"):
        find_sources(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / os.fsdecode(b"b/donn\xe9es.root")).touch()
    with pytest.raises(JobError, match=r"donn\\xe9es.root is not UTF-8"):
        find_sources(tmp_path / "b")


def test_what_of_a_folder_or_glob_is_not_read_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    find_sources(folder)
    find_sources(f"{folder}/*")
    first, second = caplog.messages
    assert first.endswith(": not read: notes.md (no suffix of data)")
    assert second.endswith("/*: not read: sub (folders beside files)")


def test_suffixes_are_known_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "A.ROOT").touch()
    (tmp_path / "files.TXT").write_text("A.ROOT")
    assert paths(tmp_path) == paths(tmp_path / "files.TXT") == [str(tmp_path / "A.ROOT")]


@pytest.mark.parametrize(
    "content",
    ["a.root # début".encode(code) for code in ("utf-8-sig", "utf-8", "latin-1", "utf-16")]
    + [b"a.root\r\n", b"# only a comment\na.root\t#1"],
)
def test_a_list_may_be_of_any_editor_and_its_names_are_relative_to_it(
    folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "files.txt").write_bytes(content)
    assert paths(folder / "files.txt") == [str(folder / "a.root")]
    # a file beside the list comes before one of the same name in the current folder
    monkeypatch.chdir(folder / "sub")
    (folder / "sub/a.root").touch()
    assert paths("../files.txt") == [str(folder / "sub/../a.root")]
    (folder / "files.txt").write_text("c.root\n../*/b#1.root")
    (folder / "sub/b#1.root").touch()
    assert paths("../files.txt") == [str(folder / "sub/c.root"), str(folder / "sub/../sub/b#1.root")]


def trees(files: Files) -> list[tuple[str, str | None]]:
    return [(Path(source.path).name, source.tree) for source in find_sources(files)]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.root:Events", [("a.root", "Events")]),
        ("a.root:dir/Events;1", [("a.root", "dir/Events;1")]),
        ("a.root/dir/Events", [("a.root", "dir/Events")]),
        ("[ab].root:Events", [("a.root", "Events"), ("b.root", "Events")]),
        ("*.root/Events", [("a.root", "Events"), ("b.root", "Events")]),
        ("sub:Events", [("c.root", "Events")]),
        ("files.txt:Events", [("b.root", "own"), ("a.root", "Events")]),
        ("pool.root.1:CollectionTree", [("pool.root.1", "CollectionTree")]),
        ("AOD_1:Events", [("AOD_1", "Events")]),
        ("odd.root:name", [("odd.root:name", None)]),
        ("file://{folder}/a.root:Events", [("a.root", "Events")]),
        ("root://host:1094//d/a.root:Events", [("a.root", "Events")]),
        ("root://host:1094//d/a.root/dir/Events?authz=t", [("a.root?authz=t", "dir/Events")]),
        ("root://host//d/a.root/b.root", [("b.root", None)]),
        ("root://host//d/a:b.root", [("a:b.root", None)]),
        ("https://host/a.root:Events", [("a.root", "Events")]),
        ("https://host/a.root/content", [("content", None)]),
        ("s3://bucket/a.root:Events", [("a.root", "Events")]),
    ],
)
def test_a_tree_may_be_named_with_its_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, found: list[tuple[str, str | None]]
) -> None:
    for file in ("pool.root.1", "AOD_1", "odd.root:name"):
        (folder / file).touch()
    (folder / "files.txt").write_text("b.root:own\na.root")
    monkeypatch.chdir(folder)
    assert trees(name.format(folder=folder)) == found


def test_what_is_missing_is_named_without_its_tree(folder: Path) -> None:
    with pytest.raises(FileMissingError, match=r"no such file: .*/none.root\."):
        find_sources(f"{folder}/none.root:Events")
    one = Source("root://one//store/a.root", ("root://two//store/a.root",), tree="Events")
    assert find_sources("/store/a.root:Events", redirectors=["root://one/", "two"]) == [one]


def test_variables_are_filled_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", str(folder))
    monkeypatch.setenv("HOST", "host")
    monkeypatch.chdir(folder)
    (folder / "$DATA.root").touch()
    assert paths("$DATA/a.root") == paths("${DATA}/[a].root") == [str(folder / "a.root")]
    assert paths("root://$HOST//d/a.root") == ["root://host//d/a.root"]
    assert paths("$DATA.root") == [str(folder / "$DATA.root")]
    with pytest.raises(JobError, match=r"the environment variable 'NO_DATA' in \$NO_DATA/a.root is not set"):
        find_sources("$NO_DATA/a.root")


def test_a_name_is_kept_for_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run keeps those of its job."""
    monkeypatch.setenv("HOME", "/home/marie")
    monkeypatch.setenv("DATA", "data")
    monkeypatch.chdir(folder)
    given = [
        "~/a.root:Events",
        "$DATA/*.root",
        "das:/A/B/NANOAODSIM",
        "/store/a.root",
        "root://$DATA//a.root",
    ]
    assert [absolute(name) for name in given] == [
        "/home/marie/a.root:Events",
        f"{folder}/data/*.root",
        "das:/A/B/NANOAODSIM",
        "/store/a.root",
        "root://data//a.root",
    ]


def test_a_list_that_names_itself_is_refused(folder: Path) -> None:
    (folder / "files.txt").write_text(f"{folder}/a.root\n{folder}/files.txt\n")
    with pytest.raises(JobError, match="names itself"):
        find_sources(folder / "files.txt")


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(folder: Path) -> None:
    (folder / "run[1].root").touch()
    assert paths(folder / "run[1].root") == [str(folder / "run[1].root")]


@pytest.mark.parametrize("name", ["none.root", "none*.root", "empty"])
def test_what_matches_nothing_is_named(folder: Path, name: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(FileMissingError, match=name.replace("*", r"\*")):
        find_sources(folder / name)


def test_a_file_named_twice_is_refused_since_its_events_would_count_twice(folder: Path) -> None:
    with pytest.raises(JobError, match="2 times"):
        find_sources([folder / "a.root", f"{folder}/*.root"])
    with pytest.raises(JobError, match=r"/store/a.root is named 2 times"):
        find_sources(
            ["/store/a.root", "root://two//store/a.root"], redirectors=["root://one/", "root://two/"]
        )


def test_web_addresses_are_taken_as_they_are_and_cannot_be_patterns() -> None:
    assert find_sources("https://host/a.root?v=*") == [Source("https://host/a.root?v=*")]
    with pytest.raises(JobError, match="web servers list no folders"):
        find_sources("https://host/*.root")


def test_a_logical_name_is_read_from_the_first_redirector_and_alternatively_from_the_others() -> None:
    redirectors = ["root://one/", "root://two:1094", "three"]
    one, two, three = (
        "root://one//store/a.root",
        "root://two:1094//store/a.root",
        "root://three//store/a.root",
    )
    assert find_sources("/store/a.root", redirectors=redirectors) == [Source(one, (two, three))]
    assert find_sources(two, redirectors=redirectors) == [Source(two, (one, three))]


def test_only_logical_names_of_a_redirector_have_alternatives() -> None:
    """Another server's path, or another folder of this one, may be another file elsewhere."""
    for url in ("root://other//store/a.root", "root://one//eos/a.root"):
        assert find_sources(url, redirectors=["root://one/", "root://two/"]) == [Source(url)]


def test_a_logical_name_without_redirectors_says_what_is_missing() -> None:
    with pytest.raises(FileMissingError, match=r"no such file: /store/a.root. .*reading.redirectors"):
        find_sources("/store/a.root")


def test_other_absolute_paths_stay_local() -> None:
    with pytest.raises(FileMissingError, match=r"no such file: /eos/none/a.root"):
        find_sources("/eos/none/a.root", redirectors=["root://one/"])


@pytest.fixture
def federation(tmp_path: Path, xrootd_server: Serve) -> str:
    """A server with ``/store/d/{a,b}.root``, ``/store/d/e/c.root`` and ``/top.root``."""
    for name, size in {"d/a.root": 10, "d/b.root": 20, "d/e/c.root": 30, "../top.root": 40}.items():
        path = tmp_path / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    return xrootd_server(tmp_path)


@pytest.mark.xrootd
def test_a_servers_globs_and_folders_are_listed_with_sizes(federation: str) -> None:
    a, b, c = (
        Source(f"{federation}/store/{name}.root", size=size)
        for name, size in (("d/a", 10), ("d/b", 20), ("d/e/c", 30))
    )
    assert find_sources(f"{federation}/store/d/*.root") == [a, b]
    assert find_sources(f"{federation}/s*/d/[ab].root") == [a, b]
    assert find_sources(f"{federation}/store/*/*/*.root") == [c]
    assert find_sources(f"{federation}/store/**/*.root") == [a, b, c]
    assert find_sources(f"{federation}/store/*") == [a, b, c]
    assert find_sources(f"{federation}/store/d") == [a, b, c]
    assert find_sources(f"{federation}/t*.root") == [Source(f"{federation}/top.root", size=40)]


@pytest.mark.xrootd
@pytest.mark.parametrize("name", ["store/d/*.txt", "none/*.root", "store/none"])
def test_what_a_server_does_not_have_is_named(federation: str, name: str) -> None:
    with pytest.raises(FileMissingError, match=name.replace("*", r"\*")):
        find_sources(f"{federation}/{name}")


@pytest.mark.xrootd
def test_names_with_marks_of_urls_are_read_from_a_server_or_told(
    write_tree: Callable[..., Path], xrootd_server: Serve
) -> None:
    names = ["a#1.root", "b%20c.root", "b%23.root", "d e.root", "f%.root", "g&h=i.root", "j[1].root"]
    for name in names:
        path = write_tree(f"d/{name}")
    url = xrootd_server(path.parents[1])
    for pattern in ("/d", "/d/*.root", "/**/*.root"):
        found = find_sources(url + pattern)
        assert [source.path for source in found] == [f"{url}/d/{name}" for name in names]
        assert all(
            state is not None and state.size == s.size for s, state in zip(found, states(found), strict=True)
        )
    assert [open_events(source, "Events").entries for source in found] == [100] * len(names)
    assert paths(f"{url}/d/j[1].root") == [f"{url}/d/j[1].root"]
    assert paths(f"{url}/d/a?1.root") == [f"{url}/d/a#1.root"]


@pytest.mark.xrootd
@pytest.mark.parametrize("name", ["a?1.root", "a?x=1.root"])
def test_a_name_that_xrootd_would_take_for_another_is_refused(
    write_tree: Callable[..., Path], xrootd_server: Serve, name: str
) -> None:
    folder = write_tree("d/a").parent
    write_tree(f"d/{name}")
    url = xrootd_server(folder.parent)
    words = r"XRootD takes what follows a '\?' for options"
    for pattern in ("/d", "/d/*.root"):
        with pytest.raises(FileUnreadableError, match=words):
            open_events(find_sources(url + pattern)[0], "Events")


@pytest.mark.xrootd
def test_logical_globs_and_folders_are_listed_by_a_redirector(federation: str) -> None:
    found = [Source(f"{federation}/store/d/e/c.root", ("root://two//store/d/e/c.root",), size=30)]
    for name in ("/store/d/e", "/store/d/e/*.root"):
        assert find_sources(name, redirectors=[federation, "root://two/"]) == found


@pytest.mark.xrootd
@pytest.mark.slow  # a refused connection is reported after 10 s
def test_a_redirector_that_does_not_answer_is_passed_over_or_named(federation: str) -> None:
    live, dead = (f"{redirector}/store/d/e/c.root" for redirector in (federation, DEAD))
    assert find_sources("/store/d/e", redirectors=[DEAD, federation]) == [Source(live, (dead,), size=30)]
    with pytest.raises(FileUnreadableError, match=r"cannot list root://127.0.0.1:1//store/\*.root"):
        find_sources(f"{DEAD}/store/*.root")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket with ``d/{a,b}.root``."""
    import fsspec

    with running_s3("data") as address:
        content = {"data/d/a.root": bytes(10), "data/d/b.root": bytes(20), "data/notes.md": b"-"}
        fsspec.filesystem("s3").pipe(content)
        yield address


def test_a_buckets_globs_and_folders_are_listed_with_sizes(bucket: str) -> None:
    both = [Source("s3://data/d/a.root", size=10), Source("s3://data/d/b.root", size=20)]
    assert find_sources(f"{bucket}/d/*.root") == both
    assert find_sources(f"{bucket}/d") == both
    assert find_sources(bucket) == both
    with pytest.raises(FileMissingError, match="no such file: s3://data/none"):
        find_sources(f"{bucket}/none")
    with pytest.raises(FileMissingError, match="s3://nowhere"):
        find_sources("s3://nowhere/d/*.root")
