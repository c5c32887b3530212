"""Machine learning as a service for high-energy physics: stream ROOT files, train, serve.

Each layer is imported by itself, so that a program pays only for what it uses:

>>> from mlaas_ray.streaming import read_root      # ROOT files -> ray.data.Dataset
>>> from mlaas_ray.workflows import train          # a job -> a model package
>>> from mlaas_ray.inference import build_app      # a repository -> a Ray Serve application
>>> from mlaas_ray.client import Client            # predictions from a running service
"""

__version__ = "0.1.0"
