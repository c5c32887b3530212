"""What Prometheus reads of the gateways."""

from __future__ import annotations

from collections import Counter

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlaas_ray.inference.metrics import Counts, exposition
from mlaas_ray.inference.status import Status
from tests.inference.face import Face
from tests.serving import Served

Samples = dict[tuple[str, ...], float]


def samples(text: str) -> Samples:
    """Values by name and labels, those of the gateways added up."""
    found: Counter[tuple[str, ...]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [label for name, label in sorted(sample.labels.items()) if name != "gateway"]
            found[sample.name, *labels] += sample.value  # type: ignore[assignment]
    return dict(found)


def counts(gateway: str, *seconds: float) -> Counts:
    """Counts of a gateway that answered in so many seconds, two rows each."""
    status = Status()
    for second in seconds:
        status.count("POST", 200)
        status.predicted("toy", 2, second)
    status.count("GET", 404)
    return Counts(gateway, status.answered, status.models, calls=3, rows=8, ongoing=1, waiting=5)


def test_each_gateway_is_told_apart() -> None:
    text = exposition([counts("a", 0.00008, 0.003), counts("b", 0.003, 100, 1000)]).decode()
    for gateway, requests in (("a", 2), ("b", 3)):
        assert f'mlaas_requests_total{{code="200",gateway="{gateway}",method="POST"}} {requests}.0' in text
        assert f'mlaas_rows_total{{gateway="{gateway}",model="toy"}} {2 * requests}.0' in text
    together = samples(text)
    assert together["mlaas_requests_total", "404", "GET"] == 2
    assert together["mlaas_calls_total",] == 6
    assert together["mlaas_call_rows_total",] == 16
    assert together["mlaas_ongoing_predictions",] == 2
    assert together["mlaas_waiting_rows",] == 10


def test_times_are_a_histogram_whose_classes_add_up() -> None:
    text = exposition([counts("a", 0.00008, 0.003, 0.003, 100, 1000)]).decode()
    (family,) = [
        family for family in text_string_to_metric_families(text) if family.name == "mlaas_prediction_seconds"
    ]
    assert family.type == "histogram"
    buckets = {float(sample.labels["le"]): sample.value for sample in family.samples if "le" in sample.labels}
    assert list(buckets) == sorted(buckets)
    assert list(buckets.values()) == sorted(buckets.values())
    assert buckets[0.0001] == 1
    assert buckets[0.0016] == 1
    assert buckets[0.0032] == 3
    assert buckets[float("inf")] == 5
    found = samples(text)
    assert found["mlaas_prediction_seconds_count", "toy"] == 5
    assert found["mlaas_prediction_seconds_sum", "toy"] == pytest.approx(1100.00608)


def test_any_name_of_a_model_can_be_read_again() -> None:
    status = Status()
    status.predicted('a"b\\c\nd', 1, 0.1)
    text = exposition([Counts("a", status.answered, status.models, 0, 0, 0, 0)]).decode()
    assert samples(text)["mlaas_rows_total", 'a"b\\c\nd'] == 1


def test_no_gateway_that_answers_is_still_a_page(tmp_path, onnx_package) -> None:
    face = Face(tmp_path, onnx_package)
    reply = face.get("/metrics")
    assert (reply.status_code, reply.headers["content-type"]) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
    )
    assert samples(reply.text) == {}
    face.backend.counted = [counts("a", 0.1)]
    assert samples(face.get("/metrics").text)["mlaas_rows_total", "toy"] == 2


def test_every_request_counts_once_whichever_way_it_goes(served: Served) -> None:
    def look() -> Samples:
        reply = served.http.get("/metrics")
        assert reply.status_code == 200
        return samples(reply.text)

    before = look()
    for _ in range(7):  # by the desk
        served.json({"model": "toy", "values": [1, 2, 3, 4, 5]})
    for _ in range(3):  # and not
        served.json({"model": "toy", "event": {"MET_pt": 1.0}})
    served.json({"model": "toy", "values": [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]})
    served.json({"model": "toy", "values": [1, 2]})
    served.json({"model": "none", "values": [1, 2]})
    httpx.post(f"{served.url}/nowhere", trust_env=False)
    after = look()

    def more(*key: str) -> float:
        return after.get(key, 0) - before.get(key, 0)

    assert more("mlaas_requests_total", "200", "POST") == 11
    assert more("mlaas_requests_total", "400", "POST") == 1
    assert more("mlaas_requests_total", "404", "POST") == 2
    assert more("mlaas_prediction_seconds_count", "toy") == 11
    assert more("mlaas_rows_total", "toy") == 12
    assert more("mlaas_call_rows_total") == 12
    assert 1 <= more("mlaas_calls_total") <= 11
    assert 0 < more("mlaas_prediction_seconds_sum", "toy") < 11
    assert after["mlaas_ongoing_predictions",] == after["mlaas_waiting_rows",] == 0
