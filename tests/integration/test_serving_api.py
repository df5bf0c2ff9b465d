"""The prediction API over a real socket: answers, every refusal, what it measures and what it documents."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_shop import CUSTOMERS, NOW, app_of, deploy_version, make_shop, served

MAX_BODY = 65_536
URL = "/v1/models/churn:predict"
TOO_BIG = b" " * (MAX_BODY + 1)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    shop, catalog = make_shop(tmp_path_factory.mktemp("shop"), MAX_BODY)
    deploy_version(shop, catalog, "1")
    with served(app_of(shop, catalog)) as client:
        yield client


def ask(client: httpx.Client, *ids: object) -> httpx.Response:
    return client.post(URL, json={"entities": [{"customer_id": i} for i in ids]})


def test_an_answer_has_predictions_in_order_with_version_and_freshness(client: httpx.Client) -> None:
    answer = ask(client, 13, 10, 13).json()
    assert (answer["model"], answer["version"], answer["served_at"]) == ("churn", "1", NOW.isoformat() + "Z")
    made = answer["predictions"]
    assert [p["customer_id"] for p in made] == [13, 10, 13]
    assert made[0]["prediction"] == made[2]["prediction"] != made[1]["prediction"]
    assert all(0 <= p["prediction"] <= 1 for p in made)
    assert len({p["prediction_id"] for p in made}) == 3
    assert made[1]["features_as_of"] == (NOW - timedelta(days=10)).isoformat() + "Z"
    assert answer["feature_freshness"]["activity"] == {
        "oldest_event_at": (NOW - timedelta(days=40)).isoformat() + "Z",
        "age_seconds": 40 * 86_400.0,
    }


def test_a_thousand_entities_are_allowed(client: httpx.Client) -> None:
    ids = list(CUSTOMERS) * 250
    assert [p["customer_id"] for p in ask(client, *ids).json()["predictions"]] == ids


BODIES = [
    (b"", 400, "found 0 bytes that are not JSON"),
    (b"{", 400, "not JSON"),
    (b'{"entities": [{"customer_id": NaN}]}', 400, "NaN and Infinity are not JSON"),
    (b'{"entities": [{"customer_id": -Infinity}]}', 400, "not JSON"),
    (b'{"entities": [{"customer_id": 1e999}]}', 400, "not JSON"),
    (b"\xff\xfe{}", 400, "UTF-8"),
    (b"[" * 60_000, 400, "not JSON"),
    (b"null", 422, "$: found null, allowed is an object"),
    (b"[]", 422, "$: found a list of 0"),
    (b"{}", 422, "entities: found no such field"),
    (b'{"entities": null}', 422, "entities: found null, allowed is a list of 1 to 1000"),
    (b'{"entities": []}', 422, "entities: found a list of 0"),
    (b'{"entities": {"customer_id": 10}}', 422, "entities: found an object with 1 fields"),
    (b'{"entities": [{"customer_id": 10}], "model": "x"}', 422, "model: found an unknown field"),
    (b'{"entities": [10]}', 422, "entities[0]: found the integer 10"),
    (b'{"entities": [{}]}', 422, "entities[0].customer_id: found no such field"),
    (b'{"entities": [{"id": 10}]}', 422, "entities[0].id: found an unknown field"),
    (b'{"entities": [{"customer_id": 10, "at": 1}]}', 422, "entities[0].at: found an unknown field"),
    (b'{"entities": [{"customer_id": 10.0}]}', 422, "found the number 10.0, allowed is a 64-bit integer"),
    (b'{"entities": [{"customer_id": "10"}]}', 422, 'found the string "10"'),
    (b'{"entities": [{"customer_id": true}]}', 422, "found the boolean true"),
    (b'{"entities": [{"customer_id": null}]}', 422, "found null"),
    (b'{"entities": [{"customer_id": [10]}]}', 422, "found a list of 1"),
    (b'{"entities": [{"customer_id": 9223372036854775808}]}', 422, "found the integer 9223372036854775808"),
    (b'{"entities": [{"customer_id": 99999999999999999999}]}', 422, "allowed is a 64-bit integer"),
    (b'{"entities": [{"customer_id": -9223372036854775809}]}', 422, "allowed is a 64-bit integer"),
    (b'{"entities": ' + b"[" * 500 + b"]" * 500 + b"}", 422, "entities[0]: found a list of 1"),
    (json.dumps({"entities": [{"customer_id": 10}] * 1001}).encode(), 422, "found a list of 1001"),
    (b'{"entities": [{"customer_id": 9223372036854775807}]}', 404, "9223372036854775807"),
    (b'{"entities": [{"customer_id": -1}]}', 404, "nothing was scored"),
    (TOO_BIG, 413, f"found {MAX_BODY + 1} bytes, allowed are at most {MAX_BODY} bytes (HEADWATER_MAX_BODY_BYTES)"),
]


@pytest.mark.parametrize(("body", "status", "said"), BODIES, ids=[f"{s}-{i}" for i, (_, s, _) in enumerate(BODIES)])
def test_a_wrong_body_is_refused_precisely(client: httpx.Client, body: bytes, status: int, said: str) -> None:
    response = client.post(URL, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert (document["status"], document["type"].split(":")[:3]) == (status, ["urn", "headwater", "problem"])
    assert said in document["detail"]


def test_every_wrong_entity_is_listed(client: httpx.Client) -> None:
    document = ask(client, 10, "11", None, *["x"] * 50).json()
    assert [e["where"] for e in document["errors"][:2]] == ["entities[1].customer_id", "entities[2].customer_id"]
    assert (len(document["errors"]), document["error_count"]) == (20, 52)


def test_every_unknown_customer_is_listed_and_none_is_scored(client: httpx.Client) -> None:
    document = ask(client, 10, 7, 8, 7).json()
    assert (document["status"], document["customer_ids"]) == (404, [7, 8])
    assert "predictions" not in document


def test_a_body_without_length_is_bounded_too(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"entities": ['
        for _ in range(64):
            yield b" " * 2048

    response = client.post(URL, content=chunks(), headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["max_body_bytes"]) == (413, MAX_BODY)
    assert "found more than 65536 bytes" in response.json()["detail"]


def test_a_chunked_body_within_the_limit_is_read(client: httpx.Client) -> None:
    parts = [b'{"entities": ', b'[{"customer_id": 10}', b"]}"]
    assert client.post(URL, content=iter(parts), headers={"content-type": "application/json"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": 'Application/JSON; charset="UTF-8"'}, 200),
        ({"content-type": "application/json; charset=latin-1"}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/jsonl"}, 415),
        ({}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
    ],
)
def test_only_json_is_read(client: httpx.Client, headers: dict[str, str], status: int) -> None:
    response = client.post(URL, content=b'{"entities": [{"customer_id": 10}]}', headers=headers)
    assert response.status_code == status, response.text


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("POST", "/v1/models/nope:predict", 404, "found model 'nope', allowed is one of: churn, idle"),
        ("POST", "/v1/models/%ff%00%0a:predict", 404, "allowed is one of: churn, idle"),
        ("GET", "/v1/models/nope", 404, "allowed is one of: churn, idle"),
        ("GET", "/v1/models/nope/card", 404, "allowed is one of: churn, idle"),
        ("GET", "/v2", 404, "found '/v2'"),
        ("GET", URL, 405, "found method GET, allowed is POST"),
        ("DELETE", URL, 405, "found method DELETE, allowed is POST"),
        ("POST", "/v1/models", 405, "found method POST, allowed is GET, HEAD"),
    ],
)
def test_wrong_addresses_and_methods(client: httpx.Client, method: str, path: str, status: int, said: str) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert said in response.json()["detail"]
    assert status != 405 or said.endswith(response.headers["allow"])


def test_a_model_that_is_not_deployed_says_what_to_do(client: httpx.Client) -> None:
    response = client.post("/v1/models/idle:predict", json={"entities": [{"customer_id": 10}]})
    assert (response.status_code, response.json()["model"]) == (503, "idle")
    assert "run `headwater run`" in response.json()["detail"]


def test_a_model_tells_version_features_lineage_and_card(client: httpx.Client) -> None:
    assert [(m["name"], m["version"], m["status"]) for m in client.get("/v1/models").json()["models"]] == [
        ("churn", "1", "serving"),
        ("idle", None, "not deployed"),
    ]
    told = client.get("/v1/models/churn").json()
    assert [(f["name"], f["view"], f["type"]) for f in told["features"]] == [
        ("txn_count_30d", "activity", "int64"),
        ("days_since_last_txn", "activity", "float64"),
        ("country", "profile", "string"),
    ]
    assert told["package"]["provenance"] == {"run_id": "run-1", "data_digest": "d" * 64}
    assert (told["lineage"], told["lineage_problem"][:14]) == (None, "no registry at")
    assert told["card"]["markdown"] == "# churn, version 1\n"
    card = client.get(told["card"]["html"])
    assert (card.headers["content-type"], "<h1>churn, version 1" in card.text) == ("text/html; charset=utf-8", True)
    assert client.get("/v1/models/idle/card").status_code == 503


def test_health_and_readiness(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "problems": {}, "not_deployed": ["idle"]})


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v1/models", "/v1/models/churn", "/v2", URL]
)
def test_head_is_answered_like_get_without_a_body(client: httpx.Client, path: str) -> None:
    got, asked = client.get(path), client.head(path)
    assert (asked.status_code, asked.headers["content-type"]) == (got.status_code, got.headers["content-type"])
    assert asked.content == b""
    assert path == "/metrics" or asked.headers["content-length"] == str(len(got.content))


def test_head_is_measured_as_what_it_is(client: httpx.Client) -> None:
    client.head("/healthz")
    assert 'headwater_requests_total{method="HEAD",route="/healthz",status="200"}' in client.get("/metrics").text


def test_nothing_deployed_is_not_ready(tmp_path: Path) -> None:
    shop, catalog = make_shop(tmp_path)
    shop.online_path.unlink()
    with served(app_of(shop, catalog)) as client:
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
        assert "no online store yet" in ready.json()["problems"]["online features"]
        deploy_version(shop, catalog, "1")
        refused = next(r for _ in range(500) if (r := ask(client, 10)).json().get("type", "")[-11:] == "unavailable")
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:headwater:problem:features-unavailable")


def test_metrics_count_what_happened(client: httpx.Client) -> None:
    ask(client, 10, 11)
    client.request("PROPFIND", "/coffee")
    text = client.get("/metrics").text
    assert 'headwater_requests_total{method="POST",route="/v1/models/{model}:predict",status="200"}' in text
    assert 'headwater_requests_total{method="other",route="unmatched",status="404"}' in text
    assert 'headwater_predictions_total{model="churn",version="1"}' in text
    assert 'headwater_model_info{model="churn",version="1"} 1.0' in text
    assert 'headwater_feature_age_seconds{model="churn",view="activity"} 1.728e+06' in text
    assert "headwater_prediction_log_up 1.0" in text


def test_the_documentation_describes_every_address_and_its_examples_work(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/models/{model}:predict",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/models/{model}/card",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    for methods in document["paths"].values():
        assert all(operation["summary"] for operation in methods.values())
    predict = document["paths"]["/v1/models/{model}:predict"]["post"]
    assert {"200", "400", "404", "413", "415", "422", "503"} <= set(predict["responses"])
    example = predict["requestBody"]["content"]["application/json"]["example"]
    assert client.post(URL, json=example).status_code == 404  # the right shape, customers of another shop
    page = client.get("/docs").text
    assert "/v1/models/{model}:predict" in page
    assert "17850" in page
    assert "src=" not in page  # it opens without any other host


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10, "customer_id"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["entities", "customer_id"]) | st.text(), inner),
    max_leaves=12,
)
entity = st.fixed_dictionaries({"customer_id": json_values})
entities = st.fixed_dictionaries({"entities": st.lists(entity | json_values)})


@given(st.binary(max_size=300) | (json_values | entities).map(lambda v: json.dumps(v).encode()))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_makes_the_server_fail(client: httpx.Client, body: bytes) -> None:
    response = client.post(URL, content=body, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404, 422), response.text
    json.loads(response.content)


def test_a_client_that_leaves_in_the_middle_of_a_body_harms_nobody(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as half:
        head = f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n"
        half.sendall(head.encode() + b"{")
    assert ask(client, 10).status_code == 200
