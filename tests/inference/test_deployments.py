"""What a repository keeps of models with replicas of their own."""

from __future__ import annotations

import asyncio
import json

import pytest

from mlaas_ray.core.errors import InvalidNameError, JobError, ModelMissingError, RepositoryError
from mlaas_ray.inference import deployments as module
from mlaas_ray.inference.deployments import Deployments, Wish, Wishes
from mlaas_ray.inference.predictor import Predictor
from mlaas_ray.inference.settings import Scale, ServiceSettings
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


class Applications:
    """Serve's applications, without Serve: what would take a cluster and seconds."""

    def __init__(self, monkeypatch) -> None:
        self.running: dict[str, Wish] = {}
        self.starts: list[tuple[set[str], bool]] = []
        self.replicas = 1
        self.error: JobError | None = None
        monkeypatch.setattr(module, "start", self.start)
        monkeypatch.setattr(module, "stop", lambda name: self.running.pop(name, None))
        monkeypatch.setattr(Deployments, "_find", self.find)

    def start(self, _settings, wishes, *, wait=True):
        self.starts.append((set(wishes), wait))
        self.running |= wishes
        if self.error:
            raise self.error

    async def find(self, name):
        return self if name in self.running else None

    async def loaded(self):
        if self.replicas is None:
            raise TimeoutError
        return [{"models": []}] * self.replicas


class Gateway:
    """Deployments, and what they tell."""

    def __init__(self, repository) -> None:
        self.forgotten: list[str] = []
        settings = ServiceSettings(repository=repository.root)
        self.predictor = Predictor(settings, shared=None, here=None)
        self.deployments = Deployments(repository, settings, self.predictor, self.forgotten.append)

    @property
    def own(self):
        return set(self.predictor._holders)


@pytest.fixture
def applications(monkeypatch):
    return Applications(monkeypatch)


def test_a_model_is_answered_from_its_own_replicas_until_they_are_withdrawn(repository, applications):
    async def main():
        gateway, another = Gateway(repository), Gateway(repository)
        await gateway.deployments.look()
        assert (gateway.own, gateway.forgotten) == (set(), [])
        wish = Wish(cpus=2)
        await gateway.deployments.deploy("toy", wish)
        assert (gateway.own, gateway.forgotten) == ({"toy"}, ["toy"])
        assert applications.running == {"toy": wish}
        assert await gateway.deployments.listed() == [
            {"model": "toy", "wanted": wish.model_dump(mode="json"), "replicas": 1}
        ]
        for _ in range(2):  # the second look says nothing new
            await another.deployments.look()
            assert (another.own, another.forgotten) == ({"toy"}, ["toy"])
        await gateway.deployments.deploy("toy", Wish(cpus=3))
        assert applications.running["toy"].cpus == 3
        assert gateway.forgotten == ["toy"]
        await gateway.deployments.withdraw("toy")
        await another.deployments.look()
        for one in (gateway, another):
            assert (one.own, one.forgotten) == (set(), ["toy", "toy"])
        assert applications.running == {}
        with pytest.raises(ModelMissingError, match="no replicas of its own"):
            await gateway.deployments.withdraw("toy")

    asyncio.run(main())


def test_what_a_stopped_service_had_is_started_again_and_nothing_twice(repository, applications):
    async def main():
        await Gateway(repository).deployments.resume()
        assert applications.starts == []
        wishes = Wishes(repository)
        wishes.keep("toy", Wish(cpus=2))
        wishes.keep("other", Wish())
        applications.running["other"] = Wish()
        await Gateway(repository).deployments.resume()
        # not waited for: a cluster may have no place for it yet
        assert applications.starts == [({"toy"}, False)]
        assert applications.running["toy"] == Wish(cpus=2)
        await Gateway(repository).deployments.resume()
        assert len(applications.starts) == 1

    asyncio.run(main())


@pytest.mark.parametrize("replicas", [0, None])
def test_replicas_that_cannot_answer_yet_are_not_asked(repository, applications, replicas):
    async def main():
        gateway = Gateway(repository)
        applications.replicas = replicas
        await gateway.deployments.deploy("toy", Wish())
        # one that is to begin with none has none to wait for
        await gateway.deployments.deploy("other", Wish(replicas=Scale(fewest=0, most=2)))
        assert (gateway.own, gateway.forgotten) == ({"other"}, ["other"])
        assert [one["replicas"] for one in await gateway.deployments.listed()] == [0, 0]
        applications.replicas = 2
        await gateway.deployments.look()
        assert (gateway.own, gateway.forgotten) == ({"other", "toy"}, ["other", "toy"])

    asyncio.run(main())


def test_what_does_not_start_is_no_wish_unless_there_was_one(repository, applications):
    async def main():
        gateway = Gateway(repository)
        applications.error = JobError("they do not start", "")
        with pytest.raises(JobError):
            await gateway.deployments.deploy("toy", Wish())
        assert (Wishes(repository).all(), applications.running, gateway.own) == ({}, {}, set())
        applications.error = None
        await gateway.deployments.deploy("toy", Wish())
        applications.error = JobError("they do not start", "")
        with pytest.raises(JobError):
            await gateway.deployments.deploy("toy", Wish(cpus=9))
        assert gateway.own == {"toy"}
        assert Wishes(repository).all().keys() == {"toy"}
        with pytest.raises(ModelMissingError):
            await gateway.deployments.deploy("none", Wish())

    asyncio.run(main())
