"""Triton's server out of PyPI's nvidia-pytriton: python backend, dynamic batching, HTTP, the same runtime.

``python triton.py --model PACKAGE --port N --triton FOLDER`` prints a line when Triton's ``infer`` answers.
The server is pytriton's own binary, its Python that of this program, as pytriton would have it; pytriton's
proxy between the two is left out, which only helps Triton. As the model's ``model.py`` this file is loaded
by Triton, too: the class at its end.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

NAME = "mlp"
CONFIGURATION = """
name: "mlp"
backend: "python"
max_batch_size: 256
input [{{ name: "x", data_type: TYPE_FP32, dims: [{width}] }}]
output [{{ name: "prediction", data_type: TYPE_FP32, dims: [1] }}]
instance_group [{{ kind: KIND_CPU, count: 1 }}]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
parameters [{{ key: "package", value: {{ string_value: "{package}" }} }}]
"""


def find_server(given: Path | None) -> Path:
    """Return pytriton's folder ``tritonserver``: of the folder given, a virtual environment, or of this one.

    Raises:
        FileNotFoundError: When there is none, or none for this Python.
    """
    if given is not None:
        places = [given, *given.glob("lib/python*/site-packages/pytriton/tritonserver")]
    else:
        found = importlib.util.find_spec("pytriton")
        places = [Path(found.origin).parent / "tritonserver"] if found and found.origin else []
    for place in places:
        if (place / "bin" / "tritonserver").exists():
            if not _stub(place).exists():
                raise FileNotFoundError(f"{place} has no backend for Python {_version()}")
            return place.resolve()
    where = (
        f"in {given}" if given else "here: pip install nvidia-pytriton==0.7.0, or --triton ITS_ENVIRONMENT"
    )
    raise FileNotFoundError(f"no pytriton {where}")


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _stub(server: Path) -> Path:
    return server / "python_backend_stubs" / _version() / "triton_python_backend_stub"


def lay_out(folder: Path, server: Path, package: Path, delay: int) -> None:
    """Write the folders that Triton reads: its backend, with the stub of this Python, and the model."""
    backend, model = folder / "backends" / "python", folder / "models" / NAME
    backend.mkdir(parents=True)
    (model / "1").mkdir(parents=True)
    for file in [*(server / "backends" / "python").iterdir(), _stub(server)]:
        (backend / file.name).symlink_to(file)
    width = json.loads((package / "signature.json").read_text())["inputs"][0]["shape"][1]
    (model / "config.pbtxt").write_text(
        CONFIGURATION.format(width=width, delay=delay, package=package.resolve())
    )
    shutil.copy(__file__, model / "1" / "model.py")


def start(folder: Path, server: Path, port: int) -> subprocess.Popen[bytes]:
    """Start Triton."""
    command = [
        str(server / "bin" / "tritonserver"),
        f"--model-repository={folder / 'models'}",
        f"--backend-directory={folder / 'backends'}",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
        "--exit-timeout-secs=5",
    ]
    # The backend's Python takes no notice of PYTHONPATH, but looks for its home as python3 does: in PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.Popen(command, env=os.environ | {"PATH": path}, stdout=sys.stderr)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--triton", type=Path)
    parser.add_argument("--delay", type=int, default=1000, help="microseconds a batch waits for more rows")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory(prefix="triton-") as name:
        folder, server = Path(name), find_server(options.triton)
        lay_out(folder, server, options.model, options.delay)
        process = start(folder, server, options.port)
        try:
            while process.poll() is None:
                with suppress(OSError):
                    urllib.request.urlopen(
                        f"http://127.0.0.1:{options.port}/v2/models/{NAME}/ready", timeout=1
                    )
                    break
                time.sleep(0.1)
            else:
                sys.exit(f"tritonserver ended with {process.returncode}")
            print("ready", flush=True)
            process.wait()
        finally:
            process.terminate()
            process.wait(30)


class TritonPythonModel:
    """What Triton calls: all requests of a batch at once."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the package."""
        from mlaas_ray.core.package import ModelPackage
        from mlaas_ray.inference.runtimes import load_runtime

        parameters = json.loads(args["model_config"])["parameters"]
        self._runtime = load_runtime(ModelPackage(parameters["package"]["string_value"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Predict the rows of all requests in one call."""
        import numpy as np
        import triton_python_backend_utils as triton

        from mlaas_ray.inference.runtimes import predict

        # Not as_numpy() nor Tensor(name, array): this backend was built for numpy 1, and reads the size of
        # numpy 2's types from where it is not.
        given = [np.from_dlpack(triton.get_input_tensor_by_name(request, "x")) for request in requests]
        found = predict(self._runtime, np.concatenate(given))
        parts = np.split(found, np.cumsum([len(rows) for rows in given])[:-1])
        return [triton.InferenceResponse([triton.Tensor.from_dlpack("prediction", part)]) for part in parts]


if __name__ == "__main__":
    main()
