"""Fixtures every test may use: a Ray of one's own, small and local."""

from __future__ import annotations

import os

# Before anything imports Ray.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    TF_CPP_MIN_LOG_LEVEL="2",
    # what tests learn of their files is not for the user's cache
    MLAAS_CACHE="off",
)

import signal
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("here")

# fixtures xrootd_server; xrootd_federation; served and the tiny models it serves
pytest_plugins = ["tests.xrootd_server", "tests.xrootd_federation", "tests.serving"]


# A shell that starts the tests in the background lets them ignore Ctrl-C, and what they start inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    # When Python ends, XRootD looks at every object there is, also at one that PyTorch has deprecated.
    warnings.filterwarnings("ignore", "`torch.distributed.reduce_op` is deprecated", FutureWarning)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that take minutes more time than the others have before they count as hung."""
    for item in items:
        for mark, seconds in (("soak", 1800), ("slow", 600)):
            if item.get_closest_marker(mark) and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(seconds))


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of four logical CPUs, started for these tests and stopped after them."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=500_000_000,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real ROOT files; tests that want it are skipped where it is not."""
    folder = Path(os.environ.get("MLAAS_REAL_DATA", Path(__file__).parents[2] / "shared" / "data")).absolute()
    if not folder.is_dir():
        pytest.skip(f"no real ROOT files in {folder} (set MLAAS_REAL_DATA)")
    return folder


@pytest.fixture(scope="session")
def cases(real_data: Path) -> Path:
    """Folder of inputs that showed a fault, beside the real files."""
    folder = real_data.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"no such cases in {folder}")
    return folder


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two files of 3,000 simulated events each, ``signal`` and ``background``."""
    from mlaas_ray.workflows.toy import write_sample

    folder = tmp_path_factory.mktemp("samples")
    return {
        name: write_sample(folder / f"{name}.root", name, 3000, seed=3) for name in ("signal", "background")
    }


# Bytes of a small disk: room for a small run, and not for much more.
SMALL_DISK = 48_000_000


def _mounted(where: Path, *options: str) -> Iterator[Path]:
    where.mkdir()
    done = subprocess.run(["mount", *options, str(where)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB."""
    yield from _mounted(tmp_path / "small", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder nobody, root included, can write to."""
    yield from _mounted(tmp_path / "closed", "-t", "tmpfs", "-o", "ro", "tmpfs")
