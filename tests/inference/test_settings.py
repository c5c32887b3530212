from pathlib import Path

import pytest

from mlaas_ray.core.errors import JobError
from mlaas_ray.inference.settings import ServiceSettings


def test_an_unknown_setting_is_refused_with_the_nearest():
    with pytest.raises(JobError, match=r"no setting 'replica'\. Did you mean 'replicas'"):
        ServiceSettings.of({"replica": 2})


def test_a_value_that_cannot_be_is_refused_by_its_name():
    with pytest.raises(JobError, match="'port'"):
        ServiceSettings.of({"port": 70000})


def test_the_repository_is_that_of_the_environment_and_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLAAS_REPOSITORY", raising=False)
    assert ServiceSettings().repository == tmp_path / "models"
    monkeypatch.setenv("MLAAS_REPOSITORY", "/data/models")
    assert ServiceSettings().repository == Path("/data/models")
    assert ServiceSettings.of({"repository": "mine"}).repository == tmp_path / "mine"


def test_the_url_is_one_that_a_client_can_open():
    assert ServiceSettings(host="0.0.0.0", port=9000).url == "http://127.0.0.1:9000"
