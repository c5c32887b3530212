import json
import shutil

import pytest
from typer.testing import CliRunner

from mlaas_ray.cli.main import app
from mlaas_ray.client.bundle import open_bundle
from mlaas_ray.repository import Repository
from tests.serving import EXAMINED, WIDTH
from tests.terminal import on_terminal


@pytest.fixture
def mlaas(tmp_path):
    def run(*arguments, code=0):
        found = CliRunner().invoke(app, ["models", *map(str, arguments)])
        assert found.exit_code == code, found.output
        return found

    return run


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "models")


def test_a_package_is_published_listed_shown_and_deleted(mlaas, repository, onnx_package):
    where = ("--repository", repository.root)
    assert "mlaas models publish" in mlaas("list", *where).output
    published = mlaas("publish", onnx_package.path, "--name", "higgs", "--json", *where)
    assert json.loads(published.stdout) == {"name": "higgs", "version": 1}
    assert "higgs:2" in mlaas("publish", onnx_package.path, "--name", "higgs", *where).output
    listed = mlaas("list", *where).output
    assert "higgs" in listed
    assert "1, 2" in listed
    assert "0.9000" in listed
    (row,) = json.loads(mlaas("list", "--json", *where).stdout)["models"]
    assert (row["versions"], row["format"], row["width"], row["auc"]) == ([1, 2], "onnx", 5, 0.9)
    shown = json.loads(mlaas("show", "higgs:1", "--json", *where).stdout)
    assert shown["columns"][0] == "MET_pt"
    assert shown["branches"]["Jet_pt"] == {"kind": "jagged", "length": 3}
    assert shown["versions"] == [1, 2]
    assert "MET_pt, run, Jet_pt_0" in mlaas("show", "higgs", *where).output
    assert json.loads(mlaas("delete", "higgs:1", "--json", *where).stdout) == {"deleted": ["higgs:1"]}
    assert repository.versions("higgs") == [2]
    mlaas("delete", "higgs", *where)
    assert repository.names() == []


def test_the_same_commands_ask_a_service(mlaas, served, onnx_file):
    where = ("--url", served.url)
    rows = {row["name"]: row for row in json.loads(mlaas("list", "--json", *where).stdout)["models"]}
    assert rows["toy"]["auc"] == 0.9
    assert json.loads(mlaas("show", "toy", "--json", *where).stdout)["width"] == 5
    assert "binary: background, signal" in " ".join(mlaas("show", "toy", *where).output.split())
    published = json.loads(mlaas("publish", onnx_file, "--name", "cli", "--json", *where).stdout)
    assert published == {"name": "cli", "version": 1}
    assert json.loads(mlaas("delete", "cli", "--json", *where).stdout) == {"deleted": ["cli:1"]}


def test_an_onnx_file_or_a_saved_model_is_published_without_a_service(
    mlaas, repository, onnx_file, saved_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLAAS_CACHE", str(EXAMINED))
    where = ("--repository", repository.root)
    published = json.loads(mlaas("publish", onnx_file, "--name", "mine", "--json", *where).stdout)
    assert published == {"name": "mine", "version": 1}
    assert "published model:1" in mlaas("publish", onnx_file, *where).output
    assert "published sm:1" in mlaas("publish", saved_model, "--name", "sm", *where).output
    with open_bundle(onnx_file, "tarred") as bundle:
        (tmp_path / "m.tar").write_bytes(bundle.read())
    assert "published tarred:1" in mlaas("publish", tmp_path / "m.tar", *where).output
    for name in ("mine", "model", "sm", "tarred"):
        repository.get(name).check()
        assert repository.get(name).signature.width == WIDTH
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07 junk")
    assert "not an ONNX file" in mlaas("publish", tmp_path / "bad.onnx", *where, code=2).stderr
    (tmp_path / "text").write_text("x")
    assert "text is no model" in mlaas("publish", tmp_path / "text", *where, code=2).stderr
    assert not [path for path in repository.root.iterdir() if path.name.startswith(".draft")]


def test_a_damaged_package_does_not_hide_the_others(mlaas, repository, onnx_package):
    repository.publish(onnx_package)
    broken = repository.root / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "package.json").write_text("{")
    rows = json.loads(mlaas("list", "--json", "--repository", repository.root).stdout)["models"]
    assert [bool(row["error"]) for row in rows] == [True, False]


