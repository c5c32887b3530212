"""An S3 server of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def running_s3(bucket: str) -> Iterator[str]:
    """Serve an empty bucket, to this process and those it starts; give its address.

    Its name and credentials are in the environment meanwhile, where every client of S3 looks.
    """
    import fsspec
    from moto.server import ThreadedMotoServer

    system = fsspec.get_filesystem_class("s3")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        # what another test's server was asked is not for this one
        system.clear_instance_cache()
        system().mkdir(bucket)
        yield f"s3://{bucket}"
        # the next server of this process would have it, too
        system.clear_instance_cache()
        system().rm(bucket, recursive=True)
        server.stop()
        system.clear_instance_cache()
