"""XRootD's settings, which must be made before its library loads, and what its errors mean."""

from __future__ import annotations

import os
import re
import warnings

# XrdCl's defaults take 8 to 12 minutes to report a server that is gone. With these a refused connection is
# reported in 10 s, a server that never answers in 18 s, and one that stops in the middle in 33 s (seconds;
# measured against Debian's server 5.5.3).
SETTINGS = {
    "XRD_CONNECTIONWINDOW": "5",
    "XRD_CONNECTIONRETRY": "3",
    "XRD_REQUESTTIMEOUT": "60",
    "XRD_STREAMTIMEOUT": "15",
    "XRD_TIMEOUTRESOLUTION": "1",
    "XRD_STREAMERRORWINDOW": "5",
}

_CODES = {
    "3010": "permission denied",
    "3011": "no such file",
    "3005": "the file ends too early",
    "3012": "the server failed",
}


def configure_xrootd() -> None:
    """Set XRootD's time-outs, where the user has not; call before anything imports XRootD."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # When Python ends, XRootD looks at every object there is, also at one that PyTorch has deprecated.
    warnings.filterwarnings("ignore", "`torch.distributed.reduce_op` is deprecated", FutureWarning)


def code(error: BaseException) -> str | None:
    """Return the server's error code (``3011``) that an exception of fsspec-xrootd reports, if any."""
    match = re.search(r"\[(30\d\d)\]", str(error))
    return match[1] if match else None


def why(error: BaseException) -> str:
    """Say on one line what an I/O error means."""
    number = code(error)
    text = " ".join(str(error).split())[:300] or type(error).__name__
    known = _CODES.get(number or "")
    return f"{known} ({text})" if known else text
