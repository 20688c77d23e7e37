"""Identifying parts of texts are found in values and names, with few false positives."""

from __future__ import annotations

import json
import time

import pytest

from outbox.messages.privacy_defaults import OF_VERSIONS
from outbox.messages.privacy_values import masked, refused
from tests.messages.documents import of_span
from tests.messages.filtering import filtered, name_left, text_left

GIVEN_AWAY = {
    "jane.doe@example.com": "{email}",
    "jane%40example.com": "{email}",
    "jane%2540example.com": "{email}",
    "jane%252540example.com": "{email}",
    "jane＠example.com": "{email}",
    "Jürgen@exämple.de": "{email}",
    '"jane doe"@example.com': '"jane {email}',
    "203.0.113.77": "{address}",
    "203.0.113.77:8080": "{address}:8080",
    "by 203.0.113.77.": "by {address}.",
    "ip-10-1-2-3": "{address}",
    "2001:db8::8a2e:370:7334": "{address}",
    "[2001:db8:0:0:0:0:0:1]:443": "[{address}]:443",
    "::ffff:203.0.113.77": "{address}:{address}",
    "addr:fe80::1%eth0": "addr:{address}%eth0",
    "00:1b:44:11:3a:b7": "{id}",
    "550e8400-e29b-41d4-a716-446655440000": "{id}",
    "user-550E8400-E29B-41D4-A716-446655440000": "user-{id}",
    "6c1f0ab16dd04b419b1c1c6f7b9d3d10": "{id}",
    "507f1f77bcf86cd799439011": "{id}",
    "kJ8sd7FhQ2lmN5vB9xC3zR1t": "{id}",
    "4111111111111111": "{id}",
    "1234567890123": "{id}",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln": "{secret}",
    "Bearer abc.def-ghi": "{secret}",
    "authorization: Basic dXNlcjpwdw==": "authorization: {secret}",
    "lsv2_pt_1234abcd": "{secret}",
    "Basic dXNlcjpwdwAB": "{secret}",
    "Basic amFuZTp4": "{secret}",
    "sk-proj-abcdefgh": "{secret}",
    "sk-abc123def456": "{secret}",
    "sk-abcdefghijklmnopqrstuvwx": "{secret}",
    "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH": "{secret}",
    "ghp_abcdefghij": "{secret}",
    "AKIAABCDEFGH": "{secret}",
    "password=hunter2": "{secret}",
    "token: hunter2": "{secret}",
    "+49 170 1234567": "{phone}",
    "+1 (555) 010-9999": "{phone}",
}
HARMLESS = (
    *("receive_request", "langsmith_http_requests_latency", "opentelemetry.instrumentation.asgi"),
    *("@opentelemetry/instrumentation-http", "java.lang.NullPointerException", "std::bad_alloc", "Net::ReadTimeout"),
    *("GET /sessions", "POST /v1/traces", "/runs/{run_id}/share", "SELECT users", "SELECT public.orders"),
    *("1.2.3", "3.11.2-rc1+local.7", "application/json; charset=utf-8", "HTTP/1.1", "500", "12:30:45", "2025-01-06"),
    *("langsmith-backend-7d9f8b6c5d-x2x4z", "status-cancelled", "{By}", "a = b", "what? no", "don't", "C#", ""),
    *(
        "sk-orders-service",
        "sk_orders_worker",
        "hf_inference",
        "sk-orders-7d9f8b6c5d-x2x4z",
        "fe::add",
        "ab::cd",
        "a::b",
    ),
    *("basic authentication", "Basic checkout flow", "bearer token", "HTTP/2", "0.30000000000000004", "123456789012"),
    *("CodeHeap 'non-nmethods'", "CodeHeap 'non-profiled nmethods'"),
)
PATHS = {
    "/sessions": "/sessions",
    "/users/4711": "/users/{id}",
    "/users/4711/orders/12": "/users/{id}/orders/{id}",
    "/users/jane@example.com/runs": "/users/{email}/runs",
    "/runs/550e8400-e29b-41d4-a716-446655440000": "/runs/{id}",
    "/users/4711.json": "/users/{id}.json",
    "/users/4711,4712": "/users/{id}",
    "/v1.2/runs": "/v1.2/runs",
    "/1.2/runs": "/1.2/runs",
    "/search?q=jane": "/search",
    "/search?jane.doe": "/search",
    "/search?/jane": "/search",
    "/odata?$filter=name eq jane": "/odata",
    "/x;user=jane": "/x",
    "/app#/jane": "/app",
    "/:id?": "/:id?",
    "/:id?/runs": "/:id?/runs",
    "/:id?/runs?jane": "/:id?/runs",
    "/users/{id?}": "/users/{id?}",
    "/(?P<id>[0-9]+)/": "/(?P<id>[0-9]+)/",
    "/search#name=jane": "/search",
    "https://jane:pw@host.example:8443/users/4711?q=jane#top": "/users/{id}",
    "http://customer.example": "/",
    "postgresql://svc:pw@db.internal/tenant": "/tenant",
}
NAMES = {
    "GET /users/4711?q=jane": "GET /users/{id}",
    "GET https://host.example/users/4711": "GET /users/{id}",
    "SELECT * FROM users WHERE name = 'Jane'": "SELECT",
    "insert into users values ('Jane')": "insert",
    "/* app */ SELECT * FROM u WHERE phone=01701234567": "SELECT",
    "-- of the app\nSELECT a FROM u WHERE phone=0170": "SELECT",
    "# of the app\nSELECT a FROM u WHERE phone=0170": "SELECT",
    "(SELECT a FROM u WHERE phone=0170)": "SELECT",
    "EXPLAIN SELECT a FROM u WHERE phone=0170": "SELECT",
    "EXPLAIN (ANALYZE, BUFFERS) SELECT a FROM u WHERE phone=0170": "SELECT",
    "GET /search?jane.doe": "GET /search",
    'greeted "Jane Doe"': "greeted {text}",
    "users/4711": "users/{id}",
    "greeted 'Jane Doe'": "greeted {text}",
}


