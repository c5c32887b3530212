import re
import subprocess
import sys
from urllib.parse import urlsplit

MLAAS = [sys.executable, "-m", "mlaas_ray.cli.main"]


def test_a_taken_port_is_one_line_and_status_2(served):
    port = str(urlsplit(served.url).port)
    said = subprocess.run([*MLAAS, "serve", "--port", port], capture_output=True, text=True, timeout=240)
    assert said.returncode == 2
    assert said.stdout == ""
    assert re.search(rf"^error: cannot listen on 127.0.0.1:{port}: .*--port", said.stderr, re.MULTILINE)
    assert "Traceback" not in said.stderr


def test_a_folder_that_is_not_there_is_no_repository(tmp_path):
    for missing in (tmp_path / "modles", tmp_path / "file"):
        (tmp_path / "file").write_text("")
        command = [*MLAAS, "serve", "--repository", str(missing)]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (said.returncode, said.stdout) == (2, "")
        assert said.stderr.startswith(f"error: there is no folder {missing} of models")
        assert f"mkdir -p {missing}" in said.stderr


def test_help_shows_how():
    said = subprocess.run([*MLAAS, "serve", "--help"], capture_output=True, text=True, timeout=240)
    assert said.returncode == 0
    assert "mlaas serve --repository /data/models --port 9000" in said.stdout
