"""BusyError: more rows wait than the service has room for."""

from __future__ import annotations

from mlaas_ray.core.errors import MlaasError


class BusyError(MlaasError):
    """The service has no room for a request now; the same request may be sent again."""
