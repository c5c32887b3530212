"""The Serve application: gateways over a pool of model replicas, wired once."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application, Deployment

from mlaas_ray.inference.gateway import Gateway
from mlaas_ray.inference.replica import ModelReplica
from mlaas_ray.inference.settings import ServiceSettings

APPLICATION = "mlaas"

# Small shares: on a laptop the service lives beside a training. What a replica may really use is bounded by
# the threads of its models.
_OPTIONS: dict[str, Any] = {
    "ray_actor_options": {"num_cpus": 0.1},
    "graceful_shutdown_wait_loop_s": 0.1,
    "health_check_timeout_s": 60,
    "logging_config": {"enable_access_log": False},
}


def build_app(settings: ServiceSettings) -> Application:
    """Build the application that answers for a repository.

    Args:
        settings: The service's settings; host, port and address are for who starts it.

    Returns:
        An application for ``serve.run``.
    """
    models: Deployment = serve.deployment(
        name="ModelReplica",
        num_replicas=settings.replicas,
        max_ongoing_requests=200,
        graceful_shutdown_timeout_s=10,
        **_OPTIONS,
    )(ModelReplica)
    gateway: Deployment = serve.deployment(
        name="Gateway",
        num_replicas=settings.gateways,
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=15,
        **_OPTIONS,
    )(serve.ingress()(Gateway))
    return gateway.bind(settings, models.bind(settings))


def app_builder(args: dict[str, Any]) -> Application:
    """Build the application from the ``args`` of a Serve config file.

    Raises:
        JobError: For a setting that is not known or cannot be.
    """
    return build_app(ServiceSettings.of(args))
