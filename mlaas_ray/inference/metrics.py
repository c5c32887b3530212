"""Metrics: the counts of all gateways, in the form that Prometheus reads.

Ray Serve's own metrics do not see what the desk takes. These count every request, whichever way it went.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as MEDIA_TYPE

from mlaas_ray.inference.status import BUCKETS_S, Times

__all__ = ["MEDIA_TYPE", "Counts", "exposition"]

_BOUNDS = (*map(str, BUCKETS_S), "+Inf")


@dataclass(frozen=True)
class Counts:
    """What a gateway has counted since it started.

    Attributes:
        gateway: Its name, which no other has.
        answered: Requests, by method and status.
        models: Predictions, by model.
        calls: Calls of models, or of replicas that hold them.
        rows: Rows in these calls.
        ongoing: Predictions not answered yet.
        waiting: Rows that wait to be sent off.
    """

    gateway: str
    answered: Mapping[tuple[str, int], int]
    models: Mapping[str, Times]
    calls: int
    rows: int
    ongoing: int
    waiting: int


def exposition(counts: Sequence[Counts]) -> bytes:
    """Write counts in Prometheus's text format."""
    return generate_latest(_Families(counts))


class _Families:
    """Prometheus's families of metrics, of counts."""

    def __init__(self, counts: Sequence[Counts]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "mlaas_requests", "HTTP requests answered.", labels=["gateway", "method", "code"]
        )
        seconds = HistogramMetricFamily(
            "mlaas_prediction_seconds",
            "Time from a request's rows to their predictions, by request.",
            labels=["gateway", "model"],
        )
        predicted = CounterMetricFamily("mlaas_rows", "Rows predicted.", labels=["gateway", "model"])
        calls = CounterMetricFamily(
            "mlaas_calls", "Calls that carried rows of many requests.", labels=["gateway"]
        )
        carried = CounterMetricFamily("mlaas_call_rows", "Rows in these calls.", labels=["gateway"])
        ongoing = GaugeMetricFamily(
            "mlaas_ongoing_predictions", "Predictions not answered yet.", labels=["gateway"]
        )
        waiting = GaugeMetricFamily(
            "mlaas_waiting_rows", "Rows that wait to be sent off.", labels=["gateway"]
        )
        for one in self._counts:
            name = one.gateway
            for (method, code), count in one.answered.items():
                requests.add_metric([name, method, str(code)], count)
            for model, times in one.models.items():
                buckets = list(zip(_BOUNDS, accumulate(times.buckets()), strict=True))
                seconds.add_metric([name, model], buckets, times.seconds)
                predicted.add_metric([name, model], times.rows)
            calls.add_metric([name], one.calls)
            carried.add_metric([name], one.rows)
            ongoing.add_metric([name], one.ongoing)
            waiting.add_metric([name], one.waiting)
        yield from (requests, seconds, predicted, calls, carried, ongoing, waiting)
