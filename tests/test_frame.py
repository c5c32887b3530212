"""The frame around the code: pinned versions, documentation, make targets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_every_dependency_of_the_package_and_its_extras_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
        names = {canonical(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}
        assert names - pins().keys() == set()


def test_what_is_installed_is_what_is_pinned() -> None:
    installed = {canonical(found.metadata["Name"]): found.version for found in metadata.distributions()}
    differing = {
        name: f"pinned {version}, installed {installed[name]}"
        for name, version in pins().items()
        # 2.13.0+cpu and 2.13.0 are builds of one release
        if name in installed and installed[name].partition("+")[0] != version
    }
    assert differing == {}


def test_pins_are_exact_and_name_no_build() -> None:
    for name, version in pins().items():
        assert name == canonical(name)
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version}"


def test_the_documentation_builds_without_a_broken_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "decisions" / "index.html").exists()
    pages = "".join(page.read_text() for page in (tmp_path / "site").rglob("*.html"))
    # all that a page loads lies beside it
    assert re.findall(r'(?:<script[^>]*src|<link[^>]*stylesheet[^>]*href)="https?://[^"]*', pages) == []


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (folder / "index.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("0*.md"))


def test_no_page_or_job_names_what_a_new_clone_does_not_have() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    clone = [name for name in listed.stdout.split() if (ROOT / name).exists()]
    top = "|".join({name.partition("/")[0] for name in clone if "/" in name})
    link, path = r"\]\(([^)#:\s]+)[)#]", rf"(?<![\w./-])((?:{top})/[\w./-]+\.\w+)"
    absent = []
    for name in clone:
        if Path(name).suffix in (".md", ".yaml"):
            text, beside = (ROOT / name).read_text(), (ROOT / name).parent
            absent += re.findall(r"\S*\.\./shared\S*", text)
            absent += [
                f"{name}: {found}"
                for found in re.findall(link, text) + re.findall(path, text)
                if not ((beside / found).exists() or (ROOT / found).exists())
            ]
    assert absent == []


@pytest.mark.parametrize("target", ["quickstart", "test", "lint", "bench", "docs"])
def test_every_make_target_makes_the_environment_first_and_is_explained(target: str) -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^make {target} +\S", listed, re.MULTILINE)
    # --what-if: as if the pins were newer than .venv
    plan = ["make", "--dry-run", "--no-print-directory", "--what-if=constraints.txt", target]
    # `make test` may have started us, and its flags are not ours
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    steps = subprocess.run(
        plan, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert ".ci/venv" in steps[0]
    assert ".venv/bin/" in steps[2]


@pytest.mark.parametrize("script", [".ci/run", ".ci/venv", ".ci/pins", "deploy/install.sh"])
def test_scripts_can_be_run_and_stop_at_the_first_failure(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    assert "\nset -euo pipefail\n" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True)


def test_a_python_that_is_too_old_is_told_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")  # what the comparison of versions ends with there
    old.chmod(0o755)
    environment = {"PYTHON": str(old), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([ROOT / ".ci" / "venv"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"mlaas_ray wants Python 3\.11 or newer, '.*python3\.9' is not: .*\n", done.stderr)
