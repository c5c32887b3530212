"""Exporting: a network's files, each loaded afresh and compared with the network.

It is done when a model is tried, before any event is read, and again at the end of its training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlaas_ray.core.errors import ModelError
from mlaas_ray.training.batches import Floats
from mlaas_ray.training.framework import Framework, Network
from mlaas_ray.training.refusal import refusal
from mlaas_ray.training.source import Source, one_line

# The largest difference allowed between an exported model and the network it was made from.
EXPORT_TOLERANCE = 1e-4


def export(
    framework: Framework, network: Network, folder: Path, x: Floats, source: Source
) -> dict[str, float]:
    """Export a network, load each file afresh, and return the largest differences to its own answers.

    They are asked about all events at once, a few, one, and one without any value.

    Args:
        framework: Which reads the files.
        network: To be exported.
        folder: Where the files go.
        x: Raw values of some events ``(events, features)``.
        source: The code of the network.

    Raises:
        ModelError: When it cannot be exported, answers differently when asked again or about other events
            beside, or when a difference is over ``EXPORT_TOLERANCE``, in deviations of what the network
            answers where that is more than 1.
    """
    try:
        files = network.export(folder)
    except Exception as error:
        raise refusal(source, error, "the network cannot be exported:", "Write it in another way") from error
    x = np.concatenate([x, np.full((1, x.shape[1]), np.nan, np.float32)])
    own = network.predict(x)
    bad = int((~np.isfinite(own[:-1])).any(axis=1).sum())
    if bad:
        raise ModelError(
            f"{source.name}: the network's answers to {bad} of {len(x) - 1} events are not finite numbers",
            "Look for logarithms, roots and divisions of 0",
        )
    bound = EXPORT_TOLERANCE * max(1.0, float(np.abs(own[:-1]).max(initial=0.0)))
    again = _apart(network.predict(x), own)
    if not again <= bound:
        raise ModelError(
            f"{source.name}: asked twice about the same events, the network's answers differ by up to"
            f" {again:.2g}",
            "Leave out what is random when the network is not training",
        )
    parts = (slice(0, 1), slice(1, 4), slice(-1, None))
    alone = max(_apart(network.predict(x[part]), own[part]) for part in parts)
    if not alone <= bound:
        raise ModelError(
            f"{source.name}: the network's answer to an event depends on the events beside it, by up to"
            f" {alone:.2g}",
            "In place of the batch's own mean, largest value or number of events use BatchNorm, or constants",
        )
    differences = {}
    for file in files:
        try:
            answers = [framework.answer(folder, file, x[part]) for part in (slice(None), *parts)]
        except Exception as error:
            raise ModelError(
                f"{source.name}: the exported {file} does not run: {one_line(error)}",
                "Write the network with other functions, in float32",
            ) from error
        differences[file] = max(
            _apart(found, own[part]) for found, part in zip(answers, (slice(None), *parts), strict=True)
        )
        if not differences[file] <= bound:
            raise ModelError(
                f"{source.name}: the exported {file} answers otherwise than the network, by up to"
                f" {differences[file]:.2g}",
                "Leave out layers that behave at random, or otherwise, outside training",
            )
    return differences


def _apart(found: Floats, own: Floats) -> float:
    """Return the largest difference; infinite where shapes differ, or one of both is no number."""
    if found.shape != own.shape:
        return float("inf")
    same = (found == own) | (np.isnan(found) & np.isnan(own))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(found - own))
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))
