import json

import pytest
from typer.testing import CliRunner

from mlaas_ray.cli.main import app
from mlaas_ray.repository import Repository


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
    published = json.loads(mlaas("publish", onnx_file, "--name", "cli", "--json", *where).stdout)
    assert published == {"name": "cli", "version": 1}
    assert json.loads(mlaas("delete", "cli", "--json", *where).stdout) == {"deleted": ["cli:1"]}


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
    assert json.loads(mlaas("delete", "toy:production", "--json", *where).stdout) == {"deleted": ["toy:2"]}
    assert (repository.versions("toy"), repository.aliases("toy")) == ([1], {})


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
