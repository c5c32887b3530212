"""The Serve application: gateways over a pool of model replicas, wired once."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import BackpressureConfig

from mlaas_ray.inference.autoscaling import options
from mlaas_ray.inference.gateway import Gateway
from mlaas_ray.inference.replica import ModelReplica
from mlaas_ray.inference.settings import Scale, ServiceSettings

APPLICATION = "mlaas"

_OPTIONS: dict[str, Any] = {
    "graceful_shutdown_wait_loop_s": 0.1,
    "health_check_timeout_s": 60,
    "logging_config": {"enable_access_log": False},
}


def replicas(
    settings: ServiceSettings,
    scale: Scale,
    *,
    only: str | None = None,
    cpus: float | None = None,
    gpus: float = 0,
) -> Application:
    """Build model replicas.

    Args:
        settings: The service's settings.
        scale: How many.
        only: The one model they are for; None for any.
        cpus: CPUs that Ray reserves for each; as many as the settings say when not given.
        gpus: GPUs, likewise.
    """
    deployment: Deployment = serve.deployment(
        name="ModelReplica",
        max_ongoing_requests=200,
        graceful_shutdown_timeout_s=10,
        ray_actor_options={"num_cpus": settings.cpus if cpus is None else cpus, "num_gpus": gpus},
        **options(scale, rows=settings.rows_per_replica, threads=settings.threads),
        **_OPTIONS,
    )(ModelReplica)
    return deployment.bind(settings, only)


def build_app(settings: ServiceSettings) -> Application:
    """Build the application that answers for a repository.

    Args:
        settings: The service's settings; host, port and address are for who starts it.

    Returns:
        An application for ``serve.run``.
    """
    models = replicas(settings, settings.replicas) if settings.predict_in != "gateways" else None
    gateway: Deployment = serve.deployment(
        name="Gateway",
        max_ongoing_requests=1000,
        max_queued_requests=2000,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        graceful_shutdown_timeout_s=15,
        ray_actor_options={"num_cpus": settings.cpus},
        **options(settings.gateways, rows=settings.requests_per_gateway),
        **_OPTIONS,
    )(serve.ingress()(Gateway))
    return gateway.bind(settings, models)


def app_builder(args: dict[str, Any]) -> Application:
    """Build the application from the ``args`` of a Serve config file.

    Raises:
        JobError: For a setting that is not known or cannot be.
    """
    return build_app(ServiceSettings.of(args))
