"""Our own networks in PyTorch. Each takes normalised values and the mask, both ``(events, features)``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mlaas_ray.training.framework import Setup
from mlaas_ray.training.frameworks.models import (
    FREQUENCY,
    MIXTURES,
    Cnn,
    DeepSets,
    Image,
    MaskedLinear,
    Mlp,
    Periodic,
    halvings,
    images_of,
    lacking,
    objects_of,
    options_of,
    waved,
)

if TYPE_CHECKING:
    import torch


def build(setup: Setup) -> torch.nn.Module:
    """Build one of our own networks, with the ending that the task wants."""
    from torch import nn

    options = options_of(setup)
    outputs = setup.task.outputs
    if isinstance(options, Periodic):
        body = _periodic(setup, options)
    elif isinstance(options, MaskedLinear):
        body = _masked_linear(setup.width, options, outputs)
    elif isinstance(options, Mlp):
        body = module(_values_only, layers=_dense(setup.width, options.hidden, outputs, options.dropout))
    elif isinstance(options, DeepSets):
        body = _deep_sets(setup, options)
    else:
        assert isinstance(options, Cnn)
        body = _cnn(setup, options)
    endings: dict[str, Any] = {"binary": nn.Sigmoid(), "multiclass": nn.Softmax(dim=1)}
    return module(_ended, body=body, ending=endings.get(setup.task.kind, nn.Identity()))


def module(forward: Callable[..., Any], *, raw: bool = False, **children: Any) -> torch.nn.Module:
    """Make a module of a function and what it works with.

    Args:
        forward: Called with the module, values and mask; the children are the module's attributes.
        raw: Whether it is called with values alone.
        children: Modules, tensors (which move along with the module), or plain values.
    """
    kind = _function_modules()[0 if raw else 1]
    made: torch.nn.Module = kind(forward, children)
    return made


@functools.cache
def _function_modules() -> tuple[Any, Any]:
    import torch
    from torch import nn

    class Raw(nn.Module):
        def __init__(self, function: Callable[..., Any], children: dict[str, Any]) -> None:
            super().__init__()
            self.function = function
            for name, child in children.items():
                if isinstance(child, torch.Tensor) and not isinstance(child, nn.Parameter):
                    self.register_buffer(name, child, persistent=False)
                else:
                    setattr(self, name, child)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.function(self, x)
            return answer

    class Masked(Raw):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            answer: torch.Tensor = self.function(self, x, mask)
            return answer

    return Raw, Masked


def jagged_array_linear(width: int, nodes: int, *, bias: bool, presence: bool) -> torch.nn.Module:
    """See :func:`mlaas_ray.training.layers.jagged_array_linear`."""
    from torch import nn

    values = _initialised(nn.Linear(width, nodes, bias=bias))
    there = _initialised(nn.Linear(width, nodes, bias=False)) if presence else None
    return module(_jagged_forward, values=values, presence=there)


def _jagged_forward(self: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    import torch

    # not a product: what is missing may be NaN
    y: torch.Tensor = self.values(torch.where(mask > 0, x, torch.zeros_like(x)))
    return y if self.presence is None else y + self.presence(mask)


def _values_only(self: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    answer: torch.Tensor = self.layers(x)
    return answer


def _ended(self: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    answer: torch.Tensor = self.ending(self.body(x, mask))
    return answer


def _periodic(setup: Setup, options: Periodic) -> torch.nn.Module:
    import torch
    from torch import nn

    columns, missing = waved(setup.features), lacking(setup.features)
    shape = (columns, options.frequencies)
    width = setup.width + columns * MIXTURES + len(missing)
    return module(
        _periodic_forward,
        columns=columns,
        missing=torch.from_numpy(missing),
        frequencies=nn.Parameter(torch.randn(shape) * FREQUENCY * 2 * math.pi),
        phases=nn.Parameter((2 * torch.rand(shape) - 1) * math.pi),
        mixtures=nn.Parameter(torch.randn(*shape, MIXTURES) / math.sqrt(options.frequencies)),
        layers=_dense(width, options.hidden, setup.task.outputs, options.dropout),
    )


def _periodic_forward(self: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    import torch

    waves = torch.cos(x[:, : self.columns, None] * self.frequencies + self.phases)
    mixed = torch.einsum("ncf,cfm->ncm", waves, self.mixtures)
    answer: torch.Tensor = self.layers(torch.cat([x, mixed.flatten(1), mask[:, self.missing]], dim=1))
    return answer


def _masked_linear(width: int, options: MaskedLinear, outputs: int) -> torch.nn.Module:
    from torch import nn

    nodes = options.hidden[0] if options.hidden else outputs
    first = jagged_array_linear(width, nodes, bias=True, presence=True)
    rest: Any = nn.Identity()
    if options.hidden:
        drop = nn.Dropout(options.dropout)
        rest = nn.Sequential(nn.GELU(), drop, _dense(nodes, options.hidden[1:], outputs, options.dropout))

    def forward(self: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.rest(self.first(x, mask))
        return answer

    return module(forward, first=first, rest=rest)


def _deep_sets(setup: Setup, options: DeepSets) -> torch.nn.Module:
    import torch
    from torch import nn

    parts = objects_of(setup.features)
    # of an object: the value of each variable, and whether there is one
    inputs = [2 * collection.columns.shape[1] for collection in parts.collections]
    networks = nn.ModuleList(nn.Sequential(*_hidden(size, options.objects, 0.0)) for size in inputs)
    found = len(parts.flat) + sum(options.objects[-1] if options.objects else size for size in inputs)
    columns: dict[str, Any] = {
        f"columns_{number}": torch.from_numpy(collection.columns.copy())
        for number, collection in enumerate(parts.collections)
    }
    return module(
        _deep_sets_forward,
        flat=torch.from_numpy(parts.flat),
        networks=networks,
        rest=_dense(found, options.hidden, setup.task.outputs, options.dropout),
        pool=options.pool,
        **columns,
    )


def _deep_sets_forward(self: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    import torch

    found = [x[:, self.flat]]
    for number, network in enumerate(self.networks):
        columns = getattr(self, f"columns_{number}")
        values, there = x[:, columns], mask[:, columns]  # (events, objects, variables)
        exists = there.amax(dim=2, keepdim=True)
        seen = network(torch.cat([values, there], dim=2)) * exists
        if self.pool == "max":
            seen = torch.where(exists > 0, seen, torch.full_like(seen, -1e9)).amax(dim=1)
            pooled = torch.where(exists.amax(dim=1) > 0, seen, torch.zeros_like(seen))
        else:
            pooled = seen.sum(dim=1)
            if self.pool == "mean":
                pooled = pooled / exists.sum(dim=1).clamp(min=1.0)
        found.append(pooled)
    answer: torch.Tensor = self.rest(torch.cat(found, dim=1))
    return answer


def _cnn(setup: Setup, options: Cnn) -> torch.nn.Module:
    from torch import nn

    parts = images_of(setup.features)
    networks = nn.ModuleList(_convolutions(view, options) for view in parts.views)
    found = parts.scalars + sum(_pixels(view, options) for view in parts.views)
    rest = _dense(found, options.hidden, setup.task.outputs, options.dropout)
    return module(_cnn_forward, parts=parts, networks=networks, rest=rest)


def _cnn_forward(self: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    import torch

    found = [x[:, : self.parts.scalars]]
    for view, network in zip(self.parts.views, self.networks, strict=True):
        images = x[:, view.start : view.stop].reshape(-1, *view.shape)
        found.append(network(images).flatten(1))
    answer: torch.Tensor = self.rest(torch.cat(found, dim=1))
    return answer


def _convolutions(view: Image, options: Cnn) -> torch.nn.Module:
    from torch import nn

    layers: list[nn.Module] = []
    channels, rows, columns = view.shape
    halved = halvings(min(rows, columns), len(options.channels))
    for number, filters in enumerate(options.channels):
        layers += [nn.Conv2d(channels, filters, options.kernel, padding="same"), nn.GELU()]
        if number < halved:
            layers.append(nn.MaxPool2d(2))
        channels = filters
    return nn.Sequential(*layers)


def _pixels(view: Image, options: Cnn) -> int:
    """Return how many values the convolutions leave of a view."""
    channels, rows, columns = view.shape
    factor = 2 ** halvings(min(rows, columns), len(options.channels))
    filters = options.channels[-1] if options.channels else channels
    return int(filters * (rows // factor) * (columns // factor))


def _dense(width: int, hidden: Sequence[int], outputs: int, dropout: float) -> torch.nn.Module:
    from torch import nn

    last = hidden[-1] if hidden else width
    return nn.Sequential(*_hidden(width, hidden, dropout), nn.Linear(last, outputs))


def _hidden(width: int, hidden: Sequence[int], dropout: float) -> list[Any]:
    from torch import nn

    layers: list[nn.Module] = []
    for nodes in hidden:
        layers += [_initialised(nn.Linear(width, nodes)), nn.GELU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = nodes
    return layers


def _initialised(layer: Any) -> Any:
    from torch import nn

    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
