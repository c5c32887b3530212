import subprocess
import sys

import pytest

from mlaas_ray import inference


def test_every_public_name_is_there_and_sorted():
    assert sorted(inference.__all__) == inference.__all__
    for name in inference.__all__:
        assert getattr(inference, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = inference.nothing


def test_the_layer_is_imported_without_ray_which_must_find_its_environment_set():
    names = "ServiceSettings, running_service"
    code = f"import sys; from mlaas_ray.inference import {names}; print('ray' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, timeout=240, text=True
    )
    assert said.stdout == "False\n"
