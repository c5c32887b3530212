"""A terminal of 80 columns for a command: what a person sees, and what they may type."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


def on_terminal(
    *arguments: object, typed: str = "", columns: int = 80, cwd: Path | None = None
) -> tuple[int, str]:
    """Run ``mlaas`` on a terminal; return its exit status and all that it has shown, without colours."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, "-m", "mlaas_ray.cli.main", *map(str, arguments)],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        cwd=cwd,
        env=environment | {"TERM": "xterm"},
        start_new_session=True,
    ) as process:
        os.close(inner)
        os.write(outer, typed.encode())
        shown = b""
        while True:
            try:
                part = os.read(outer, 65536)
            except OSError:  # the command has closed its side
                break
            if not part:
                break
            shown += part
        status = process.wait(60)
    os.close(outer)
    return status, _ESCAPES.sub("", shown.decode()).replace("\r\n", "\n")
