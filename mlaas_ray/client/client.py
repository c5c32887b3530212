"""Client: predictions and models of a running service, from a program."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from urllib.parse import quote

import httpx

from mlaas_ray.client.bundle import open_bundle
from mlaas_ray.core.errors import EventError, ServiceError

Prediction = list[float]

_RAW = "application/octet-stream"
_NPY = "application/x-npy"
# What one request of many rows holds at most: a service refuses bodies beyond a limit, and more rows than its
# queue takes while others wait.
_MOST_BYTES = 4 << 20
_MOST_ROWS = 16384


# How often a service that has no room for such a request is asked again, a second later each time.
_MOST_TRIES = 30


class _TooLargeError(ServiceError):
    """A body, or the rows made of it, of more bytes than the service takes."""


class _BusyError(ServiceError):
    """The service has no room for so many rows at the moment."""


_KINDS = {413: _TooLargeError, 503: _BusyError}


class Client:
    """A connection to a service; use it in a ``with`` block, or close it.

    >>> with Client("http://127.0.0.1:8083") as client:
    ...     client.predict("toy", event={"MET_pt": 31.2, "Jet_pt": [52.1, 33.0]})
    [0.83]

    Args:
        url: Where the service is.
        timeout: Longest wait for an answer, seconds.

    Raises:
        ServiceError: From every method: when the service cannot be reached, or refuses, with its reason.
    """

    def __init__(self, url: str = "http://127.0.0.1:8083", timeout: float = 60.0) -> None:
        self.url = url.rstrip("/")
        try:
            self._http = httpx.Client(base_url=self.url, timeout=timeout, follow_redirects=True)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ServiceError(f"{url!r} is no URL: {error}", "Write http://HOST:PORT") from None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
        self,
        model: str | None = None,
        events: Any = None,
        *,
        values: Any = None,
        keys: Sequence[str] | None = None,
        event: Mapping[str, Any] | None = None,
    ) -> Any:
        """Ask for predictions.

        Give one of ``events``, ``event`` and ``values`` (with ``keys`` in their order, or without in the
        model's). NaN, None and masked values are missing values. Tables, and an array ``(events, features)``
        in the model's order, with the model named, are sent as they are in memory, in as many requests as
        their size wants: the way for many events.

        Args:
            model: ``name`` or ``name:version``; may be left out when the service has one model.
            events: A table of events: a pandas DataFrame, an Arrow table, awkward records, a structured numpy
                array, or a mapping of arrays by name, jagged ones as lists or awkward arrays. Its columns are
                the branches of the files, or the model's columns. Or a list of what ``event`` takes.
            values: The values of one row, or of several rows: lists or numpy arrays, ``(features,)`` or
                ``(events, features)``; or a table as ``events`` takes it.
            keys: Names of the values; what is not named is missing.
            event: One event: values of each branch: a number, or a list for a jagged one.

        Returns:
            For a table, and an array ``(events, features)``, an array ``(events, outputs)`` in the type of
            the model's answers; ``[p0, …]`` for one row or event; a list of such for several.
        """
        given = [part for part in (events, values, keys, event) if part is not None]
        tables = [part for part in (events, values) if _is_table(part)]
        if tables:
            if len(given) > 1:
                raise EventError("something is given beside a table of events", "Give the table alone")
            return self._predict_table(model or self._only_model(), tables[0])
        if _is_matrix(values) and model and len(given) == 1:
            return self._predict_matrix(model, values)
        query = {"model": model, "keys": keys, "values": values, "event": event, "events": events}
        answers = self.predict_document({name: value for name, value in query.items() if value is not None})
        return _as_array(answers) if _is_matrix(values) else answers

    def predict_document(self, document: Mapping[str, Any]) -> Any:
        """Ask for predictions with a document as the service's ``/json`` takes it."""
        try:
            body = json.dumps(_plain(document), allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise EventError(
                f"the event cannot be sent: {error}", "Send numbers, lists and numpy arrays"
            ) from None
        return self._ask("POST", "/json", content=body, headers={"Content-Type": "application/json"})

    def _predict_matrix(self, model: str, values: Any) -> Any:
        import numpy as np  # which is there: the caller made the array with it

        # float32 would round other types, and some models hold more
        kind, rows = _NPY, np.ascontiguousarray(values)
        if np.can_cast(rows.dtype, np.float32):
            kind, rows = _RAW, rows.astype("<f4", copy=False)

        def body(start: int, stop: int) -> bytes:
            if kind == _RAW:
                return rows[start:stop].tobytes()
            file = io.BytesIO()
            np.save(file, rows[start:stop], allow_pickle=False)
            return file.getvalue()

        return self._predict_parts(model, len(rows), rows.nbytes, kind, body)

    def _predict_table(self, model: str, events: Any) -> Any:
        import numpy as np

        from mlaas_ray.core.tables import table_of, write_table

        table = table_of(events)
        if not table.num_rows:
            shape = self.params(model)["signature"]["outputs"][0]["shape"][1:]
            return np.empty((0, math.prod(size or 1 for size in shape)), np.float32)
        return self._predict_parts(
            model,
            table.num_rows,
            table.nbytes,
            "application/vnd.apache.arrow.stream",
            lambda start, stop: write_table(table.slice(start, stop - start)),
        )

    def _predict_parts(
        self, model: str, rows: int, size: int, kind: str, body: Callable[[int, int], bytes]
    ) -> Any:
        """Ask for many rows, in requests of bounded size; all are answered by one version."""
        import numpy as np

        answers: list[Any] = []
        tries = 0
        start, most = 0, max(1, min(_MOST_ROWS, _MOST_BYTES * rows // max(size, 1)))
        while start < rows or not answers:
            stop = min(start + most, rows)
            try:
                reply = self._request(
                    "POST",
                    f"/models/{quote(model, safe=':')}/predict",
                    content=body(start, stop),
                    headers={"Content-Type": kind, "Accept": _NPY},
                )
            except _TooLargeError:
                if stop - start == 1:
                    raise
                most = (stop - start) // 2
                continue
            except ServiceError as error:
                tries += 1
                if isinstance(error, _BusyError) and tries < _MOST_TRIES:
                    time.sleep(1)
                    continue
                if stop - start == rows:
                    raise
                raise ServiceError(f"of rows {start} to {stop - 1}: {error.message}", error.remedy) from None
            answered = np.load(io.BytesIO(reply.content), allow_pickle=False)
            answers.append(answered.reshape(len(answered), -1))
            model = reply.headers.get("X-Model", model)
            start, tries = stop, 0
        return np.concatenate(answers)

    def _only_model(self) -> str:
        names = [model["name"] for model in self.models()]
        if len(names) != 1:
            raise ServiceError(f"no model is named, and the service has {len(names)}", "Name one of them")
        return str(names[0])

    def models(self) -> list[dict[str, Any]]:
        """Return a description of each model's newest version."""
        return list(self._ask("GET", "/models"))

    def params(self, model: str) -> dict[str, Any]:
        """Return the full description of ``name`` or ``name:version``: columns, metrics, signature."""
        return dict(self._ask("GET", f"/params/{model}"))

    def upload(self, path: str | Path, name: str | None = None) -> tuple[str, int]:
        """Publish a model: a package, a SavedModel folder, an ONNX file, or a bundle of one (tar, tar.gz).

        Args:
            path: What to upload.
            name: The model's name; the package's, folder's or file's own when it is not given. A bundle has
                its name inside.

        Returns:
            The name, and the version it became.
        """
        with open_bundle(Path(path), name) as bundle:
            return self._send(bundle)

    def delete(self, model: str) -> list[str]:
        """Delete a model ``name``, or one version ``name:version``; return what was deleted."""
        return list(self._ask("DELETE", f"/delete/{model}")["deleted"])

    def deployments(self) -> list[dict[str, Any]]:
        """Return the models with replicas of their own: what is wanted, and how many there are."""
        return list(self._ask("GET", "/deployments"))

    def deploy(self, model: str, *, replicas: str = "1", cpus: float = 0.1, gpus: float = 0.0) -> None:
        """Give a model replicas of its own, or other ones; returns when they answer.

        Args:
            model: Its name, without a version: they serve whatever the name stands for.
            replicas: How many: ``2``, or the fewest and the most as in ``0:8``.
            cpus: CPUs that the cluster reserves for each.
            gpus: GPUs, likewise.
        """
        wish = {"replicas": replicas, "cpus": cpus, "gpus": gpus}
        self._ask(
            "PUT",
            f"/deployments/{model}",
            content=json.dumps(wish).encode(),
            timeout=httpx.Timeout(self._http.timeout.connect, read=600.0, write=60.0),
        )

    def withdraw(self, model: str) -> None:
        """Let a model's own replicas go; those for all answer for it again."""
        self._ask("DELETE", f"/deployments/{model}")

    def status(self) -> dict[str, Any]:
        """Return the figures of the service's machine and work."""
        return dict(self._ask("GET", "/status"))

    def _send(self, bundle: IO[bytes]) -> tuple[str, int]:
        # A model is loaded and tried before it is published.
        reply = self._ask(
            "POST",
            "/upload",
            content=bundle,
            headers={"Content-Type": "application/octet-stream"},
            timeout=httpx.Timeout(self._http.timeout.connect, read=300.0, write=300.0),
        )
        return str(reply["name"]), int(reply["version"])

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        return self._request(method, path, **content).json()

    def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            reply = self._http.request(method, path, **content)
        except httpx.TimeoutException:
            raise ServiceError(
                f"{self.url} did not answer in time", "Give the client a longer timeout"
            ) from None
        except httpx.HTTPError as error:
            raise ServiceError(
                f"cannot reach {self.url}: {error}", "Is the service running? Start it with mlaas serve"
            ) from None
        if reply.is_success:
            return reply
        raise _KINDS.get(reply.status_code, ServiceError)(_reason(reply))


def _reason(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]).rstrip(".")
    except (ValueError, KeyError, TypeError):
        return f"{reply.request.url} answered {reply.status_code} {reply.reason_phrase}"


def _is_matrix(values: Any) -> bool:
    """Tell whether values are a numpy array ``(events, features)`` of numbers, without importing numpy."""
    return getattr(values, "ndim", 0) == 2 and getattr(getattr(values, "dtype", None), "kind", "") in set(
        "biuf"
    )


def _is_table(data: Any) -> bool:
    """Tell whether something has named columns, one entry an event, without importing what made it."""
    if isinstance(data, Mapping) or (hasattr(data, "iloc") and hasattr(data, "columns")):  # pandas
        return True
    if hasattr(data, "__arrow_c_stream__"):
        return not hasattr(data, "tolist")  # which one column has
    of_records = getattr(data, "fields", None) or getattr(getattr(data, "dtype", None), "names", None)
    return bool(of_records)  # awkward, numpy


def _as_array(answers: Any) -> Any:
    import numpy as np

    return np.array(answers, dtype=np.float32)


def _plain(value: Any) -> Any:
    """Turn arrays into lists, and NaN into null, which JSON has."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):  # also of an awkward record
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
