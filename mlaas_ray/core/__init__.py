"""The words the layers share: errors, locations, features, flattening, model packages."""

from mlaas_ray.core.errors import MlaasError
from mlaas_ray.core.features import Feature, FeatureSpec, Statistics
from mlaas_ray.core.flatten import flatten, flatten_events
from mlaas_ray.core.grid import GridSpec
from mlaas_ray.core.location import Location, locate
from mlaas_ray.core.package import ModelPackage, Signature, Tensor, staging, write_package
from mlaas_ray.core.rasterise import Counts, mean_image, rasterise

__all__ = [
    "Counts",
    "Feature",
    "FeatureSpec",
    "GridSpec",
    "Location",
    "MlaasError",
    "ModelPackage",
    "Signature",
    "Statistics",
    "Tensor",
    "flatten",
    "flatten_events",
    "locate",
    "mean_image",
    "rasterise",
    "staging",
    "write_package",
]
