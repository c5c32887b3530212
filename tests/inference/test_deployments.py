"""What a repository keeps of models with replicas of their own."""

from __future__ import annotations

import json

import pytest

from mlaas_ray.core.errors import InvalidNameError, JobError, ModelMissingError, RepositoryError
from mlaas_ray.inference.deployments import Wish, Wishes
from mlaas_ray.inference.settings import Scale
from mlaas_ray.repository import Repository


@pytest.fixture
def repository(onnx_package, tmp_path):
    repository = Repository(tmp_path / "models")
    repository.publish(onnx_package)
    repository.publish(onnx_package, "other")
    return repository


def test_a_wish_is_kept_until_it_is_dropped(repository):
    wishes = Wishes(repository)
    assert wishes.all() == {}
    wish = Wish.read(b'{"replicas": "1:8", "cpus": 2, "gpus": 0.5}')
    wishes.keep("toy", wish)
    wishes.keep("other", Wish())
    assert Wishes(Repository(repository.root)).all() == {"toy": wish, "other": Wish()}
    assert wishes.drop("toy")
    assert not wishes.drop("toy")
    assert wishes.all() == {"other": Wish()}


def test_a_new_wish_takes_the_place_of_the_one_before(repository):
    wishes = Wishes(repository)
    for fewest in (1, 2):
        wishes.keep("toy", Wish(replicas=Scale(fewest=fewest, most=4)))
    assert wishes.all()["toy"].replicas == Scale(fewest=2, most=4)
    assert [file.name for file in (repository.root / ".deployments").iterdir()] == ["toy.json"]


def test_wishes_are_no_models(repository):
    Wishes(repository).keep("toy", Wish())
    assert repository.names() == ["other", "toy"]


def test_a_wish_for_no_model_is_refused(repository):
    with pytest.raises(ModelMissingError, match="no model 'tov'"):
        Wishes(repository).keep("tov", Wish())
    assert Wishes(repository).all() == {}


@pytest.mark.parametrize("name", ["../other/1/manifest", "..", "", ".deployments"])
def test_a_name_leads_out_of_the_folder_neither_way(repository, name):
    with pytest.raises(InvalidNameError):
        Wishes(repository).keep(name, Wish())
    with pytest.raises(InvalidNameError):
        Wishes(repository).drop(name)


def test_a_file_that_cannot_be_read_is_passed_over(repository, caplog):
    wishes = Wishes(repository)
    wishes.keep("toy", Wish())
    (repository.root / ".deployments" / "other.json").write_text('{"replicas": "many"}')
    (repository.root / ".deployments" / "folder.json").mkdir()
    assert wishes.all() == {"toy": Wish()}
    assert "other.json is passed over" in caplog.text


def test_a_folder_that_cannot_be_written_is_an_error_of_the_repository(repository):
    (repository.root / ".deployments").write_text("a file")
    with pytest.raises(RepositoryError, match="cannot write to"):
        Wishes(repository).keep("toy", Wish())


def test_what_is_left_out_is_as_usual():
    assert Wish.read(b"") == Wish.read(b"{}") == Wish()
    assert Wish().replicas == Scale(fewest=1, most=1)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b'{"replicas": "many"}', "replicas: .*write a number"),
        (b'{"replicas": "8:1"}', "replicas: .*more than the most"),
        (b'{"replicas": 0}', "replicas.most: "),
        (b'{"replicas": -1}', "replicas: "),
        (b'{"cpus": -1}', "cpus: "),
        (b'{"cpus": Infinity}', "cpus: "),
        (b'{"gpus": "all"}', "gpus: "),
        (b'{"gpu": 1}', "gpu: "),
        (b"[]", "the body: "),
        (b'{"replicas": 1', "the body: .*JSON"),
        (b"\xff", "the body: "),
    ],
)
def test_a_wish_that_is_none_is_refused_by_the_field(content, where):
    with pytest.raises(JobError, match=rf'^{where}.*"replicas": "1:8"'):
        Wish.read(content)


def test_a_wish_is_listed_so_that_it_can_be_sent_again():
    wish = Wish.read(b'{"replicas": "0:2"}')
    assert Wish.read(json.dumps(wish.model_dump(mode="json")).encode()) == wish
