"""What a program imports to talk to a service: HTTP only, no Ray and no framework."""

from mlaas_ray.client.client import Client

__all__ = ["Client"]
