from pathlib import Path

import pytest

from mlaas_ray.core.errors import JobError
from mlaas_ray.inference.settings import Scale, ServiceSettings


def test_an_unknown_setting_is_refused_with_the_nearest():
    with pytest.raises(JobError, match=r"no setting 'replica'\. Did you mean 'replicas'"):
        ServiceSettings.of({"replica": 2})


def test_a_value_that_cannot_be_is_refused_by_its_name():
    with pytest.raises(JobError, match="'port'"):
        ServiceSettings.of({"port": 70000})


@pytest.mark.parametrize("name", ["", "http://ml.example.org", "ml.example.org:8083", "*.example.org", "a b"])
def test_a_host_that_is_allowed_is_a_name_alone(name):
    assert ServiceSettings.of({"allowed_hosts": ["ml.example.org", "ml"]}).allowed_hosts[1] == "ml"
    with pytest.raises(JobError, match=r"no name such as ml\.example\.org"):
        ServiceSettings.of({"allowed_hosts": ["ml.example.org", name]})


def test_the_repository_is_that_of_the_environment_and_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLAAS_REPOSITORY", raising=False)
    assert ServiceSettings().repository == tmp_path / "models"
    monkeypatch.setenv("MLAAS_REPOSITORY", "/data/models")
    assert ServiceSettings().repository == Path("/data/models")
    assert ServiceSettings.of({"repository": "mine"}).repository == tmp_path / "mine"


def test_the_url_is_one_that_a_client_can_open():
    assert ServiceSettings(host="0.0.0.0", port=9000).url == "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("written", "scale"),
    [
        (2, (2, 2)),
        ("2", (2, 2)),
        ("1:4", (1, 4)),
        (" 0 : 3 ", (0, 3)),
        ({"fewest": 1, "most": 2}, (1, 2)),
        (Scale(fewest=3, most=5), (3, 5)),
    ],
)
def test_a_number_of_replicas_is_one_or_the_fewest_and_the_most(written, scale):
    found = ServiceSettings.of({"replicas": written}).replicas
    assert (found.fewest, found.most) == scale


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("many", "write a number, or the fewest and the most as in 1:4"),
        ("1:", "write a number"),
        ("-1", "write a number"),
        (-1, "write a number"),
        ("1:2:3", "write a number"),
        ("4:1", "the fewest, 4, are more than the most, 1"),
        (0, "'gateways.most'"),
        (True, "'gateways'"),
        (1.5, "'gateways'"),
        (None, "'gateways'"),
        ({"fewest": 1}, "'gateways.most'"),
        ({"fewest": 1, "most": 2, "more": 3}, "'gateways.more'"),
    ],
)
def test_a_number_of_replicas_that_cannot_be_is_refused(written, said):
    with pytest.raises(JobError, match=f"'gateways.*{said}|{said}"):
        ServiceSettings.of({"gateways": written})


@pytest.mark.parametrize("written", ["2", "1:4", "0:1"])
def test_a_number_of_replicas_is_shown_as_it_is_written(written):
    assert str(Scale.model_validate(written)) == written
    assert Scale.model_validate_json(Scale.model_validate(written).model_dump_json()) == Scale.model_validate(
        written
    )
