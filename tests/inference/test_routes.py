"""The version that answers for a name."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from mlaas_ray.core.errors import (
    EventError,
    InvalidNameError,
    MlaasError,
    ModelError,
    ModelMissingError,
    PackageError,
    VersionMissingError,
)
from mlaas_ray.inference import routes as module
from mlaas_ray.inference.busy import BusyError
from mlaas_ray.inference.catalog import Catalog
from mlaas_ray.inference.routes import Routes
from mlaas_ray.repository import Repository


class Prepared:
    """Brings versions into memory; takes as long as it is told, and fails where it is told."""

    def __init__(self) -> None:
        self.versions: list[str] = []
        self.seconds: dict[str, float] = {}
        self.fails: dict[str, Exception] = {}

    async def __call__(self, entry):
        name = str(entry.version)
        self.versions.append(name)
        await asyncio.sleep(self.seconds.get(name, 0))
        if name in self.fails:
            raise self.fails[name]


@pytest.fixture
def repository(onnx_package, tmp_path):
    repository = Repository(tmp_path / "models")
    repository.publish(onnx_package)
    return repository


@pytest.fixture
def prepared():
    return Prepared()


@pytest.fixture
def routes(repository, prepared):
    return Routes(Catalog(repository), prepared, timeout_s=10)


def settled(repository, ago_s=10.0):
    """Let the folders look as if nothing had changed in them for some time."""
    then = time.time() - ago_s
    for folder in [*repository.root.iterdir(), *(repository.root / ".aliases").glob("*")]:
        if folder.is_dir():
            os.utime(folder, (then, then))


def answering(entry) -> str:
    return str(entry.version)


async def noticed():
    """Wait until a change is seen at a glance."""
    await asyncio.sleep(2 * module.LOOK_S)


async def until(routes, text, version):
    async with asyncio.timeout(60):
        while answering(await routes.find(text)) != version:
            await asyncio.sleep(0.01)


def test_the_first_request_loads_and_the_next_is_answered_at_a_glance(routes, repository, prepared):
    settled(repository)

    async def main():
        assert routes.glance("toy") is None
        entry = await routes.find("toy")
        assert answering(entry) == "toy:1"
        assert prepared.versions == ["toy:1"]
        assert routes.glance("toy") is entry
        assert await routes.find("toy") is entry
        assert prepared.versions == ["toy:1"]

    asyncio.run(main())


def test_a_version_is_loaded_once_for_all_that_ask_for_it(routes, prepared):
    prepared.seconds["toy:1"] = 0.1

    async def main():
        texts = ["toy", "toy:1", ""] * 20
        entries = await asyncio.gather(*map(routes.find, texts))
        assert {answering(entry) for entry in entries} == {"toy:1"}

    asyncio.run(main())
    assert prepared.versions == ["toy:1"]


def test_the_older_version_answers_until_the_new_one_can(routes, repository, onnx_package, prepared):
    prepared.seconds["toy:2"] = 2.0

    async def main():
        await routes.find("toy")
        repository.publish(onnx_package)
        published = time.perf_counter()
        longest = 0.0
        seen = []
        while not seen or seen[-1] != "toy:2":
            start = time.perf_counter()
            assert start - published < 60
            seen.append(answering(await routes.find("toy")))
            longest = max(longest, time.perf_counter() - start)
            await asyncio.sleep(0.02)
        assert time.perf_counter() - published >= 2.0
        assert longest < 1.5  # who waited for the new one would wait 2 s
        assert seen == sorted(seen)
        assert len(seen) > 3
        assert prepared.versions == ["toy:1", "toy:2"]

    asyncio.run(main())


def test_at_a_glance_the_older_version_answers_while_the_new_one_is_loaded(
    routes, repository, onnx_package, prepared
):
    prepared.seconds["toy:2"] = 2.0
    settled(repository)

    async def main():
        await routes.find("toy")
        assert routes.glance("toy") is not None
        repository.publish(onnx_package)
        await noticed()
        assert routes.glance("toy") is None
        assert answering(await routes.find("toy")) == "toy:1"
        assert answering(routes.glance("toy")) == "toy:1"
        await until(routes, "toy", "toy:2")
        settled(repository)
        await routes.find("toy")
        assert answering(routes.glance("toy")) == "toy:2"

    asyncio.run(main())


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_a_version_that_does_not_load_never_takes_over(
    routes, repository, onnx_package, prepared, caplog, seconds
):
    prepared.fails["toy:2"] = ModelError("it does not load")
    prepared.seconds["toy:2"] = seconds

    async def main():
        await routes.find("toy")
        repository.publish(onnx_package)
        end = time.perf_counter() + 2 * seconds + 0.3
        while time.perf_counter() < end:
            assert answering(await routes.find("toy")) == "toy:1"
            await asyncio.sleep(0.01)
        await routes.settle("toy")
        # however often it is asked for, it is not loaded again and again
        assert prepared.versions == ["toy:1", "toy:2"]
        assert routes.failures("toy") == {2: "it does not load."}
        assert routes.failures("other") == {}
        with pytest.raises(ModelError, match="it does not load"):
            await routes.find("toy:2")

    asyncio.run(main())


def test_a_damaged_package_never_takes_over(routes, repository, onnx_package, prepared):
    async def main():
        await routes.find("toy")
        version = repository.publish(onnx_package)
        (repository.root / "toy" / str(version.version) / "signature.json").write_text("{")
        assert answering(await routes.find("toy")) == "toy:1"
        assert prepared.versions == ["toy:1"]
        assert list(routes.failures("toy")) == [2]

    asyncio.run(main())


def test_where_no_version_loads_the_newest_ones_error_is_said(routes, repository, onnx_package, prepared):
    repository.publish(onnx_package)
    prepared.fails |= {"toy:1": ModelError("too old"), "toy:2": PackageError("cut short")}

    async def main():
        for _ in range(2):
            with pytest.raises(PackageError, match="cut short"):
                await routes.find("toy")
        assert prepared.versions == ["toy:2", "toy:1"]
        assert routes.glance("toy") is None

    asyncio.run(main())


def test_trouble_that_may_pass_does_not_keep_the_older_version_from_answering(
    routes, repository, onnx_package, prepared
):
    prepared.fails["toy:2"] = ConnectionError("no replica answers")

    async def main():
        await routes.find("toy")
        repository.publish(onnx_package)
        for _ in range(3):
            assert answering(await routes.find("toy")) == "toy:1"
        prepared.fails.clear()
        await until(routes, "toy", "toy:2")

    asyncio.run(main())


def test_trouble_is_said_where_no_other_version_answers(routes, prepared):
    prepared.fails["toy:1"] = ConnectionError("no replica answers")

    async def main():
        with pytest.raises(ConnectionError):
            await routes.find("toy")
        prepared.fails.clear()
        assert answering(await routes.find("toy")) == "toy:1"

    asyncio.run(main())


def test_what_did_not_load_is_tried_again_after_a_while(
    routes, repository, onnx_package, prepared, monkeypatch
):
    monkeypatch.setattr(module, "RETRY_S", 0.3)
    prepared.fails["toy:2"] = ModelError("no memory")
    repository.publish(onnx_package)
    settled(repository)

    async def main():
        # one that an older version stands in for, and one that nothing does
        assert answering(await routes.find("toy")) == "toy:1"
        with pytest.raises(ModelError):
            await routes.find("toy:2")
        assert prepared.versions.count("toy:2") == 1
        prepared.fails.clear()
        assert answering(await routes.find("toy")) == "toy:1"
        await until(routes, "toy", "toy:2")
        assert answering(await routes.find("toy:2")) == "toy:2"
        assert prepared.versions.count("toy:2") == 2
        assert routes.failures("toy") == {}

    asyncio.run(main())


def test_a_model_that_is_not_loaded_in_time_is_busy_and_there_the_next_time(repository, prepared):
    prepared.seconds["toy:1"] = 1.0
    routes = Routes(Catalog(repository), prepared, timeout_s=0.1)

    async def main():
        with pytest.raises(BusyError, match="toy:1 is being loaded"):
            await routes.find("toy")
        await asyncio.sleep(1.0)
        assert answering(await routes.find("toy")) == "toy:1"
        assert prepared.versions == ["toy:1"]

    asyncio.run(main())


def test_an_alias_stands_for_its_version_and_switches_when_that_can_answer(
    routes, repository, onnx_package, prepared
):
    repository.publish(onnx_package)
    repository.set_alias("toy", "production", 1)
    prepared.seconds["toy:2"] = 2.0

    async def main():
        assert answering(await routes.find("toy:production")) == "toy:1"
        settled(repository)
        await routes.find("toy:production")
        assert answering(routes.glance("toy:production")) == "toy:1"
        repository.set_alias("toy", "production", 2)
        for _ in range(3):
            start = time.perf_counter()
            assert answering(await routes.find("toy:production")) == "toy:1"
            assert time.perf_counter() - start < 1.5
        await until(routes, "toy:production", "toy:2")
        # another publish is nothing to it
        repository.publish(onnx_package)
        assert answering(await routes.find("toy:production")) == "toy:2"
        repository.delete("toy", 2)
        with pytest.raises(VersionMissingError, match="no alias 'production'"):
            await routes.find("toy:production")

    asyncio.run(main())


def test_when_the_version_that_answers_is_deleted_the_older_one_does_at_once(
    routes, repository, onnx_package, prepared
):
    async def main():
        await routes.find("toy")
        repository.publish(onnx_package)
        await until(routes, "toy", "toy:2")
        settled(repository)
        await routes.find("toy")
        assert routes.glance("toy") is not None
        repository.delete("toy", 2)
        await noticed()
        assert routes.glance("toy") is None
        assert answering(await routes.find("toy")) == "toy:1"
        # which may have left memory meanwhile
        assert prepared.versions == ["toy:1", "toy:2", "toy:1"]
        repository.delete("toy")
        await noticed()
        assert routes.glance("toy") is None
        with pytest.raises(ModelMissingError, match="no model 'toy'"):
            await routes.find("toy")

    asyncio.run(main())


def test_who_is_told_of_a_change_sees_it_at_a_glance(routes, repository):
    settled(repository)

    async def main():
        await routes.find("toy")
        assert routes.glance("toy") is not None
        repository.delete("toy", 1)
        routes.look_again("toy")
        assert routes.glance("toy") is None

    asyncio.run(main())


def test_a_deleted_version_does_not_answer_while_the_older_one_is_loaded(
    routes, repository, onnx_package, prepared
):
    repository.publish(onnx_package)
    prepared.seconds["toy:1"] = 0.3

    async def main():
        assert answering(await routes.find("toy")) == "toy:2"
        repository.delete("toy", 2)
        assert answering(await routes.find("toy")) == "toy:1"

    asyncio.run(main())


def test_a_version_that_is_deleted_while_it_is_looked_up_is_passed_over(
    routes, repository, onnx_package, monkeypatch
):
    repository.publish(onnx_package)
    wanted = routes._wanted

    def wanted_then_deleted(text):
        versions = wanted(text)
        repository.delete("toy", 2)
        return versions

    monkeypatch.setattr(routes, "_wanted", wanted_then_deleted)

    async def main():
        assert answering(await routes.find("toy")) == "toy:1"

    asyncio.run(main())


def test_two_publishes_that_a_folders_time_does_not_tell_apart_are_both_seen(
    routes, repository, onnx_package
):
    async def main():
        await routes.find("toy")
        repository.publish(onnx_package)
        folder = repository.root / "toy"
        tick = folder.stat().st_mtime_ns
        await until(routes, "toy", "toy:2")
        repository.publish(onnx_package)
        os.utime(folder, ns=(tick, tick))
        assert answering(await routes.find("toy")) == "toy:3"

    asyncio.run(main())


def test_each_version_can_be_asked_for(routes, repository, onnx_package, prepared):
    repository.publish(onnx_package)

    async def main():
        assert answering(await routes.find("toy:1")) == "toy:1"
        assert answering(await routes.find("toy:2")) == "toy:2"
        assert answering(await routes.find("toy")) == "toy:2"
        with pytest.raises(VersionMissingError, match="no version 3"):
            await routes.find("toy:3")
        repository.publish(onnx_package)
        assert answering(await routes.find("toy:3")) == "toy:3"
        assert answering(await routes.find("toy:1")) == "toy:1"
        repository.delete("toy", 1)
        with pytest.raises(VersionMissingError):
            await routes.find("toy:1")

    asyncio.run(main())


def test_no_name_is_that_of_the_only_model(routes, repository, onnx_package):
    async def main():
        assert answering(await routes.find("")) == "toy:1"
        repository.publish(onnx_package, "other")
        with pytest.raises(EventError, match="there are 2: other, toy"):
            await routes.find("")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("tov", ModelMissingError),
        ("toy:production", VersionMissingError),
        ("../toy", InvalidNameError),
        ("toy:", InvalidNameError),
        ("toy:1:2", InvalidNameError),
        (".aliases", InvalidNameError),
        ("\x00", InvalidNameError),
    ],
)
def test_a_name_that_no_version_answers_for_is_refused_and_not_remembered(routes, text, kind):
    async def main():
        assert routes.glance(text) is None
        with pytest.raises(kind) as caught:
            await routes.find(text)
        assert isinstance(caught.value, MlaasError)

    asyncio.run(main())
    assert routes._routes == {}


def test_settling_waits_until_the_newest_version_answers(routes, repository, onnx_package, prepared):
    prepared.seconds["toy:2"] = 0.4

    async def main():
        await routes.settle("toy")
        repository.publish(onnx_package)
        await routes.settle("toy")
        assert answering(await routes.find("toy")) == "toy:2"

    asyncio.run(main())


def test_what_is_forgotten_is_brought_into_memory_again(routes, repository, onnx_package, prepared):
    repository.publish(onnx_package, "other")
    settled(repository)

    async def main():
        for name in ("toy", "toy:1", "other"):
            await routes.find(name)
        assert prepared.versions == ["toy:1", "other:1"]
        routes.forget("toy")
        assert routes.glance("toy") is routes.glance("toy:1") is None
        assert routes.glance("other") is not None
        for name in ("toy", "toy:1", "other"):
            await routes.find(name)
        assert prepared.versions == ["toy:1", "other:1", "toy:1"]
        assert routes.glance("toy") is not None

    asyncio.run(main())