@pytest.mark.parametrize(("text", "left"), GIVEN_AWAY.items())
def test_what_gives_somebody_away_goes_from_values_and_is_replaced_in_names(text: str, left: str) -> None:
    assert text_left(text) is None
    assert text_left(f"before {text}") is None
    assert name_left(text) == left


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_harmless_stays_as_it_is(text: str) -> None:
    assert text_left(text) == text
    assert name_left(text) == text


@pytest.mark.parametrize(("text", "left"), PATHS.items())
def test_a_path_keeps_its_form_and_loses_what_is_particular(text: str, left: str) -> None:
    assert text_left(text) == left
    assert name_left(text) == left


@pytest.mark.parametrize(("name", "left"), NAMES.items())
def test_a_name_keeps_what_is_general_and_so_does_a_value(name: str, left: str) -> None:
    assert name_left(name) == left
    if "://" not in name and "?q=" not in name:  # these go from values, unless they are a path alone
        assert text_left(name) == left


def test_a_machine_may_have_a_uuid_and_a_build_a_hash() -> None:
    uuid = "550e8400-e29b-41d4-a716-446655440000"
    assert text_left(uuid, "service.instance.id") == uuid
    assert text_left("6c1f0ab16dd04b419b1c1c6f7b9d3d10", "service.version") == "6c1f0ab16dd04b419b1c1c6f7b9d3d10"
    assert text_left(uuid, "service.name") is None
    for given_away in ("jane@example.com", "203.0.113.77", "Bearer abcdefgh", "http://customer.example/x"):
        assert text_left(given_away, "service.instance.id") is None


@pytest.mark.parametrize(
    ("key", "version"),
    [
        *((key, "2.14.0.1") for key in sorted(OF_VERSIONS)),
        *((key, "app@1.2.3") for key in sorted(OF_VERSIONS)),
        ("process.runtime.version", "17.0.8.1+1"),
        ("process.runtime.description", "OpenJDK 64-Bit Server VM 17.0.8.1+1"),
    ],
)
def test_a_version_is_neither_an_address_nor_somebodys_email(key: str, version: str) -> None:
    assert text_left(version, key) == version
    assert text_left(version, "service.name") is None, "what is remembered as harmless is so in a version alone"
    for given_away in ("jane@example.com", "Bearer abcdefgh", "2001:db8::8a2e:370:7334", "ip-10-1-2-3"):
        assert text_left(given_away, key) is None


def test_the_version_of_a_scope_is_a_version_and_its_name_is_none() -> None:
    document = of_span()
    document["resourceSpans"][0]["scopeSpans"][0]["scope"] = {"name": "1.2.3.4", "version": "1.2.3.4"}
    text, taken = filtered("traces", document)
    assert json.loads(text)["resourceSpans"][0]["scopeSpans"][0]["scope"] == {"name": "{address}", "version": "1.2.3.4"}
    assert taken == {("scope", "name", "value"): 1}


@pytest.mark.parametrize(
    "part",
    [
        *("a", "1", "a1", "?a", "#", "'", "::", "1.", "a://", "+1", "%4", "eyJ", "token", "a-", "'a", '"', ";", "%25"),
        *("sk-", "sk-a", "hf_", "basic:", "basic ", "bearer:", "/", "/:", "/:a?", "/a?/", " /", "/1", "/1,", "(", "(?"),
        *("/*", "/**/", "--\n", "explain ", "explain(", "select ", "http/", "＠", "f:", "1234567890123x"),
    ],
)
def test_a_text_of_megabytes_is_looked_at_once(part: str) -> None:
    """A pattern with quadratic time takes hours for this, a linear one less than a second."""
    short, long = part * 2000, part * 32_000
    times = []
    for text in (short, long):
        began = time.thread_time()
        refused(text)
        masked(text, 256)
        times.append(time.thread_time() - began)
    assert times[1] < 16 * 8 * max(times[0], 0.001)
