from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mlaas_ray.streaming.xrootd import SETTINGS, fault, why

_CLEAN = {name: value for name, value in os.environ.items() if name not in SETTINGS}


def printed(program: str, **variables: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240, env=_CLEAN | variables
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


READ = "from XRootD.client.env import EnvGetInt as get; print(get('RequestTimeout'), get('ConnectionWindow'))"


def test_settings_are_made_before_xrootd_loads_where_the_user_has_made_none() -> None:
    program = f"from mlaas_ray.streaming.xrootd import load_xrootd; load_xrootd(); {READ}"
    assert printed(program) == ["60", "5"]
    assert printed(program, XRD_REQUESTTIMEOUT="77") == ["77", "5"]


def test_settings_are_made_though_somebody_loaded_xrootd_before() -> None:
    program = (
        "from XRootD import client; from mlaas_ray.streaming.xrootd import configure_xrootd;"
        f"configure_xrootd(); {READ}"
    )
    assert printed(program) == ["60", "5"]
    assert printed(program, XRD_REQUESTTIMEOUT="77") == ["77", "5"]


@pytest.mark.parametrize(
    ("status", "number", "kind", "words"),
    [
        (400, 3010, "denied", "permission denied"),
        (400, 3030, "denied", "permission denied"),
        (204, 0, "denied", "permission denied"),
        (400, 3011, "missing", "no such file"),
        (304, 0, "missing", "no such file"),
        (400, 3016, "wrong", "it is a folder"),
        (400, 3005, "failing", "the file ends too early"),
        (400, 3012, "failing", "the server failed"),
        (108, 111, "refused", "the server does not answer"),
        (206, 0, "refused", "the server does not answer"),
        (104, 0, "failing", "the server failed"),
    ],
)
def test_errors_say_what_they_mean_and_which_may_pass(
    status: int, number: int, kind: str, words: str
) -> None:
    found = fault(status, number, "[ERROR] said the library\n")
    assert found.kind == kind
    assert words in str(found)
    assert str(found).endswith("([ERROR] said the library)")
    assert found.may_pass == (kind in ("refused", "failing"))


def test_an_error_of_another_library_is_understood_by_its_number() -> None:
    said = OSError("File did not open properly: [ERROR] Server responded with an error: [3011] no such file")
    assert why(said).startswith("no such file (File did not open")
    assert why(OSError("plain")) == "plain"
    assert why(OSError()) == "OSError"