def test_an_alias_is_given_shown_and_moved(mlaas, repository, onnx_package):
    where = ("--repository", repository.root)
    for _ in range(2):
        repository.publish(onnx_package)
    given = mlaas("alias", "toy:1", "production", "--json", *where)
    assert json.loads(given.stdout) == {"name": "toy", "version": 1, "alias": "production"}
    assert "toy:candidate is toy:2" in mlaas("alias", "toy", "candidate", *where).output
    listed = mlaas("list", *where).output
    # over two lines of a narrow terminal
    assert "1 (production), 2" in listed
    assert "(candidate)" in listed
    (row,) = json.loads(mlaas("list", "--json", *where).stdout)["models"]
    assert row["aliases"] == {"candidate": 2, "production": 1}
    shown = json.loads(mlaas("show", "toy:production", "--json", *where).stdout)
    assert (shown["version"], shown["aliases"]) == (1, ["production"])
    # on to where another alias is
    assert "toy:production is toy:2" in mlaas("alias", "toy:candidate", "production", *where).output
    assert repository.aliases("toy") == {"candidate": 2, "production": 2}
    refused = mlaas("delete", "toy:production", *where, code=2).stderr
    assert "toy:candidate, toy:production" in refused
    assert "--force" in refused
    assert repository.versions("toy") == [1, 2]
    gone = mlaas("delete", "toy:production", "--force", "--json", *where).stdout
    assert json.loads(gone) == {"deleted": ["toy:2"]}
    assert (repository.versions("toy"), repository.aliases("toy")) == ([1], {})


def test_a_version_is_shown_to_people_and_not_as_json(mlaas, repository, onnx_package):
    repository.publish(onnx_package, "higgs")
    repository.set_alias("higgs", "production")
    done = mlaas("show", "higgs", "--repository", repository.root)
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[:-2])
    assert rows["model"] == "higgs:1 (production)"
    assert rows["answers"].startswith("binary")
    assert "AUC 0.9000" in done.stdout
    assert rows["columns"].startswith("5: MET_pt, run, Jet_pt_0")
    assert str(repository.root / "higgs" / "1") in done.stdout
    assert not set('{}"') & set(done.stdout)


def test_a_package_is_found_by_its_run(mlaas, repository, onnx_package, tmp_path):
    where = ("--repository", repository.root)
    runs = tmp_path / "runs"
    shutil.copytree(onnx_package.path, runs / "higgs-20261126-101500-ab12" / "package")
    for named in (
        runs / "higgs-20261126-101500-ab12" / "package",
        runs / "higgs-20261126-101500-ab12",
        runs,
        runs / "higgs",
    ):
        assert "published higgs:" in mlaas("publish", named, "--name", "higgs", *where).output
    assert repository.versions("higgs") == [1, 2, 3, 4]
    # of several none is guessed
    shutil.copytree(onnx_package.path, runs / "higgs-20261127-101500-cd34" / "package")
    for named in (runs, runs / "higgs"):
        said = mlaas("publish", named, *where, code=2).stderr
        assert "has 2 packages" in said
        assert said.index("higgs-20261127-101500-cd34") < said.index("higgs-20261126-101500-ab12")
    assert "Did you mean 'runs'?" in mlaas("publish", tmp_path / "rums", *where, code=2).stderr


def test_a_run_that_has_not_ended_has_no_package(mlaas, repository, tmp_path):
    run = tmp_path / "runs" / "higgs-1"
    run.mkdir(parents=True)
    (run / "job.yaml").write_text("")
    said = mlaas("publish", run, "--repository", repository.root, code=2).stderr
    assert f"mlaas train --resume {run}" in said


@pytest.mark.parametrize(("typed", "status", "left"), [("y\n", 0, []), ("n\n", 1, [1])])
def test_on_a_terminal_deleting_what_an_alias_stands_for_is_asked(
    repository, onnx_package, typed, status, left
):
    repository.publish(onnx_package, "higgs")
    repository.set_alias("higgs", "production")
    found, shown = on_terminal("models", "delete", "higgs", "--repository", repository.root, typed=typed)
    assert "higgs:production: delete all? [y/N]" in shown
    assert (found, [version.version for version in repository.list()]) == (status, left)


def test_what_no_alias_stands_for_is_deleted_at_once(mlaas, repository, onnx_package):
    for _ in range(2):
        repository.publish(onnx_package, "higgs")
    repository.set_alias("higgs", "production", 2)
    assert "deleted higgs:1" in mlaas("delete", "higgs:1", "--repository", repository.root).output
    assert "--force" in mlaas("delete", "higgs", "--repository", repository.root, code=2).stderr


def test_a_repository_that_is_not_there_is_said_to_be_so(mlaas, tmp_path):
    found = mlaas("list", "--repository", tmp_path / "nowhere")
    assert "nowhere is not there yet" in found.stdout
    assert (
        "there is no such folder" in mlaas("show", "x", "--repository", tmp_path / "nowhere", code=2).stderr
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "none"),
        ("show", "a:b"),
        ("delete", "none"),
        ("publish", "/nowhere"),
        ("alias", "none", "production"),
        ("alias", "none:3", "3rd"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(mlaas, repository, arguments):
    found = mlaas(*arguments, "--repository", repository.root, code=2)
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
