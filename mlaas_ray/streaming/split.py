"""The split: each event's number in [0, 1) by a hash, which decides whether it trains or judges."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.hashing import mix

# The whole of the data: no split.
WHOLE = (0.0, 1.0)

Part = tuple[float, float]


def entry_numbers(uuid: str, start: int, stop: int, seed: int) -> npt.NDArray[np.float64]:
    """Number the entries ``start`` to ``stop`` (not included) by their file's identifier and themselves.

    So an event falls on the same side however the files are named, cut or ordered.

    Args:
        uuid: The file's identifier.
        start: First entry.
        stop: One past the last entry.
        seed: Another seed makes another split.

    Returns:
        ``(stop - start,)`` in [0, 1).
    """
    return identifier_numbers(entry_identifiers(uuid, start, stop), seed)


def entry_identifiers(
    uuid: str, start: int, stop: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Identify entries that have no identifiers of their own: by their file, as a number, and themselves."""
    return np.full(stop - start, _key(uuid)), np.arange(start, stop, dtype=np.int64)


def identifier_numbers(identifiers: Sequence[npt.NDArray[np.generic]], seed: int) -> npt.NDArray[np.float64]:
    """Number events by their own identifiers, such as run, luminosity block and event.

    So an event falls on the same side whichever file or skim it comes from.

    Args:
        identifiers: Integers ``(events,)`` each.
        seed: Another seed makes another split.

    Returns:
        ``(events,)`` in [0, 1).
    """
    state = np.full(len(identifiers[0]), _key(f"identifiers/{seed}"), dtype=np.uint64)
    for values in identifiers:
        # int64 and uint64 of the same bits are the same identifier
        numbers = values.astype(np.int64 if values.dtype.kind == "i" else np.uint64).view(np.uint64)
        state = mix(state + numbers * np.uint64(0x9E3779B97F4A7C15))
    return _unit(state)


def within(numbers: npt.NDArray[np.float64], part: Part) -> npt.NDArray[np.bool_]:
    """Tell which numbers lie in the interval ``[low, high)``."""
    low, high = part
    return np.asarray((numbers >= low) & (numbers < high))


def _key(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def _unit(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    return (mix(numbers) >> np.uint64(11)).astype(np.float64) * 2.0**-53
