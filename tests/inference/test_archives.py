import gzip
import io
import tarfile

import pytest

from mlaas_ray.core.errors import PackageError
from mlaas_ray.inference.archives import TooLargeError, unpack

LIMIT = 1 << 20


def member(name, content=b"x", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return info, content


def folder(name):
    return member(name, b"", tarfile.DIRTYPE)


def write_tar(path, *members, compress=False):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(gzip.compress(buffer.getvalue()) if compress else buffer.getvalue())
    return path


@pytest.fixture
def target(tmp_path):
    made = tmp_path / "outer" / "target"
    made.mkdir(parents=True)
    return made


def files_below(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_folder_is_unpacked_whether_compressed_or_not(tmp_path, target, compress, prefix):
    archive = write_tar(
        tmp_path / "a",
        folder(f"{prefix}toy"),
        member(f"{prefix}toy/a.txt", b"one"),
        member(f"{prefix}toy/deep/er/b.txt", b"two"),
        compress=compress,
    )
    assert unpack(archive, target, LIMIT) == "toy"
    assert files_below(target) == ["a.txt", "deep/er/b.txt"]
    assert (target / "a.txt").read_bytes() == b"one"


def test_folders_need_no_entries_of_their_own(tmp_path, target):
    assert unpack(write_tar(tmp_path / "a", member("toy/variables/v")), target, LIMIT) == "toy"
    assert files_below(target) == ["variables/v"]


@pytest.mark.parametrize(
    "members",
    [
        [member("toy/../../evil")],
        [member("../evil")],
        [member("/evil")],
        [member("toy/a\\..\\evil")],
        [member("toy/a\nb")],
        [member("toy/link", b"", tarfile.SYMTYPE, "/etc/passwd")],
        [member("toy/dir", b"", tarfile.SYMTYPE, "../.."), member("toy/dir/evil")],
        [member("toy/hard", b"", tarfile.LNKTYPE, "../../evil")],
        [member("toy/fifo", b"", tarfile.FIFOTYPE)],
        [member("toy/device", b"", tarfile.CHRTYPE)],
        [member("flat.txt")],
        [member("toy/a"), member("other/b")],
        [member("toy/a"), member("toy/a")],
        [member("toy/a"), member("toy/a/b")],
        [member("toy/" + "d/" * 20 + "a")],
        [member("toy/" + "n" * 201)],
        [],
    ],
)
def test_tricks_and_other_shapes_are_refused_and_nothing_is_written_outside(tmp_path, target, members):
    archive = write_tar(tmp_path / "a", *members)
    with pytest.raises(PackageError):
        unpack(archive, target, LIMIT)
    assert [path.name for path in tmp_path.iterdir() if path != archive] == ["outer"]
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize(
    "content", [b"", b"no tar at all" * 100, b"\x1f\x8b", b"\x1f\x8bgarbage", b"\0" * 512]
)
def test_what_is_no_archive_is_refused(tmp_path, target, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(PackageError):
        unpack(tmp_path / "a", target, LIMIT)


def test_an_archive_that_was_cut_short_is_refused(tmp_path, target):
    whole = write_tar(tmp_path / "a", member("toy/a", b"x" * 100_000)).read_bytes()
    (tmp_path / "a").write_bytes(whole[:50_000])
    with pytest.raises(PackageError):
        unpack(tmp_path / "a", target, LIMIT)
    (tmp_path / "a").write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(PackageError, match="ends too early"):
        unpack(tmp_path / "a", target, LIMIT)


def test_more_than_the_limit_is_refused_before_it_is_written(tmp_path, target):
    with pytest.raises(TooLargeError):
        unpack(write_tar(tmp_path / "a", member("toy/a", bytes(LIMIT + 1))), target, LIMIT)
    assert files_below(target) == []


def test_a_small_file_that_says_gigabytes_is_stopped_at_the_limit(tmp_path, target):
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb") as file:
        for _ in range(256):
            file.write(bytes(1 << 20))
    (tmp_path / "a").write_bytes(bomb.getvalue())
    assert len(bomb.getvalue()) < 300_000
    with pytest.raises(TooLargeError):
        unpack(tmp_path / "a", target, LIMIT)
    assert not (tmp_path / "a.tar").exists()


def test_a_header_that_claims_to_be_long_is_not_read(tmp_path, target):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    (tmp_path / "a").write_bytes(info.tobuf() + bytes(4096))
    with pytest.raises(PackageError):
        unpack(tmp_path / "a", target, LIMIT)
