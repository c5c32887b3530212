"""TFParams: how TFaaS describes a model, from the params.json it was uploaded with and from its package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlaas_ray.core.errors import PackageError
from mlaas_ray.core.example import branches_to_send, example_event
from mlaas_ray.core.package import ModelPackage, Signature

if TYPE_CHECKING:
    from mlaas_ray.inference.catalog import Entry

PARAMS = "params.json"

# TFaaS's documents write the first, its server reads the second.
_SPELLINGS = {"inputNode": "input_node", "outputNode": "output_node", "inputName": "input_name"}
_SPELLINGS |= {"outputName": "output_name", "imgChannels": "img_channels"}

_TEXTS = (
    "name",
    "model",
    "labels",
    "op",
    "input_name",
    "output_name",
    "input_node",
    "output_node",
    "description",
    "timestamp",
)


def read_params(text: str | bytes) -> dict[str, Any]:
    """Read a params.json in either spelling.

    Raises:
        PackageError: When it is not a JSON object of the right types.
    """
    remedy = 'Send a JSON object such as {"name": "mymodel", "model": "model.onnx", "labels": "labels.txt"}'
    try:
        content = json.loads(text)
    except ValueError as error:
        raise PackageError(f"params.json is not JSON: {error}", remedy) from None
    if not isinstance(content, dict):
        raise PackageError("params.json is not a JSON object", remedy)
    params: dict[str, Any] = {_SPELLINGS.get(str(key), str(key)): value for key, value in content.items()}
    for key in _TEXTS:
        if not isinstance(params.get(key, ""), str | None):
            raise PackageError(f"params.json: {key} is not a string", remedy)
    channels = params.get("img_channels", 0)
    if isinstance(channels, bool) or not isinstance(channels, int):
        raise PackageError("params.json: img_channels is not a whole number", remedy)
    return params


def named_outputs(folder: Path) -> tuple[str, ...]:
    """Return what the params.json in a folder calls the output that is served; empty where nothing says it.

    Raises:
        PackageError: When params.json is damaged.
    """
    params = _written(folder)
    return tuple(params[key] for key in ("output_name", "output_node") if params.get(key))


def describe(entry: Entry, versions: list[int]) -> dict[str, Any]:
    """Return TFaaS's keys for a model, and after them what a client of ours may want to know.

    Args:
        entry: The version described.
        versions: All versions of the model.
    """
    package = entry.package
    own = _filled(_written(package.path), package)
    return own | {
        "version": entry.version.version,
        "versions": versions,
        "format": package.manifest.model_format,
        "framework": package.manifest.framework,
        "created": package.manifest.created.isoformat(),
        "width": entry.width,
        "dtype": str(entry.dtype),
        # the whole course of the training is for who asks for one model
        "metrics": {key: value for key, value in package.metrics.items() if key == "validation"},
    }


def describe_fully(entry: Entry, versions: list[int]) -> dict[str, Any]:
    """Return :func:`describe` with all that a client needs to know to send events.

    Those are the columns; the branches of the files, and an example of them; the FeatureSpec; the classes and
    the signature.
    """
    features = entry.features
    # an event's example is of numbers as they were seen, which a model of integers may not take
    by_event = features if entry.dtype.kind == "f" else None
    # what the first pass saw takes most of its bytes, and nobody needs it to make rows
    unseen = {"features": {"__all__": {"statistics"}}}
    return describe(entry, versions) | {
        "columns": list(features.columns) if features else None,
        "branches": branches_to_send(features) if features else None,
        "example": {"event": example_event(by_event)} if by_event else {"values": [1.0] * entry.width},
        "features": features.model_dump(mode="json", exclude=unseen) if features else None,
        "classes": entry.package.labels,
        "task": task.model_dump(mode="json") if (task := entry.package.task) else None,
        "metrics": entry.package.metrics,
        "signature": entry.package.signature.model_dump(mode="json"),
    }


def _written(folder: Path) -> dict[str, Any]:
    try:
        return read_params((folder / PARAMS).read_bytes())
    except FileNotFoundError:
        return {}


def _filled(params: Mapping[str, Any], package: ModelPackage) -> dict[str, Any]:
    """Fill in what params.json leaves out, and leave out what is not TFaaS's."""
    signature: Signature = package.signature
    model_file = "model.onnx" if package.manifest.model_format == "onnx" else "saved_model.pb"
    defaults = {
        "model": model_file,
        "labels": "labels.json" if package.labels else "",
        "op": "",
        "input_name": signature.inputs[0].name,
        "output_name": signature.outputs[0].name,
        "img_channels": 0,
        "options": None,
        "input_node": signature.inputs[0].name,
        "output_node": signature.outputs[0].name,
        "description": "",
        "timestamp": package.manifest.created.isoformat(),
    }
    # The model may be served under another name than it was made with.
    filled: dict[str, Any] = {"name": package.path.parent.name}
    for key, default in defaults.items():
        value = params.get(key)
        filled[key] = default if value in (None, "") else value
    return filled
