"""``python -m mlaas_ray.inference SETTINGS``: the process of :func:`running_service`, not for people.

Prints one JSON line when it answers, an error as one JSON line on standard error, and stops when its
standard input is closed: so it does not outlive who started it, unless that is wanted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import redirect_stdout
from typing import TextIO

from mlaas_ray.core.errors import MlaasError
from mlaas_ray.inference.service import LASTING, Service, serve_until_stopped
from mlaas_ray.inference.settings import ServiceSettings


def main() -> int:
    """Serve until told to stop."""
    if not os.environ.get(LASTING):
        threading.Thread(target=_stop_with_parent, daemon=True).start()
    results = sys.stdout
    try:
        # Ray reports what goes wrong in a cluster on standard output, where our one line is waited for.
        with redirect_stdout(sys.stderr):
            serve_until_stopped(
                ServiceSettings.model_validate_json(sys.argv[1]), lambda service: _announce(service, results)
            )
    except MlaasError as error:
        sys.stderr.write("\n" + json.dumps({"message": error.message, "remedy": error.remedy}) + "\n")
        return 2
    return 0


def _announce(service: Service, results: TextIO) -> None:
    results.write(json.dumps({"url": service.url, "pid": service.pid}) + "\n")
    results.flush()


def _stop_with_parent() -> None:
    # Not through sys.stdin: its lock, held here, would abort the interpreter on its way out.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
