"""Events as programs send them in JSON, turned into the rows a model takes.

One of these, beside ``model`` (a name, or ``name:version``) and ``version``; names of these fields may be
written in any case, other fields are ignored, as TFaaS does:

- ``keys`` and ``values``: values in the order of the keys; a key that is not given has no value;
- ``values`` alone: values in the model's order, all of them; null where there is none;
- ``event``: the file's branches, ``{"MET_pt": 31.2, "Jet_pt": [52.1, 33.0]}``, prepared and flattened by the
  model's own FeatureSpec as in training;
- ``values`` as a list of rows, or ``events`` as a list of events: many at once.

What most programs send, ``values`` of one row or of many under names in lower case, is read by a typed
decoder, in a third of the time; what that does not take is read again in general, which says what is wrong.
So is what is sent to a model of other numbers than float32, which gets them unrounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from mlaas_ray.core.errors import EventError
from mlaas_ray.core.features import FeatureSpec
from mlaas_ray.core.flatten import flatten_events
from mlaas_ray.inference.rows import (
    FLOAT32,
    ManyRows,
    SingleRow,
    carrier,
    fit,
    place_many,
    place_row,
    positions_of,
    read_row,
    read_rows,
    scatter,
)

FORMS = 'Send {"keys": […], "values": […]}, {"values": […]} or {"event": {…}}'


@dataclass(frozen=True)
class Query:
    """One request's content, before its model is known.

    Attributes:
        body: The JSON.
        usual: What it says, when it is in the usual form.
    """

    body: bytes
    usual: SingleRow | ManyRows | None = None

    @classmethod
    def parse(cls, body: bytes) -> Query:
        """Read a body.

        Raises:
            EventError: When it is not a JSON object, saying where.
        """
        query = cls(body, read_row(body) or read_rows(body))
        if query.usual is None:
            _ = query.fields
        return query

    @cached_property
    def fields(self) -> Mapping[str, Any]:
        """The JSON object, its names in lower case."""
        try:
            content = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise EventError(f"the body is not JSON: {error}", FORMS) from None
        if not isinstance(content, dict):
            raise EventError(f"the body is a JSON {_kind(content)}, not an object", FORMS)
        return {name.lower(): value for name, value in content.items()}

    @property
    def model(self) -> str:
        """The model asked for, ``name`` or ``name:version``; empty when it is left out.

        Raises:
            EventError: For a name or version of another type.
        """
        if self.usual is not None:
            return self.usual.model
        name = self.fields.get("model")
        version = self.fields.get("version")
        if name is not None and not isinstance(name, str):
            raise EventError(f"model is a {_kind(name)}", 'Send "model": "name"')
        if version is None or not name:
            return name or ""
        if ":" in name and not name.endswith(f":{version}"):
            raise EventError(f"model {name!r} and version {version!r} differ", "Send one of them")
        if isinstance(version, bool) or not isinstance(version, int | str):
            raise EventError(f"version is a {_kind(version)}", 'Send "version": 3')
        return f"{name.partition(':')[0]}:{version}"

    def rows(
        self, spec: FeatureSpec | None, width: int, dtype: np.dtype[Any] = FLOAT32
    ) -> tuple[npt.NDArray[Any], bool]:
        """Turn the events into a model's rows.

        Args:
            spec: The model's columns; None in a model that came from elsewhere.
            width: Values a row has.
            dtype: Type of its values.

        Returns:
            ``(events, features)`` of that type, and whether many events were sent (as a list).

        Raises:
            EventError: For events that do not fit the model.
        """
        if dtype != FLOAT32:  # the typed decoder reads all numbers as floating-point ones
            return self._rows(spec, width, dtype)
        usual = self.usual
        many = isinstance(usual, ManyRows)
        if isinstance(usual, SingleRow):
            row = place_row(usual, spec, width)
            placed = None if row is None else row[None]
        else:
            placed = place_many(usual, spec, width) if usual else None
        if placed is not None:
            return placed, many
        return self._rows(spec, width, dtype)

    def _rows(
        self, spec: FeatureSpec | None, width: int, dtype: np.dtype[Any]
    ) -> tuple[npt.NDArray[Any], bool]:
        """Turn the events of any form into rows, or say what is wrong with them."""
        given = [name for name in ("values", "event", "events") if self.fields.get(name) is not None]
        if len(given) != 1:
            what = " and ".join(given) or "no values and no event"
            raise EventError(f"the request has {what}", FORMS)
        if given == ["values"]:
            # not in float32: an error names the value that was sent
            wide = np.float64 if dtype == FLOAT32 else np.longdouble
            rows, many = self._from_values(spec, width, wide)
        elif spec is None:
            raise EventError("the model knows no branches: it has no features.json", 'Send {"values": […]}')
        else:
            events = self.fields[given[0]]
            many = given == ["events"]
            rows = flatten_events(_events(events) if many else _events([events]), spec, carrier(dtype))
        return fit(rows, dtype, spec), many

    def _from_values(
        self, spec: FeatureSpec | None, width: int, wide: type[np.floating[Any]]
    ) -> tuple[npt.NDArray[Any], bool]:
        values = self.fields["values"]
        keys = self.fields.get("keys")
        if not isinstance(values, list) or not values:
            raise EventError(f"values is {'empty' if values == [] else 'a ' + _kind(values)}", FORMS)
        many = isinstance(values[0], list)
        rows = values if many else [values]
        # TFaaS ignores the keys; so does a model that knows no columns.
        if keys is None or spec is None:
            return _matrix(rows, width, wide), many
        if not isinstance(keys, list):
            raise EventError(f"keys is a {_kind(keys)}", 'Send "keys": ["name", …]')
        positions = positions_of(keys, spec)
        matrix = _matrix(rows, len(keys), wide, what=f"{len(keys)} keys")
        return scatter(matrix, positions, spec.width), many


def _matrix(rows: list[Any], width: int, wide: type[np.floating[Any]], *, what: str = "") -> npt.NDArray[Any]:
    """Make ``(events, width)`` of a wide type of lists of numbers, NaN where null is.

    Raises:
        EventError: For a row of another length, and for what is no number.
    """
    expected = what or f"the model takes {width} values"
    for number, row in enumerate(rows):
        where = f"row {number}: " if len(rows) > 1 else ""
        if not isinstance(row, list):
            raise EventError(f"{where}values is a {_kind(row)}, not a list", "Send lists of the same length")
        if len(row) != width:
            raise EventError(f"{where}{len(row)} values were sent, but {expected}", "Send one value for each")
        for position, value in enumerate(row):
            kind = type(value)
            if kind is float or kind is int or kind is bool or value is None:
                continue
            raise EventError(
                f"{where}value {position} is {_shown(value)}, not a number or null", "Send numbers"
            )
    return np.array(rows, dtype=wide)  # None becomes NaN


def _events(events: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(events, list) or not events:
        raise EventError("events is no list of events", 'Send "events": [{…}, …]')
    for event in events:
        if not isinstance(event, dict):
            raise EventError(f"an event is a {_kind(event)}, not an object", 'Send {"MET_pt": 31.2, …}')
    return events


def _kind(value: Any) -> str:
    """Name a JSON type."""
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
    return names.get(type(value), "null")


def _shown(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 40 else text[:40] + "…"
